"""Recolour: the picture in grey, to which the ControlNet gives new colours.

Source: ControlNet's annotators "recolor_luminance" (L of Lab) and "recolor_intensity" (V of HSV, the brightest channel), with a gamma.
"""

from typing import Literal

import cv2
import numpy as np
from pydantic import Field

from controls.arrays import as_map, brightest
from controls.metrics import likeness as compare_maps
from core.control import ByExtraction, Control, Image, Weights
from core.request import Frozen


class Params(Frozen):
    """What counts as brightness."""

    channel: Literal["luminance", "intensity"] = Field("luminance", description="as the eye sees it, or the brightest channel")
    gamma: float = Field(1.0, ge=0.1, le=2.0, description="brightness is raised to this power; above 1 darkens")


def extract(image_HWC: Image, params: Params) -> Image:
    """The picture's brightness: RGB uint8 HWC → grey in all three channels, same size."""
    if params.channel == "luminance":
        level_HW = cv2.cvtColor(np.ascontiguousarray(image_HWC), cv2.COLOR_RGB2LAB)[..., 0]
    else:
        level_HW = brightest(image_HWC)
    curve = np.rint(255 * (np.arange(256) / 255) ** params.gamma).astype(np.uint8)
    return as_map(curve[level_HW])


compare = ByExtraction(Params, extract, compare_maps)

CONTROL = Control(
    name="recolour",
    params=Params,
    extract=extract,
    compare=compare,
    compare_maps=compare_maps,
    weights={"sd": Weights("latentcat/control_v1p_sd15_brightness")},
)
