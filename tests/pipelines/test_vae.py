"""Another autoencoder in the place of the model's own: from a folder, a whole model, a file; recorded, counted, refused in a sentence."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from batch.doctor import Doctor
from core.errors import BadModel, Mismatch
from core.files import sha256_file
from core.request import RenderRequest
from pipelines.engine import Engine, choose_place
from pipelines.images import picture_to_tensor
from renderer import Renderer, examine
from tests import original, tinymodels, tinymodels_sana, tinymodels_sd3, tinymodels_sdxl
from tests.cli.conftest import limn


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, another of the same kind with other numbers, and autoencoders of several kinds."""
    folder = tinymodels.build_pictures(tmp_path_factory.mktemp("vae"))
    tinymodels.build_base(folder / "base")
    tinymodels.build_base(folder / "other", seed=9)
    tinymodels_sdxl.build_base(folder / "sdxl")
    tinymodels_sd3.build_vae().save_pretrained(folder / "wide")
    return folder


def request(house: Path, **values: Any) -> RenderRequest:
    plain = {"prompt": "a cube", "model": str(house / "base"), "width": 64, "height": 64, "steps": 2, "seed": 3}
    return RenderRequest(**(plain | values))


@pytest.fixture(scope="module")
def renderer(house: Path) -> Renderer:
    return Renderer.open(str(house / "base"), "cpu")


def draw(renderer: Renderer, wanted: RenderRequest) -> Any:
    return np.asarray(renderer.render(wanted)[0].image)


def layouts(house: Path, folder: Path) -> dict[str, Path]:
    """The other base's autoencoder in every form that one comes in."""
    vae = house / "other" / "vae"
    said = {"limn.vae": json.dumps({"norm_num_groups": json.loads((vae / "config.json").read_text())["norm_num_groups"]})}
    state = load_file(vae / "diffusion_pytorch_model.safetensors")
    save_file(state, folder / "diffusers.safetensors", said)
    for prefix in ("", "first_stage_model."):
        tensors = {name: tensor.contiguous() for name, tensor in original.vae(vae, prefix).items()}
        save_file(tensors, folder / f"original{len(prefix)}.safetensors", said)
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    for new, before in old.items():
        state = {name.replace(new, before): tensor for name, tensor in state.items()}
    save_file(state, folder / "old.safetensors", said)
    files = {file.stem: file for file in folder.glob("*.safetensors")}
    return {"folder": vae, "model": house / "other", **files}


def test_every_form_draws_the_same(house: Path, renderer: Renderer, tmp_path: Path) -> None:
    """The denoising network is the base's own, the picture is decoded by the other's autoencoder."""
    family = renderer.base(str(house / "base"), str(house / "other"))
    other = renderer.base(str(house / "other"))
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    assert torch.equal(family.decode(latents), other.decode(latents))
    plain = draw(renderer, request(house))
    drawn = {name: draw(renderer, request(house, vae=str(path))) for name, path in layouts(house, tmp_path).items()}
    assert len(drawn) == 6
    assert not np.array_equal(plain, drawn["folder"])
    assert all(np.array_equal(one, drawn["folder"]) for one in drawn.values()), list(drawn)
    assert np.array_equal(plain, draw(renderer, request(house)))
    assert np.array_equal(plain, draw(renderer, request(house, vae=str(house / "base" / "vae"))))


def test_it_is_recorded_with_its_hash(house: Path, renderer: Renderer) -> None:
    vae = house / "other" / "vae"
    plain, other = (renderer.render(request(house, vae=one))[0].record for one in (None, str(vae)))
    weights = {weight.part: weight for weight in other.weights}
    assert weights["vae"].sha256 == sha256_file(vae / "diffusion_pytorch_model.safetensors")
    assert not any(weight.file.startswith("vae/") for weight in other.weights)
    assert other.request.vae == str(vae)
    assert plain.key() != other.key()


def test_a_batch_counts_it(house: Path, tmp_path: Path) -> None:
    doctor = Doctor(str(house / "base"))
    copied = shutil.copytree(house / "other" / "vae", tmp_path / "copy")
    plain, other, again = (doctor.weights(request(house, vae=one)) for one in (None, str(house / "other" / "vae"), str(copied)))
    assert plain != other == again


def test_on_the_command_line(house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("--model", house / "base", "--size", "64x64", "--vae")
    assert limn("render", *command, house / "other", "--steps", 1) == 0
    assert limn("doctor", *command, house / "wide") == 2
    assert "error: vae" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_statistics_of_each_channel(house: Path, tmp_path: Path, name: str) -> None:
    """As diffusers' pipelines for SDXL use them: z = (x − mean)·scale/std, and back."""
    folder = house / {"sd": "base", "sdxl": "sdxl"}[name]
    vae = shutil.copytree(folder / "vae", tmp_path / "vae")
    config = json.loads((vae / "config.json").read_text())
    mean, std = [0.5, -1.0, 2.0, 0.0], [2.0, 0.5, 1.0, 4.0]
    (vae / "config.json").write_text(json.dumps(config | {"latents_mean": mean, "latents_std": std}))
    family: Any = Engine(choose_place("cpu")).base(folder, vae)
    means, deviations = (torch.tensor(values).reshape(1, 4, 1, 1) for values in (mean, std))
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with torch.no_grad():
        own = family.vae.encode(picture_to_tensor(image)[None]).latent_dist.mean
        latents = family.encode_image(image)
        torch.testing.assert_close(latents, (own - means) * config["scaling_factor"] / deviations)
        decoded = family.vae.decode(latents * deviations / config["scaling_factor"] + means).sample
        torch.testing.assert_close(family.decode(latents), decoded)


def test_misfits_are_one_sentence(house: Path, tmp_path: Path) -> None:
    engine = Engine(choose_place("cpu"))

    def said(**values: Any) -> tuple[type | None, str]:
        (found,) = [one for one in examine(request(house, **values), engine) if one.about == "vae"]
        return type(found.error) if found.error else None, found.text

    wide = rf"vae '{house / 'wide'}' makes latents of 16 channels at 1/8, the base model '{house / 'base'}' reads 4 at 1/8"
    assert said(vae=str(house / "wide")) == (Mismatch, f"{wide}: use an autoencoder made for this base")
    tinymodels_sana.build_base(tmp_path / "sana")
    kind, text = said(vae=str(tmp_path / "sana"))
    assert (kind, "is AutoencoderDC" in text, "has an AutoencoderKL: use one of that kind" in text) == (Mismatch, True, True)
    kind, text = said(vae=str(house / "base" / "unet"))
    assert (kind, "is UNet2DConditionModel" in text) == (Mismatch, True)
    kind, text = said(vae="somebody/nothing")
    assert (kind, "is not installed: run 'limn models add somebody/nothing'" in text) == (BadModel, True)
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    kind, text = said(vae=str(tmp_path / "x.safetensors"))
    assert (kind, "holds no autoencoder" in text) == (BadModel, True)
    state = load_file(house / "other" / "vae" / "diffusion_pytorch_model.safetensors")
    state.pop("decoder.conv_out.weight")
    save_file(state, tmp_path / "cut.safetensors")
    kind, text = said(vae=str(tmp_path / "cut.safetensors"))
    assert (kind, "is damaged or of an unknown variant" in text) == (BadModel, True)


def test_another_scale_is_a_doubt(house: Path) -> None:
    (found,) = [one for one in examine(request(house, vae=str(house / "sdxl")), Engine(choose_place("cpu"))) if one.about == "vae"]
    assert found.error is None
    assert "says scaling_factor 0.13025, the base model's own 0.18215" in found.text


def test_a_controlnet_that_uses_its_bases_parts_is_loaded_for_each(tmp_path: Path) -> None:
    """SD3's ControlNets read maps through the base's autoencoder; Stable Diffusion's hold nothing of it."""
    tinymodels_sd3.build_base(tmp_path / "sd3", t5=False)
    net = tinymodels_sd3.build_controlnet(tmp_path / "net")
    vae = tinymodels_sd3.build_vae()
    vae.save_pretrained(tmp_path / "vae")
    engine = Engine(choose_place("cpu"))
    own, other = engine.base(tmp_path / "sd3"), engine.base(tmp_path / "sd3", tmp_path / "vae")
    assert engine.control(own, net).vae is own.vae
    assert engine.control(other, net).vae is other.vae
    assert engine.control(own, net) is engine.control(own, net)
    plain = tinymodels.build_base(tmp_path / "sd")
    shared = tinymodels.build_controlnet(tmp_path / "sd-net", plain)
    nets = [engine.control(engine.base(plain, path), shared) for path in (None, plain / "vae")]
    assert nets[0] is nets[1]
