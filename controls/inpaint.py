"""Inpaint: the picture with a hole that is to be filled; the hole is black, and black is nothing but hole.

The published ControlNet reads −1 where the hole is and the picture elsewhere, which the pipeline sees to. A margin that 'fill' leaves
around a picture is black too, and so is painted: outpainting. Source: ControlNet 1.1, control_v11p_sd15_inpaint (its model card's
make_inpaint_condition).
"""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from controls.arrays import brightest, darkest
from controls.metrics import likeness
from core.control import Control, Image, Score, Weights
from core.request import Frozen

DARKEST = 1  # what a black pixel of the picture becomes, so that it is not taken for a hole


class Params(Frozen):
    """How the hole is marked in the picture."""

    marked: Literal["white", "black", "magenta", "green"] = Field(
        "white", description="colour that was painted over what is to be drawn anew; transparency counts as white"
    )
    grow: int = Field(4, ge=0, le=64, description="pixels by which the hole is made larger, to take in the mark's soft border")


def extract(image_HWC: Image, params: Params) -> Image:
    """The picture, black where it is marked and nowhere else: RGB uint8 HWC in and out."""
    hole_HW = _marked(image_HWC, params.marked)
    if params.grow:
        hole_HW = cv2.dilate(hole_HW, np.ones((2 * params.grow + 1,) * 2, np.uint8))
    map_HWC = np.maximum(image_HWC, np.uint8(DARKEST))
    map_HWC[hole_HW > 0] = 0
    return map_HWC


def _marked(image_HWC: Image, colour: str) -> NDArray[np.uint8]:
    """1 where a picture has one of the four colours, within what JPEG does to it."""
    high, low = darkest, brightest
    red, green, blue = (image_HWC[..., channel] for channel in range(3))
    match colour:
        case "white":
            mask_HW = high(image_HWC) >= 250
        case "black":
            mask_HW = low(image_HWC) <= 5
        case "magenta":
            mask_HW = (red >= 240) & (blue >= 240) & (green <= 32)
        case _:
            mask_HW = (green >= 240) & (red <= 32) & (blue <= 32)
    return mask_HW.view(np.uint8)


def hole(map_HWC: Image) -> NDArray[np.bool_]:
    """Where a map asks for something new, (H, W)."""
    hole_HW: NDArray[np.bool_] = brightest(map_HWC) == 0
    return hole_HW


def compare(wanted_HWC: Image, got_HWC: Image, params: Params | None = None) -> Score:
    """PSNR outside the hole, where the picture should have stayed as it was."""
    return compare_maps(wanted_HWC, np.maximum(got_HWC, np.uint8(DARKEST)))


def compare_maps(wanted_HWC: Image, got_HWC: Image) -> Score:
    """PSNR outside the wanted map's hole."""
    return likeness(wanted_HWC, got_HWC, ~hole(wanted_HWC))


CONTROL = Control(
    name="inpaint",
    params=Params,
    extract=extract,
    compare=compare,
    compare_maps=compare_maps,
    weights={"sd": Weights("lllyasviel/control_v11p_sd15_inpaint")},
    resample="nearest",
)
