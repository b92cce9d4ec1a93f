"""Line art: what is darker than its surroundings, as soft white lines on black; made for drawings and clean pictures.

Source: ControlNet 1.1's annotator "lineart_standard": the smallest channel of (blurred − picture), scaled by the median of what exceeds a
threshold.
"""

import numpy as np
from pydantic import Field

from controls.arrays import as_map, blurred, darkest
from controls.metrics import soft_lines as compare_maps
from controls.mistakes import looks_like_soft_lines, soft_mistake
from core.control import ByExtraction, Control, Image, Weights
from core.request import Frozen

MIDDLE = 127  # grey level that the median line is given
LEAST_MEDIAN = 16.0  # fainter lines than this are not made brighter


class Params(Frozen):
    """How far the surroundings reach, and which lines set the brightness."""

    sigma: float = Field(6.0, ge=0.5, le=20.0, description="standard deviation, in pixels, of the surroundings a line is darker than")
    threshold: int = Field(8, ge=0, le=255, description="only differences above this, in grey levels, set the lines' brightness")


def extract(image_HWC: Image, params: Params) -> Image:
    """Line art of a picture: RGB uint8 HWC → grey lines on black in all three channels, same size."""
    light_HWC = image_HWC.astype(np.float32)
    depth_HW = np.maximum(darkest(blurred(light_HWC, params.sigma) - light_HWC), 0)
    lines = depth_HW[depth_HW > params.threshold]
    median = max(LEAST_MEDIAN, float(np.median(lines))) if lines.size else LEAST_MEDIAN
    return as_map(np.floor(depth_HW * np.float32(MIDDLE / median)))


compare = ByExtraction(Params, extract, compare_maps)

CONTROL = Control(
    name="lineart",
    params=Params,
    extract=extract,
    compare=compare,
    compare_maps=compare_maps,
    weights={"sd": Weights("lllyasviel/control_v11p_sd15_lineart")},
    marks=True,
    looks_finished=looks_like_soft_lines,
    mistake=soft_mistake,
)
