"""Requests with FLUX.1's Control LoRAs: mixed, in any memory, found by name, examined, recorded, refused where they mean nothing."""

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import BadModel, Mismatch, UserError
from core.request import ControlUnit, RenderRequest
from pipelines.catalogue import check, installed
from pipelines.residency import Memory
from renderer import Renderer
from tests import tinymodels
from tests.pipelines.bench import near, pixels
from tests.pipelines.control_loras import build_house
from tests.pipelines.scenes import ORACLES_OWN

pytestmark = ORACLES_OWN

WEIGHT = 0.85


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_house(tmp_path_factory.mktemp("control-loras"))


def unit(folder: Path, name: str = "canny-original.safetensors", **values: Any) -> ControlUnit:
    return ControlUnit(**({"kind": "canny", "image": folder / "depth.png", "ready": True, "model": str(folder / name)} | values))


def request(folder: Path, **values: Any) -> RenderRequest:
    return RenderRequest(**({"prompt": "a red sphere", "model": str(folder / "dev"), "width": 64, "height": 64, "steps": 3} | values))


@pytest.fixture(scope="module")
def renderer(folder: Path) -> Renderer:
    return Renderer.open(str(folder / "dev"), device="cpu")


@pytest.mark.parametrize("true_cfg_scale", [1.0, 2.5])
def test_requests_mixed_in_one_batch(true_cfg_scale: float, folder: Path, renderer: Renderer) -> None:
    """Each row has its own map and its own strength, none too; a request with another Control LoRA is drawn by itself."""
    rows: list[dict[str, Any]] = [{"weight": 1.0}, {"weight": 0.4, "image": folder / "photo.png"}, {"weight": 0.0}]
    some = [request(folder, seed=i, true_cfg_scale=true_cfg_scale, controls=(unit(folder, **row),)) for i, row in enumerate(rows)]
    some.append(request(folder, true_cfg_scale=true_cfg_scale, controls=(unit(folder, "depth-original.safetensors"),)))
    together = renderer.render_many(some)
    assert [pictures[0].record.batch_rows for pictures in together] == [3, 3, 3, 1]
    for one, (mixed,) in zip(some, together, strict=True):
        (alone,) = renderer.render(one)
        assert near(pixels(mixed), pixels(alone))
    (plain,) = renderer.render(request(folder, seed=2, true_cfg_scale=true_cfg_scale))
    assert near(pixels(together[2][0]), pixels(plain))
    assert not near(pixels(together[0][0]), pixels(renderer.render(request(folder, true_cfg_scale=true_cfg_scale))[0]))


def test_several_pictures_and_a_second_pass(folder: Path, renderer: Renderer) -> None:
    asked = request(folder, count=2, controls=(unit(folder, weight=WEIGHT),), hires={"scale": 1.5})
    two = renderer.render(asked)
    one = renderer.render(asked.model_copy(update={"count": 1, "seed": 1}))
    assert two[0].image.size == (96, 96)
    assert near(pixels(two[1]), pixels(one[0]))
    assert not near(pixels(two[1]), pixels(renderer.render(asked.model_copy(update={"count": 1, "seed": 1, "controls": ()}))[0]))


@pytest.mark.parametrize(
    "memory", [Memory(offload="group"), Memory(offload="sequential"), Memory(offload="model"), Memory(storage="float8")]
)
def test_however_the_base_lies_in_memory(memory: Memory, folder: Path, renderer: Renderer) -> None:
    other = Renderer.open(str(folder / "dev"), device="cpu", memory=memory)
    asked = request(folder, controls=(unit(folder, weight=WEIGHT),))
    ((got,), (expected,)), (plain,) = (one.render(asked) for one in (other, renderer)), renderer.render(request(folder))
    if memory.storage == "float8":  # the base is rounded; its Control LoRA is not
        assert np.abs(pixels(got) - pixels(expected)).mean() < np.abs(pixels(plain) - pixels(expected)).mean() / 2
    else:
        assert near(pixels(got), pixels(expected))


def says(renderer: Renderer, asked: RenderRequest) -> str:
    """The one error that the doctor finds, which is what drawing raises."""
    (error,) = [finding.error for finding in renderer.examine(asked) if finding.error is not None]
    with pytest.raises(type(error)) as caught:
        renderer.render(asked)
    assert isinstance(error, UserError)
    assert str(caught.value) == str(error)
    assert "\n" not in str(error)
    return str(error)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mask": "left.png"}, "a Control LoRA changes the base model as a whole and knows no region: leave out its mask"),
        ({"layer_weights": (1.0, 1.0)}, "has no levels to weigh: leave out layer_weights, and give a weight"),
        ({"mode": "guess"}, "mode 'guess' means nothing to it: leave the mode at 'balanced'"),
        ({"mode": "control"}, "mode 'control' means nothing to it"),
    ],
)
def test_what_has_no_meaning_is_refused(values: dict[str, Any], said: str, folder: Path, renderer: Renderer) -> None:
    given = {key: folder / value if key == "mask" else value for key, value in values.items()}
    assert said in says(renderer, request(folder, controls=(unit(folder, **given),)))


def test_two_at_once_are_refused(folder: Path, renderer: Renderer) -> None:
    def two(**windows: Any) -> RenderRequest:
        second = unit(folder, "depth-diffusers.safetensors", kind="depth", **windows.pop("second", {}))
        return request(folder, controls=(unit(folder, **windows), second))

    assert "two Control LoRAs cannot change the base model at once" in says(renderer, two(end=0.7, second={"start": 0.3}))
    renderer.render(two(end=0.5, second={"start": 0.5}))


@pytest.mark.parametrize(
    ("changed", "kind", "said"),
    [
        (
            {"txt_in.lora_A.weight": (4, 32)},
            Mismatch,
            "maps 32 to 32 channels in 'context_embedder', the base model .* 24 to 32: use one made",
        ),
        ({"img_in.lora_A.weight": (4, 320)}, Mismatch, "maps 320 to 32 channels in 'x_embedder', the base model .* 128 to 32"),
        (
            {"double_blocks.9.img_mlp.0.lora_A.weight": (4, 32), "double_blocks.9.img_mlp.0.lora_B.weight": (128, 4)},
            Mismatch,
            "has a layer 'transformer_blocks.9.ff.net.0.proj' that the base model .* has not: use one made for this base",
        ),
        ({"single_blocks.0.norm.query_norm.scale": (8,)}, Mismatch, "has a norm 'single_transformer_blocks.0.attn.norm_q' of width 8 that"),
        (
            {"img_in.lora_B.weight": None},
            BadModel,
            r"is damaged: the tensors of 'img_in' do not fit each other \(down \[4, 128\], bias \[32\]\)",
        ),
        ({"img_in.lora_B.weight": (32, 5)}, BadModel, "is damaged: the tensors of 'img_in'"),
        ({"img_in.diff": (32, 128)}, BadModel, "holds 'img_in.diff', which is neither part of a LoRA nor a norm of FLUX.1's"),
    ],
)
def test_misfits_are_refused(
    changed: dict[str, Any], kind: type[UserError], said: str, folder: Path, renderer: Renderer, tmp_path: Path
) -> None:
    tensors = load_file(folder / "canny-original.safetensors") | {key: shape and torch.zeros(shape) for key, shape in changed.items()}
    save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, tmp_path / "odd.safetensors")
    with pytest.raises(kind, match=said):
        renderer.render(request(folder, controls=(unit(folder, model=str(tmp_path / "odd.safetensors")),)))
    assert re.search(said, says(renderer, request(folder, controls=(unit(folder, model=str(tmp_path / "odd.safetensors")),))))


def test_other_bases_refuse_it(folder: Path, renderer: Renderer, tmp_path: Path) -> None:
    found = says(renderer, request(folder, model=str(folder / "map"), controls=(unit(folder),)))
    assert "further channels of its own already: use FLUX.1-dev itself" in found
    tinymodels.build_base(tmp_path / "sd")
    found = says(renderer, request(folder, model=str(tmp_path / "sd"), controls=(unit(folder),)))
    assert "is a Control LoRA for FLUX.1, the base model" in found
    one = unit(folder, kind="depth")
    (warning,) = renderer.examine(request(folder, width=1024, height=1024, controls=(one,)))
    assert "is for canny going by its name alone" in warning.text


def test_as_a_lora_it_is_refused_with_the_way_to_use_it(folder: Path, renderer: Renderer) -> None:
    file = folder / "canny-diffusers.safetensors"
    with pytest.raises(
        BadModel, match=rf"is a Control LoRA, .*: give it as the model of a control, as in --control canny=edges.png,model={file}"
    ):
        renderer.render(request(folder, prompt=f"<lora:{file}:1>"))


def test_found_as_other_controls_are(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name in Limn's folder, by hub id, and beside the base as its kind's own; listed, hashed, and recorded."""
    from huggingface_hub import constants

    monkeypatch.setenv("LIMN_MODELS", str(tmp_path / "limn"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    file, published = folder / "canny-original.safetensors", tmp_path / "hub" / "models--labs--canny-lora"
    snapshot = published / "snapshots" / ("0" * 40)
    for target in (tmp_path / "limn" / "canny-lora.safetensors", snapshot / "flux1-canny-dev-lora.safetensors"):
        target.parent.mkdir(parents=True)
        shutil.copyfile(file, target)
    (published / "refs").mkdir()
    (published / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder / "dev", tmp_path / "models" / "dev")
    shutil.copyfile(file, tmp_path / "models" / "controlnet-canny.safetensors")
    (listed, of_hub) = [one for one in installed() if one.kind == "control-lora"]
    assert (listed.name, listed.family, listed.source, of_hub.name, of_hub.source) == (
        "canny-lora",
        "flux",
        "folder",
        "labs/canny-lora",
        "hub",
    )
    assert not check(listed)
    assert not check(of_hub)
    renderer = Renderer.open(str(tmp_path / "models" / "dev"), device="cpu")
    own = {"model": renderer.model}
    (expected,) = renderer.render(request(folder, controls=(unit(folder),), **own))
    for name in ("canny-lora", "canny-lora.safetensors", str(snapshot), None):
        (found,) = renderer.render(request(folder, controls=(unit(folder, model=name),), **own))
        assert np.array_equal(pixels(found), pixels(expected))
        recorded = {one.part: one.sha256 for one in found.record.weights}
        assert recorded["control 0"] == hashlib.sha256(file.read_bytes()).hexdigest()
