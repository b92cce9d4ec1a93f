"""Tile: the picture at a lower resolution, to which the ControlNet adds detail; for enlarging and for variations.

Source: ControlNet 1.1's annotators "tile_resample" (shrunk by a factor) and "tile_colorfix" (the picture's low frequencies kept
afterwards).
"""

import cv2
import numpy as np
from pydantic import Field

from controls.arrays import blurred
from controls.metrics import likeness as compare_maps
from core.control import ByExtraction, Control, Image, Weights
from core.request import Frozen


class Params(Frozen):
    """How much detail goes, and whether the drawn picture keeps the colours."""

    shrink: float = Field(1.0, ge=1.0, le=8.0, description="factor by which the picture is made smaller, and enlarged again")
    fix_colours: float = Field(
        0.0, ge=0.0, le=64.0, description="the drawn picture takes its blur of so many pixels from the map, 8 for colours; 0: it does not"
    )


def extract(image_HWC: Image, params: Params) -> Image:
    """The picture with the detail of a smaller one: RGB uint8 HWC in and out."""
    height, width = image_HWC.shape[:2]
    small = max(1, round(width / params.shrink)), max(1, round(height / params.shrink))
    if small == (width, height):
        return image_HWC.copy()
    small_HWC = cv2.resize(np.ascontiguousarray(image_HWC), small, interpolation=cv2.INTER_AREA)
    large_HWC: Image = cv2.resize(small_HWC, (width, height), interpolation=cv2.INTER_CUBIC)
    return large_HWC


def fix_colours(picture_HWC: Image, source_HWC: Image, sigma_px: float = 8.0) -> Image:
    """The drawn picture with the colours of the one it was made from: its own detail on the source's low frequencies."""
    soft_HWC, wanted_HWC = (blurred(image_HWC.astype(np.float32), sigma_px) for image_HWC in (picture_HWC, source_HWC))
    fixed: Image = np.rint(picture_HWC - soft_HWC + wanted_HWC).clip(0, 255).astype(np.uint8)
    return fixed


def finish(picture_HWC: Image, map_HWC: Image, params: Params) -> Image:
    """The drawn picture with the map's colours, where that is asked for."""
    return fix_colours(picture_HWC, map_HWC, params.fix_colours) if params.fix_colours else picture_HWC


compare = ByExtraction(Params, extract, compare_maps)

CONTROL = Control(
    name="tile",
    params=Params,
    extract=extract,
    compare=compare,
    compare_maps=compare_maps,
    weights={
        "sd": Weights("lllyasviel/control_v11f1e_sd15_tile"),
        "sdxl": Weights("xinsir/controlnet-tile-sdxl-1.0"),
        "sd3": Weights("InstantX/SD3-Controlnet-Tile"),
    },
    finish=finish,
)
