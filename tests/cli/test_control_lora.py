"""A Control LoRA from the command line: drawn with, recorded, drawn again, examined and refused."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from core.images import decode
from core.provenance import read_record
from tests import tinymodels_flux
from tests.cli.conftest import SIZE, limn
from tests.pipelines.control_loras import build_control_lora
from tests.pipelines.scenes import ORACLES_OWN

pytestmark = ORACLES_OWN


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny FLUX.1-dev and a Control LoRA for it."""
    folder = tmp_path_factory.mktemp("flux")
    tinymodels_flux.build_base(folder / "FLUX.1-dev")
    lora, _ = build_control_lora(folder, folder / "FLUX.1-dev")
    lora.rename(folder / "flux1-canny-dev-lora.safetensors")
    return folder


def test_drawn_with_and_drawn_again(flux: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LIMN_MODELS", str(flux))
    draw = ("render", "-p", "a red box", "--model", "FLUX.1-dev", *SIZE)
    control = "canny=edges.png,ready,model=flux1-canny-dev-lora.safetensors,weight=0.85"
    assert limn(*draw, "--out", "plain") == 0
    assert limn(*draw, "--control", control, "--out", "steered") == 0
    (plain,), (steered,) = (list(Path(name).iterdir()) for name in ("plain", "steered"))
    assert (decode(plain) != decode(steered)).any()
    record = read_record(steered)
    assert record.request.controls[0].weight == 0.85
    file = flux / "flux1-canny-dev-lora.safetensors"
    recorded = {one.file: one.sha256 for one in record.weights if one.part == "control 0"}
    assert recorded == {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
    assert limn("verify", steered) == 0
    assert limn(*draw, "--control", control.replace("0.85", "0"), "--out", "silent") == 0
    (silent,) = Path("silent").iterdir()
    assert np.array_equal(decode(silent), decode(plain))
    capsys.readouterr()
    assert limn("models", "--json") == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)["models"]}
    assert listed["flux1-canny-dev-lora"]["kind"] == "control-lora"
    assert listed["flux1-canny-dev-lora"]["family"] == "flux"


def test_the_doctor_says_where_it_does_not_fit(flux: Path, house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora = flux / "flux1-canny-dev-lora.safetensors"
    ask = ("doctor", "--model", flux / "FLUX.1-dev", *SIZE, "--control")
    assert limn(*ask, f"canny=edges.png,ready,model={lora}") == 0
    capsys.readouterr()
    assert limn("doctor", "--model", house / "base", *SIZE, "--control", f"canny=edges.png,ready,model={lora}") == 2
    assert "is a Control LoRA for FLUX.1, the base model" in "".join(capsys.readouterr())
    assert limn(*ask, f"canny=edges.png,ready,mode=guess,model={lora}") == 2
    assert "mode 'guess' means nothing to it" in "".join(capsys.readouterr())
    assert limn(*ask, f"depth=edges.png,ready,model={lora}") == 0
    assert "is for canny going by its name alone" in "".join(capsys.readouterr())


def test_as_a_lora_it_is_refused(flux: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora = flux / "flux1-canny-dev-lora.safetensors"
    assert limn("render", "-p", f"a red box <lora:{lora}:1>", "--model", flux / "FLUX.1-dev", *SIZE) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"give it as the model of a control, as in --control canny=edges.png,model={lora}" in line
