"""Scribbles: broad white strokes on black where a hand would draw, by the extended difference of Gaussians.

Source: Winnemöller et al., "XDoG: an extended difference-of-Gaussians compendium", Computers & Graphics 2012; ControlNet's annotator
"scribble_xdog" (σ = 0.5 and 5 on 0 to 255, the darkest channel, thresholded at 32).
"""

import numpy as np
from pydantic import Field

from controls.arrays import as_map, blurred, darkest
from controls.metrics import edges as compare_maps
from controls.mistakes import lines_mistake, looks_like_lines
from core.control import ByExtraction, Control, Image, Weights
from core.request import Frozen

FINE_PX, BROAD_PX = 0.5, 5.0  # standard deviations of the two Gaussians


class Params(Frozen):
    """How dark a stroke has to be against its surroundings."""

    threshold: int = Field(32, ge=1, le=64, description="twice the difference, in grey levels, that makes a stroke; higher draws fewer")


def extract(image_HWC: Image, params: Params) -> Image:
    """Strokes of a picture: RGB uint8 HWC → 0 or 255 in all three channels, same size."""
    difference_HWC = blurred(image_HWC, BROAD_PX).astype(np.int16) - blurred(image_HWC, FINE_PX)
    strokes_HW = 2 * darkest(difference_HWC.clip(0, 255).astype(np.uint8)).astype(np.int16) > params.threshold
    return as_map(strokes_HW.view(np.uint8) * np.uint8(255))


compare = ByExtraction(Params, extract, compare_maps)

CONTROL = Control(
    name="scribble",
    params=Params,
    extract=extract,
    compare=compare,
    compare_maps=compare_maps,
    weights={"sd": Weights("lllyasviel/control_v11p_sd15_scribble"), "sdxl": Weights("xinsir/controlnet-scribble-sdxl-1.0")},
    resample="lines",
    looks_finished=looks_like_lines,
    mistake=lines_mistake,
)
