"""Everything that can be wrong with a model, a ControlNet, a control or a setting: refused in one line, before anything is drawn."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import BadImage, BadModel, BadRequest, Mismatch, UserError
from core.request import ControlUnit, RenderRequest
from pipelines import engine as engines
from renderer import Renderer
from tests import tinymodels


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodels.build_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodels.build_pictures(tmp_path_factory.mktemp("pictures"))


def canny(pictures: Path, **values: Any) -> ControlUnit:
    return ControlUnit(kind="canny", image=pictures / "photo.png", **values)


def broken_copy(models: Path, tmp_path: Path, name: str = "base") -> Path:
    return Path(shutil.copytree(models / name, tmp_path / name))


def refused(expected: type[UserError], words: str, model: str | Path, **values: Any) -> None:
    """One line that says `words`, and nothing but that error."""
    with pytest.raises(expected, match=words) as caught:
        Renderer.open(str(model), device="cpu").render(
            RenderRequest(**({"width": 64, "height": 64, "steps": 4, "model": str(model)} | values))
        )
    assert "\n" not in str(caught.value)


def test_models_that_are_not_there(models: Path, tmp_path: Path) -> None:
    refused(BadModel, r"no model '/nowhere'", "/nowhere")
    refused(BadModel, r"model_index.json' is missing", tmp_path)
    refused(BadModel, r"hub model 'owner/name' cannot be fetched", "owner/name")
    refused(BadModel, r"is UNet2DConditionModel: known", models / "base" / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "model.pkl"])
def test_pickles_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    refused(BadModel, r"is a pickle file, and reading one can run any code: use the model's safetensors version", tmp_path / name)


def test_weights_only_as_pickle_are_refused(models: Path, tmp_path: Path) -> None:
    base = broken_copy(models, tmp_path)
    weights = base / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    refused(BadModel, r"has weights only as diffusion_pytorch_model.bin, a pickle", base)


def test_damaged_models(models: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = broken_copy(models, tmp_path)
    for part, name in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        weights = base / part / f"{name}.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[: len(whole) // 2])
        refused(BadModel, rf"{part}/{name}.safetensors' are damaged or cut short", base)
        weights.write_bytes(b"not safetensors at all")
        refused(BadModel, rf"{part}/{name}.safetensors' are damaged or cut short", base)
        tensors = load_file(models / "base" / part / f"{name}.safetensors")
        first = sorted(tensors)[0]
        save_file({key: value for key, value in tensors.items() if key != first}, weights, metadata={"format": "pt"})
        refused(BadModel, rf"{part}/{name}.safetensors' lack 1 tensors \({first}\)", base)
        cut = {key: value[:1].clone() if key == first else value for key, value in tensors.items()}
        save_file(cut, weights, metadata={"format": "pt"})
        refused(BadModel, rf"{part}/{name}.safetensors' do not fit their config.json", base)
        weights.unlink()
        refused(BadModel, rf"no weights in .*{part}'", base)
        weights.write_bytes(whole)
    (base / "unet" / "config.json").write_text("{")
    refused(BadModel, r"unet/config.json' is damaged \(not JSON\)", base)
    shutil.rmtree(base / "tokenizer")
    refused(BadModel, r"has no 'tokenizer': a Stable Diffusion 1.x or 2.x model needs unet, vae", base)


def test_parts_that_do_not_belong_together(models: Path, tmp_path: Path) -> None:
    base = broken_copy(models, tmp_path)
    shutil.rmtree(base / "text_encoder")
    shutil.copytree(models / "wide" / "text_encoder", base / "text_encoder")
    refused(Mismatch, r"the UNet reads text of width 32, the text encoder writes 48", base)


def test_models_of_other_families(models: Path, tmp_path: Path) -> None:
    base = broken_copy(models, tmp_path)
    index = json.loads((base / "model_index.json").read_text())
    index |= {"_class_name": "AltDiffusionPipeline", "text_encoder": ["alt_diffusion", "RobertaSeriesModelWithTransformation"]}
    (base / "model_index.json").write_text(json.dumps(index))
    refused(BadModel, r"is AltDiffusionPipeline: known families are .*sd", base)


def test_epsilon_on_a_table_that_ends_in_noise(models: Path, tmp_path: Path) -> None:
    base = broken_copy(models, tmp_path)
    config = json.loads((base / "scheduler" / "scheduler_config.json").read_text())
    (base / "scheduler" / "scheduler_config.json").write_text(json.dumps(config | {"rescale_betas_zero_snr": True}))
    refused(Mismatch, r"ends in pure noise, where epsilon says nothing", base)


def test_controlnets_that_do_not_fit(models: Path, pictures: Path, tmp_path: Path) -> None:
    base = models / "base"
    refused(Mismatch, r"cross-attention width 48, .* has width 32", base, controls=(canny(pictures, model=str(models / "wide-net")),))
    refused(BadModel, r"is UNet2DConditionModel, not a ControlNetModel", base, controls=(canny(pictures, model=str(base / "unet")),))
    other = broken_copy(models, tmp_path, "controlnet-canny")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"block_out_channels": [32, 96]}))
    refused(Mismatch, r"block_out_channels \[32, 96\], the base model \[32, 64\]", base, controls=(canny(pictures, model=str(other)),))
    (other / "config.json").write_text(json.dumps(config | {"addition_embed_type": "text_time"}))
    refused(Mismatch, r"is an SDXL ControlNet", base, controls=(canny(pictures, model=str(other)),))
    (tmp_path / "net.pth").write_bytes(b"")
    refused(BadModel, r"is a pickle file", base, controls=(canny(pictures, model=str(tmp_path / "net.pth")),))
    pose = ControlUnit(kind="pose", image=pictures / "depth.png", ready=True)
    refused(UserError, r"pose", base, controls=(pose,))  # no ControlNet beside the model, and nothing can be fetched


def test_controls_that_cannot_be_used(models: Path, pictures: Path, tmp_path: Path) -> None:
    base = models / "base"
    refused(
        BadImage,
        r"control 0 \(canny\): image '.*none.png' is not a file",
        base,
        controls=(ControlUnit(kind="canny", image=tmp_path / "none.png"),),
    )
    refused(BadImage, r"mask '.*none.png' is not a file", base, controls=(canny(pictures, mask=tmp_path / "none.png"),))
    refused(
        BadRequest,
        r"unknown control 'cany': did you mean 'canny'",
        base,
        controls=(ControlUnit(kind="cany", image=pictures / "photo.png"),),
    )
    refused(BadRequest, r"unknown canny setting 'lo'", base, controls=(canny(pictures, params={"lo": 3}),))
    (tmp_path / "no-picture.png").write_text("hello")
    refused(BadImage, r"no-picture.png", base, controls=(ControlUnit(kind="canny", image=tmp_path / "no-picture.png"),))


def test_settings_that_cannot_be_used(models: Path) -> None:
    refused(BadRequest, r"unknown sampler 'eular': did you mean 'euler'\?", models / "base", sampler="eular")
    refused(BadRequest, r"unknown schedule 'carras': did you mean 'karras'\?", models / "base", schedule="carras")
    refused(BadRequest, r"steps = 1000: .* at most 999", models / "base", sampler="dpmpp_2m", steps=1000)
    with pytest.raises(BadRequest, match=r"device 'abacus' is not on this machine"):
        Renderer.open(str(models / "base"), device="abacus")
    with pytest.raises(BadRequest, match=r"unknown dtype 'float23'"):
        Renderer.open(str(models / "base"), device="cpu", dtype="float23")


def test_numbers_that_overflow_are_named(models: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = broken_copy(models, tmp_path)
    for part, stage in (("vae", "not finite after decoding"), ("unet", "not finite after denoising")):
        weights = base / part / "diffusion_pytorch_model.safetensors"
        tensors = load_file(weights)
        last = "decoder.conv_out.bias" if part == "vae" else "conv_out.bias"
        save_file(tensors | {last: torch.full_like(tensors[last], torch.nan)}, weights, metadata={"format": "pt"})
        refused(BadModel, stage, base)


def test_toyland_without_its_files_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engines, "TOYLAND", tmp_path)
    with pytest.raises(BadModel, match=r"embedded model is missing .* restore models/toyland"):
        Renderer.open("toyland", device="cpu")
