"""Where models compute, and in which numbers."""

from pathlib import Path

import pytest
import torch

from core.errors import BadRequest
from core.request import RenderRequest
from pipelines.checkpoint import open_checkpoint
from pipelines.engine import Engine, choose_place, families, place_of
from pipelines.outline import outline_of
from pipelines.place import Place
from renderer import Renderer
from tests import tinymodels_flux, tinymodels_sd3

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
