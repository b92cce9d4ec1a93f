"""Single files as other programs publish them: XLabs' ControlNets, matrices in scaled 8-bit floats, EDM's markers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from core.errors import BadModel
from core.request import ControlUnit, RenderRequest
from pipelines.checkpoint import open_checkpoint
from pipelines.place import Place
from renderer import Renderer
from tests import original, tinymodels, tinymodels_flux

pytestmark = pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning")
CPU = Place(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodels_flux.build_base(tmp_path_factory.mktemp("variants") / "flux")


def drawn(model: Path, **values: Any) -> Any:
    request = RenderRequest(prompt="a red cube", width=64, height=64, steps=2, seed=3, guidance_scale=3.5, **values)
    return np.asarray(Renderer.open(str(model), "cpu").render(request)[0].image).astype(int)


def test_xlabs_names(flux: Path, tmp_path: Path) -> None:
    """The file steers as the folder it was made from, tensor by tensor."""
    from diffusers import FluxControlNetModel

    net = tinymodels_flux.build_controlnet(
        tmp_path / "net", num_layers=2, num_single_layers=0, conditioning_embedding_channels=16, patch_size=2
    )
    file = original.write(tmp_path / "xlabs.safetensors", net, parts={"": original.xlabs})
    found = open_checkpoint(file)
    assert found.classes == {"": "FluxControlNetModel"}
    states = [open_checkpoint(path).network(FluxControlNetModel, "", CPU).state_dict() for path in (net, file)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    image = tinymodels.build_pictures(tmp_path) / "depth.png"
    units = [ControlUnit(kind="depth", image=image, ready=True, model=str(path)) for path in (net, file)]
    pictures = [drawn(flux, controls=(unit,)) for unit in units]
    assert np.array_equal(*pictures)
    assert not np.array_equal(pictures[0], drawn(flux))


def eight_bit_file(folder: Path, file: Path, ending: str) -> Path:
    tensors = original.eight_bits(original.flux(folder / "transformer", ""), ending)
    said = {"limn.transformer": json.dumps(json.loads((folder / "transformer" / "config.json").read_text()))}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, said)
    if not file.with_suffix("").exists():
        file.with_suffix("").symlink_to(folder)
    return file


@pytest.mark.parametrize("ending", ["scale_weight", "weight_scale"])
def test_scaled_eight_bits_are_the_matrices_they_stand_for(flux: Path, tmp_path: Path, ending: str) -> None:
    """e4m3 has three bits of mantissa, so a weight is at most 1/16 of itself off, and scales keep all of them in range."""
    from diffusers import FluxTransformer2DModel

    file = eight_bit_file(flux, tmp_path / "fp8.safetensors", ending)
    states = [open_checkpoint(path).network(FluxTransformer2DModel, "transformer", CPU).state_dict() for path in (flux, file)]
    assert states[0].keys() == states[1].keys()
    for name, wanted in states[0].items():
        smallest = float(wanted.abs().max()) / 448 * 2**-6  # below it e4m3 has fewer bits still
        torch.testing.assert_close(states[1][name], wanted, rtol=1 / 15, atol=smallest)
    assert np.abs(drawn(file) - drawn(flux)).mean() < 12  # of 255


def test_packings_of_other_programs_are_named(flux: Path, tmp_path: Path) -> None:
    def refused(match: str, **tensors: torch.Tensor) -> None:
        save_file(original.flux(flux / "transformer", "") | {name.replace("__", "."): one for name, one in tensors.items()}, file)
        with pytest.raises(BadModel, match=match):
            open_checkpoint(file)

    file, name = tmp_path / "packed.safetensors", "double_blocks__0__img_attn__qkv__weight"
    refused("was packed by bitsandbytes .*: use the model in 16 bits, with --quantise nf4", **{f"{name}__absmax": torch.zeros(1)})
    refused("was packed by SVDQuant or GPTQ", double_blocks__0__img_attn__qkv__qweight=torch.zeros(1))
    refused("scales a matrix that is F32, where 8-bit floats are known", double_blocks__0__img_attn__qkv__weight_scale=torch.ones(1))
