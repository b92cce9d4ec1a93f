"""Where models compute, and in which numbers."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from core.errors import BadRequest
from core.files import sha256_file
from core.request import ControlUnit, RenderRequest
from pipelines.checkpoint import open_checkpoint
from pipelines.engine import Engine, choose_place, families, place_of
from pipelines.outline import outline_of
from pipelines.place import Place
from renderer import Renderer
from tests import tinymodels, tinymodels_flux, tinymodels_sd3

pytestmark = pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning")
BY_DEFAULT = Place(torch.device("cpu"), torch.float16, by_default=True)  # as `choose_place` says on CUDA where nobody asks for a dtype


def test_flows_overflow_in_float16_and_take_bfloat16() -> None:
    halves = {name: place_of(family, BY_DEFAULT).dtype for name, family in families().items()}
    assert {name for name, dtype in halves.items() if dtype == torch.bfloat16} == {"sd3", "flux", "sana", "qwenimage", "zimage"}
    assert halves["sd"] == halves["sdxl"] == torch.float16


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_asked_for_stays(dtype: str) -> None:
    asked = choose_place("cpu", dtype)
    assert all(place_of(family, asked) == asked for family in families().values())
    assert choose_place("cpu").dtype == torch.float32


def test_loaded_and_outlined_in_the_familys_numbers(base: Path, tmp_path: Path) -> None:
    folder = tinymodels_sd3.build_base(tmp_path / "sd3", t5=False)
    assert outline_of(open_checkpoint(folder), BY_DEFAULT).transformer.dtype == torch.bfloat16  # type: ignore[attr-defined]
    engine = Engine(BY_DEFAULT)
    loaded = [engine.base(folder).networks()["transformer"], engine.base(base).networks()["unet"]]
    assert [next(network.parameters()).dtype for network in loaded] == [torch.bfloat16, torch.float16]
    assert [engine.base(folder).place.dtype, engine.base(base).place.dtype] == [torch.bfloat16, torch.float16]


def test_bfloat16_draws_and_is_recorded(tmp_path: Path) -> None:
    tinymodels_flux.build_base(tmp_path / "flux")
    renderer = Renderer.open(str(tmp_path / "flux"), "cpu", "bfloat16")
    picture = renderer.render(RenderRequest(prompt="a cube", width=64, height=64, steps=2))[0]
    assert picture.record.dtype == "bfloat16"
    assert picture.image.size == (64, 64)


@pytest.mark.parametrize(("device", "dtype", "says"), [("tpu", None, "device 'tpu' is not on this"), (None, "float61", "mean 'float16'")])
def test_places_that_are_not(device: str | None, dtype: str | None, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        choose_place(device, dtype)


def test_a_model_whose_files_have_changed_is_loaded_anew(base: Path, tmp_path: Path) -> None:
    """A training that is resumed writes over the ControlNet that was drawn with before."""
    home = Path(shutil.copytree(base, tmp_path / "base"))
    net = tinymodels.build_controlnet(tmp_path / "controlnet-canny", home, seed=1)
    tinymodels.build_pictures(tmp_path)
    unit = ControlUnit(kind="canny", image=tmp_path / "depth.png", ready=True)
    request = RenderRequest(prompt="a cube", width=64, height=64, steps=2, controls=(unit,))
    renderer = Renderer.open(str(home), "cpu")

    def drawn(one: Renderer) -> tuple[list[str], bytes]:
        picture = one.render(request.model_copy(update={"model": str(home)}))[0]
        return [weight.sha256 for weight in picture.record.weights], np.asarray(picture.image).tobytes()

    first, family, control = drawn(renderer), renderer.base(str(home)), renderer.engine.control(renderer.base(str(home)), net)
    assert drawn(renderer) == first
    assert (renderer.base(str(home)), renderer.engine.control(family, net)) == (family, control)  # loaded once
    shutil.rmtree(net)
    tinymodels.build_controlnet(net, home, seed=9)
    second = drawn(renderer)
    assert second == drawn(Renderer.open(str(home), "cpu")) != first
    assert second[0][-1] == sha256_file(net / "diffusion_pytorch_model.safetensors")
    assert renderer.base(str(home)) is family  # whose files are the same
    shutil.rmtree(home)
    tinymodels.build_base(home, seed=4)
    assert drawn(renderer) == drawn(Renderer.open(str(home), "cpu")) != second
