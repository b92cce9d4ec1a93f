"""What was trained appears in `limn models`, and is drawn with by that name."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from core.request import ControlUnit, RenderRequest
from pipelines import catalogue
from pipelines.engine import Engine, resolve
from pipelines.family import Place
from renderer import Renderer
from tests.training.test_controlnet import config
from training.offered import offer
from training.run import main


def trained(name: str) -> list[catalogue.Installed]:
    return [one for one in catalogue.installed() if one.name == f"trained/{name}"]


def test_what_was_trained_is_listed_and_drawn_with(
    base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIMN_MODELS", str(tmp_path / "models"))
    file = tmp_path / "config.yaml"
    given = config(base, dataset, tmp_path / "my-canny", monitor={"samples": 0, "tensorboard": False})
    file.write_text(yaml.safe_dump(given.model_dump(mode="json")))
    main(file)
    assert "listed by limn models, and drawn with, as trained/my-canny" in capsys.readouterr().out
    (listed,) = trained("my-canny")
    assert (listed.kind, listed.family, listed.problem) == ("controlnet", "sd", "")
    assert resolve("trained/my-canny").samefile(tmp_path / "my-canny" / "weights")

    renderer = Renderer(Engine(Place(torch.device("cpu"), torch.float32)), str(base))
    picture = next((dataset / "canny").iterdir())
    pictures = []
    for model in ("trained/my-canny", str(tmp_path / "my-canny" / "weights")):
        units = (ControlUnit(kind="canny", image=picture, ready=True, model=model),)
        pictures.append(np.asarray(renderer.render(RenderRequest(width=64, height=64, steps=1, controls=units))[0].image))
    assert np.array_equal(*pictures)

    main(file, ["train.steps=6"])  # other weights, which are no damage
    assert catalogue.check(trained("my-canny")[0]) == []


def test_links_of_runs_that_are_gone_go_and_what_is_no_link_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMN_MODELS", str(tmp_path / "models"))
    for run in ("one", "two", "three"):
        (tmp_path / run / "weights").mkdir(parents=True)
    (tmp_path / "models" / "trained" / "two").mkdir(parents=True)
    assert offer(tmp_path / "one" / "weights") == "trained/one"
    assert offer(tmp_path / "two" / "weights") is None
    shutil.rmtree(tmp_path / "one")
    assert offer(tmp_path / "three" / "weights") == "trained/three"
    assert offer(tmp_path / "three" / "weights") == "trained/three"
    assert sorted(path.name for path in (tmp_path / "models" / "trained").iterdir()) == ["three", "two"]
    monkeypatch.setenv("LIMN_MODELS", "/proc/nowhere")  # nothing can be written there
    assert offer(tmp_path / "three" / "weights") is None
