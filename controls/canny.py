"""Canny edges: white lines, one pixel wide, on black.

Source: Canny, "A computational approach to edge detection", PAMI 1986; ControlNet's annotator (cv2.Canny on the RGB picture, aperture 3,
L1 gradient, where the channel of the strongest gradient counts).
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from controls.arrays import as_map, brightest
from controls.metrics import edges as compare_maps
from controls.mistakes import lines_mistake, looks_like_lines
from core.control import ByExtraction, Control, Image, Weights
from core.request import Frozen


class Params(Frozen):
    """Hysteresis thresholds on the 8-bit gradient, and how many resolutions an edge has to be seen at."""

    low: int = Field(100, ge=0, le=255, description="an edge is followed down to this gradient")
    high: int = Field(200, ge=0, le=255, description="an edge begins at this gradient")
    automatic: bool = Field(False, description="both thresholds from the picture: high is Otsu's of its gradients, low is half of that")
    scales: int = Field(1, ge=1, le=4, description="an edge counts if it is also seen at this many resolutions, each half the one before")

    @model_validator(mode="after")
    def _in_order(self) -> "Params":
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}: give low <= high")
        return self


def extract(image_HWC: Image, params: Params) -> Image:
    """Edges of a picture: RGB uint8 HWC → 0 or 255 in all three channels, same size."""
    image_HWC = np.ascontiguousarray(image_HWC)
    edges_HW = _edges(image_HWC, params)
    height, width = edges_HW.shape
    coarse_HWC = image_HWC
    for _ in range(params.scales - 1):
        if min(coarse_HWC.shape[:2]) < 16:
            break  # nothing is left to see
        coarse_HWC = cv2.pyrDown(coarse_HWC)
        seen_HW = cv2.dilate(_edges(coarse_HWC, params), np.ones((3, 3), np.uint8))
        edges_HW &= cv2.resize(seen_HW, (width, height), interpolation=cv2.INTER_NEAREST)
    return as_map(edges_HW)


def _edges(image_HWC: Image, params: Params) -> NDArray[np.uint8]:
    low, high = thresholds(image_HWC) if params.automatic else (params.low, params.high)
    edges_HW: NDArray[np.uint8] = cv2.Canny(image_HWC, low, high)
    return edges_HW


def thresholds(image_HWC: Image) -> tuple[int, int]:
    """Thresholds that suit a picture: `high` parts its gradients (L1, strongest channel, as Canny's) by Otsu's method, `low` is half of it.

    Source: Fang, Yue and Yu, "The study on an application of Otsu method in Canny operator", 2009, on gradients in place of grey levels.
    """
    across, down = (np.abs(cv2.Sobel(image_HWC, cv2.CV_16S, *axes)) for axes in ((1, 0), (0, 1)))
    gradient_HW = brightest((across + down).clip(0, 255).astype(np.uint8))
    high, _ = cv2.threshold(gradient_HW, 0, 255, cv2.THRESH_OTSU)
    return max(1, int(high)) // 2, max(1, int(high))


compare = ByExtraction(Params, extract, compare_maps)

CONTROL = Control(
    name="canny",
    params=Params,
    extract=extract,
    compare=compare,
    compare_maps=compare_maps,
    weights={
        "sd": Weights("lllyasviel/control_v11p_sd15_canny", revision="115a470d547982438f70198e353a921996e2e819"),
        "sdxl": Weights("diffusers/controlnet-canny-sdxl-1.0"),
        "sd3": Weights("InstantX/SD3-Controlnet-Canny"),
        "flux": Weights("InstantX/FLUX.1-dev-Controlnet-Canny"),
    },
    resample="lines",
    looks_finished=looks_like_lines,
    mistake=lines_mistake,
)
