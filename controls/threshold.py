"""Threshold: white where a picture is bright, black elsewhere; for white drawings on dark ground and silhouettes.

Source: ControlNet's annotator "threshold" (every channel above 127); Otsu, "A threshold selection method from gray-level histograms", 1979.
"""

import cv2
import numpy as np
from pydantic import Field

from controls.arrays import as_map, darkest, luminance
from controls.metrics import shape as compare_maps
from controls.mistakes import is_black_and_white
from core.control import ByExtraction, Control, Image, Weights
from core.request import Frozen


class Params(Frozen):
    """Where bright begins."""

    level: int = Field(127, ge=0, le=255, description="a pixel is white if all its channels are above this")
    automatic: bool = Field(False, description="the level from the picture's luminance, by Otsu's method")


def extract(image_HWC: Image, params: Params) -> Image:
    """Bright parts of a picture: RGB uint8 HWC → 0 or 255 in all three channels, same size."""
    if params.automatic:
        return as_map(cv2.threshold(luminance(image_HWC), 0, 255, cv2.THRESH_OTSU)[1])
    return as_map((darkest(image_HWC) > params.level).view(np.uint8) * np.uint8(255))


compare = ByExtraction(Params, extract, compare_maps)

CONTROL = Control(
    name="threshold",
    params=Params,
    extract=extract,
    compare=compare,
    compare_maps=compare_maps,
    weights={"sd": Weights("lllyasviel/control_v11p_sd15_scribble")},
    resample="nearest",
    looks_finished=is_black_and_white,
)
