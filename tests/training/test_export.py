"""What is written is what was trained: under diffusers' names, under the original ones, and in the picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from diffusers import ControlNetModel
from safetensors.torch import load_file, save_file

from core.errors import BadModel
from core.request import ControlUnit, RenderRequest
from pipelines.engine import Engine, open_checkpoint
from renderer import Renderer
from tests import tinymodels
from tests.training.test_families import BASES, PLACE, config, speaking
from training.export import _compare, write_folder, write_single_file
from training.run import build_task
from training.steering import steering


@pytest.fixture(scope="module", params=BASES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    """A family, its base, and a ControlNet for it that speaks."""
    home = tmp_path_factory.mktemp("export")
    base = BASES[request.param](home / "base")
    return request.param, home, speaking(steering(Engine(PLACE).base(base), (4, 4, 8, 8)).new())


def test_the_single_file_holds_the_network_under_the_names_that_others_read(made: tuple[str, Path, Any]) -> None:
    family, home, net = made
    path = home / "net.safetensors"
    write_single_file(path, net)
    names = set(load_file(path))
    first = {
        "sd": "control_model.zero_convs.0.0.weight",
        "sdxl": "controlnet_cond_embedding.conv_in.weight",  # what ComfyUI and A1111 know SDXL's by
        "sd3": "pos_embed_input.proj.weight",
        "flux": "controlnet_x_embedder.weight",
    }[family]
    assert first in names
    assert family != "sd" or all(name.startswith("control_model.") for name in names)
    read = open_checkpoint(path).network(type(net), "", PLACE)
    assert read.state_dict().keys() == net.state_dict().keys()
    for name, tensor in net.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name


def drawn(renderer: Renderer, base: Path, home: Path, model: str | None) -> Any:
    """A picture in two steps, under a ControlNet or without one."""
    units = () if model is None else (ControlUnit(kind="depth", image=home / "depth.png", ready=True, model=model),)
    request = RenderRequest(prompt="a red sphere", model=str(base), width=64, height=64, steps=2, controls=units)
    return np.asarray(renderer.render(request)[0].image)


@pytest.mark.parametrize("family", BASES)
def test_the_single_file_that_a_run_writes_draws_what_its_folder_draws(family: str, tmp_path: Path) -> None:
    """SD3's says which latents and which text it was taught with, which its shapes do not tell."""
    given = config(BASES[family](tmp_path / "base"), tmp_path)
    task = build_task(given, PartialState(cpu=True))
    speaking(task.net)
    tinymodels.build_pictures(tmp_path)
    task.export(tmp_path / "net", {"controlnet": task.net.state_dict()})
    file = next((tmp_path / "net").glob("controlnet-*"))
    read = open_checkpoint(file).network(type(task.net), "", PLACE)
    for name, tensor in task.net.state_dict().items():
        torch.testing.assert_close(read.state_dict()[name], tensor)
    renderer = Renderer(Engine(PLACE), given.base)
    folder, single = (
        drawn(renderer, Path(given.base), tmp_path, str(path)) for path in (tmp_path / "net", next((tmp_path / "net").glob("controlnet-*")))
    )
    assert np.abs(folder.astype(int) - single).max() <= (family == "sd3")  # its bias is rounded once more: one level of 255


def test_conditions_in_a_folder_of_a_folder_do_not_end_the_run_with_an_error(tmp_path: Path) -> None:
    given = config(tinymodels.build_base(tmp_path / "base"), tmp_path)
    (given.data.folder / "maps").mkdir()
    (given.data.folder / "hint").rename(given.data.folder / "maps" / "hint")
    task = build_task(given.model_copy(update={"data": given.data.model_copy(update={"condition": "maps/hint"})}), PartialState(cpu=True))
    (tmp_path / "net").mkdir()
    task.export(tmp_path / "net", {"controlnet": task.net.state_dict()})
    assert (tmp_path / "net" / "controlnet-maps-hint.safetensors").is_file()


def test_the_single_file_of_sd3_hears_what_comfyui_feeds(tmp_path: Path) -> None:
    """Latents that are scaled, and not shifted."""
    given = config(BASES["sd3"](tmp_path / "base"), tmp_path)
    task = build_task(given, PartialState(cpu=True))
    speaking(task.net)
    task.export(tmp_path / "net", {"controlnet": task.net.state_dict()})
    comfy = type(task.net).from_config(task.net.config)
    comfy.load_state_dict(load_file(next((tmp_path / "net").glob("controlnet-*"))))
    vae = task.base.networks()["vae"]
    moments = torch.randn(1, int(vae.config.latent_channels), 8, 8)
    ours = (moments - vae.config.shift_factor) * vae.config.scaling_factor
    theirs = moments * vae.config.scaling_factor
    assert float((ours - theirs).abs().max()) > 0.01
    with torch.no_grad():
        wanted, found, wrong = (net.pos_embed_input(latents) for net, latents in ((task.net, ours), (comfy, theirs), (task.net, theirs)))
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(wrong, wanted, atol=1e-3)


@pytest.mark.parametrize("family", ["sd", "sdxl"])  # diffusers reads no single files of SD3's and FLUX's ControlNets
def test_what_diffusers_reads_from_the_single_file_draws_the_same_picture(family: str, tmp_path: Path) -> None:
    base = BASES[family](tmp_path / "base")
    net = speaking(steering(Engine(PLACE).base(base), (4, 4, 8, 8)).new()).eval()
    write_folder(tmp_path / "net", net)
    write_single_file(tmp_path / "net.safetensors", net)
    # the library reads SD 1.5's four blocks of two layers by default: the config says what these are
    read = ControlNetModel.from_single_file(str(tmp_path / "net.safetensors"), config=str(tmp_path / "net"), local_files_only=True)
    for name, tensor in net.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name
    read.save_pretrained(tmp_path / "read")
    tinymodels.build_pictures(tmp_path)
    renderer = Renderer(Engine(PLACE), str(base))
    folder, single, theirs, plain = (
        drawn(renderer, base, tmp_path, str(tmp_path / model) if model else None) for model in ("net", "net.safetensors", "read", None)
    )
    assert np.array_equal(single, folder)
    assert np.array_equal(theirs, folder)
    assert not np.array_equal(plain, folder)


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_precisions(tmp_path: Path, precision: Any, dtype: torch.dtype) -> None:
    base = tinymodels.build_base(tmp_path / "base")
    net = steering(Engine(PLACE).base(base), (4, 4, 8, 8)).new()
    write_folder(tmp_path / "net", net, precision)
    stored = load_file(tmp_path / "net" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}


def test_what_was_written_wrongly_is_noticed(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(3), "b": torch.zeros(2)}
    save_file(tensors, tmp_path / "x.safetensors")
    _compare(tensors, load_file(tmp_path / "x.safetensors"), tmp_path)
    for wrong in ({"a": torch.ones(3)}, {"a": torch.ones(3), "b": torch.tensor([0.0, 1e-7])}):
        with pytest.raises(BadModel, match="1 tensors, the first is b"):
            _compare(tensors, wrong, tmp_path)
