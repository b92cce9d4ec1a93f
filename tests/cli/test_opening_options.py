"""Where a model computes, in which numbers, and how it lies in memory, said on the command line: to every command that opens one."""

import contextlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from core.errors import BadRequest
from core.images import decode
from core.provenance import read_record
from pipelines import opening
from pipelines.engine import choose_place
from pipelines.quantise import QUANTISED
from pipelines.residency import ATTENTION, OFFLOADS, STORAGES, Memory
from tests.cli.conftest import SIZE, limn
from web.service import Service


def drawn(folder: str) -> list[np.ndarray]:
    return [decode(path) for path in sorted(Path(folder).glob("*.png"))]


def test_help_names_them_all() -> None:
    texts = {opening.OFFLOADS: OFFLOADS, opening.STORAGES: STORAGES, opening.ATTENTION: ATTENTION}
    for text, names in (*texts.items(), (opening.QUANTISED, ("none", *QUANTISED))):
        assert re.split(", | or ", re.sub(r" \([^)]*\)", "", text)) == list(names)


@pytest.mark.parametrize("offload", ["model", "group", "sequential"])
def test_offloading_draws_the_same(house: Path, offload: str) -> None:
    command = ("render", "-p", "a cube", "--model", house / "base", *SIZE)
    assert limn(*command, "--out", "plain") == 0
    assert limn(*command, "--offload", offload, "--out", "offloaded") == 0
    levels = np.abs(drawn("plain")[0].astype(int) - drawn("offloaded")[0])
    assert levels.max() <= (0 if offload == "model" else 1)  # layers that come and go are computed plainly, not by oneDNN


def test_rounding_is_recorded_and_counts_as_another_job(house: Path) -> None:
    Path("jobs.jsonl").write_text(json.dumps({"prompt": "a cube", "size": "64x64", "steps": 2}))
    command = ("render", "jobs.jsonl", "--model", house / "base", "--out", "batch")
    assert limn(*command) == 0
    assert limn(*command, "--storage", "float8") == 0
    paths = sorted(Path("batch").glob("*.png"))
    assert len(paths) == 2
    notes = sorted(read_record(path).notes for path in paths)
    assert notes == [(), ("the denoising network's weights are rounded: float8",)]
    assert not np.array_equal(*map(decode, paths))


@pytest.mark.parametrize("command", [("render", *SIZE), ("doctor", *SIZE), ("ui",), ("evaluate", "control", "--count", "1")], ids=" ".join)
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--device", "tpu"), "device 'tpu' is not on this machine: use one of "),
        (("--dtype", "float8"), "unknown dtype 'float8': did you mean"),
        (("--offload", "grup"), "unknown offload 'grup': did you mean 'group'?"),
        (("--storage", "float88"), "unknown storage 'float88': did you mean 'float8'?"),
        (("--quantise", "nf5"), "unknown quantise 'nf5': did you mean 'nf4'?"),
        (("--attention", "sdp"), "unknown attention 'sdp': did you mean 'sdpa'?"),
        (("--attention", "flash"), "attention = 'flash' needs a package that is not installed: run 'pip install flash-attn'"),
        (("--offload", "sequential", "--storage", "float8"), "use offload group"),
    ],
)
def test_what_cannot_be_is_one_line(
    house: Path, command: tuple[str, ...], options: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert limn(*command, "--model", house / "base", *options) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_only_what_differs_counts() -> None:
    values = {"offload": "none", "storage": "as_computed", "quantise": "none", "attention": None, "seed": 3}
    assert opening.Opening.asked(values).memory is None
    assert opening.Opening.asked(values | {"offload": "group"}).memory == Memory(offload="group")


@pytest.mark.parametrize("command", [("render", "jobs.jsonl"), ("render", "-p", "a cube")], ids=["batch", "single"])
def test_numbers_are_chosen_recorded_and_needed_to_draw_again(house: Path, command: tuple[str, ...]) -> None:
    Path("jobs.jsonl").write_text(json.dumps({"prompt": "a cube", "size": "64x64", "steps": 2}))
    size = SIZE if "-p" in command else ()
    assert limn(*command, "--model", house / "base", *size, "--device", "cpu", "--dtype", "bfloat16", "--out", "half") == 0
    (path,) = Path("half").glob("*.png")
    assert read_record(path).dtype == "bfloat16"
    assert limn("verify", path, "--dtype", "bfloat16") == 0
    assert limn("verify", path) == 3


def test_the_page_opens_its_model_so(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Service] = []
    monkeypatch.setattr("web.server.private_cache", contextlib.nullcontext)
    monkeypatch.setattr("app.build", lambda service, trainings: opened.append(service))
    monkeypatch.setattr("web.server.serve", lambda page, service, **options: None)
    assert limn("ui", "--model", house / "base", "--dtype", "bfloat16", "--offload", "group") == 0
    (service,) = opened
    assert service.opening == opening.Opening(dtype="bfloat16", offload="group")
    engine = service._open().engine
    assert (engine.place.dtype, engine.memory) == (torch.bfloat16, Memory(offload="group"))


def test_the_cpu_has_no_numbers_and_a_gpu_only_those_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_place("cpu:1") == choose_place("cpu"), "so that a record does not tell them apart"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert str(choose_place("cuda:1").device) == "cuda:1"
    with pytest.raises(BadRequest, match="device 'cuda:2' is not on this machine: it has 2, counted from cuda:0"):
        choose_place("cuda:2")
