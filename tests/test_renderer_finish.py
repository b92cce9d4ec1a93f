"""What controls promise of the finished pixels: tile's colours, in the whole picture or in a region."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controls.tile import fix_colours
from core.control import Image
from core.images import encode_png
from core.request import ControlUnit, RenderRequest
from renderer import Renderer
from tests import tinymodels


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    base = tinymodels.build_base(folder / "base")
    tinymodels.build_controlnet(folder / "controlnet-tile", base)
    source_HWC = np.zeros((64, 64, 3), np.uint8)
    source_HWC[:, :32], source_HWC[:, 32:] = (90, 140, 60), (200, 80, 40)
    mask_HWC = np.zeros((64, 64, 3), np.uint8)
    mask_HWC[:32] = 255
    for name, image_HWC in (("source", source_HWC), ("mask", mask_HWC)):
        (folder / f"{name}.png").write_bytes(encode_png(image_HWC))
    return folder


def test_the_drawn_picture_takes_its_colours_from_the_map_where_that_is_asked_for(home: Path) -> None:
    renderer = Renderer.open(str(home / "base"), "cpu")

    def drawn(**values: Any) -> tuple[Image, Image, float]:
        unit = ControlUnit(kind="tile", image=home / "source.png", **values)
        (picture,) = renderer.render(RenderRequest(prompt="a box", width=64, height=64, steps=2, controls=(unit,)))
        assert picture.fidelity[0] is not None
        return np.asarray(picture.image), picture.maps[0], picture.fidelity[0].raw

    plain_HWC, map_HWC, plain_db = drawn()
    fixed_HWC, _, fixed_db = drawn(params={"fix_colours": 8})
    np.testing.assert_array_equal(fixed_HWC, fix_colours(plain_HWC, map_HWC, 8.0))
    assert fixed_db > plain_db, "it is the finished picture that is scored"
    region_HWC, *_ = drawn(params={"fix_colours": 8}, mask=home / "mask.png")
    masked_HWC, *_ = drawn(mask=home / "mask.png")
    np.testing.assert_array_equal(region_HWC[32:], masked_HWC[32:])
    assert (region_HWC[:32] != masked_HWC[:32]).any()
    without_HWC, *_ = drawn(weight=0.0)
    np.testing.assert_array_equal(drawn(weight=0.0, params={"fix_colours": 8})[0], without_HWC)
