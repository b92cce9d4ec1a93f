"""Canny edges: white lines, one pixel wide, on black.

Source: Canny, "A computational approach to edge detection", PAMI 1986; ControlNet's annotator (cv2.Canny on the RGB picture, aperture 3,
L1 gradient, where the channel of the strongest gradient counts).
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from core.control import Control, Image, Score, Weights
from core.request import Frozen


class Params(Frozen):
    """Hysteresis thresholds on the 8-bit gradient."""

    low: int = Field(100, ge=0, le=255, description="an edge is followed down to this gradient")
    high: int = Field(200, ge=0, le=255, description="an edge begins at this gradient")

    @model_validator(mode="after")
    def _in_order(self) -> "Params":
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}: give low <= high")
        return self


def extract(image_HWC: Image, params: Params) -> Image:
    """Edges of a picture: RGB uint8 HWC → 0 or 255 in all three channels, same size."""
    edges_HW = cv2.Canny(np.ascontiguousarray(image_HWC), params.low, params.high)
    return np.repeat(edges_HW[..., None], 3, axis=2)


def compare(wanted_HWC: Image, got_HWC: Image, params: Params | None = None) -> Score:
    """F1 of the picture's own edges against the wanted ones, same thresholds, 1 pixel of tolerance."""
    return compare_maps(wanted_HWC, extract(got_HWC, params or Params.model_validate({})))


def compare_maps(wanted_HWC: Image, got_HWC: Image) -> Score:
    """F1 between two edge maps: an edge pixel counts as found if the other map has one among its eight neighbours or at its place."""
    value = edge_f1(wanted_HWC.max(axis=2) > 127, got_HWC.max(axis=2) > 127)
    return Score(value=value, metric="edge F1 within 1 px", raw=value, unit="")


def edge_f1(wanted_HW: NDArray[np.bool_], got_HW: NDArray[np.bool_]) -> float:
    """F1 of two edge masks within 1 pixel (Chebyshev distance): 1 if both are empty, 0 if one is."""
    if not wanted_HW.any() or not got_HW.any():
        return float(not wanted_HW.any() and not got_HW.any())
    precision = float(_thick(wanted_HW)[got_HW].mean())
    recall = float(_thick(got_HW)[wanted_HW].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _thick(edges_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    grown_HW: NDArray[np.uint8] = cv2.dilate(edges_HW.astype(np.uint8), np.ones((3, 3), np.uint8))
    return grown_HW > 0


def looks_finished(image_HWC: Image) -> bool:
    """Whether this is an edge map already: grey, almost all pixels black or white, mostly black."""
    grey = int(np.ptp(image_HWC, axis=2).max()) <= 8
    light = image_HWC[..., 0]
    return grey and float(((light < 32) | (light > 223)).mean()) > 0.98 and 0 < float((light > 223).mean()) < 0.4


CONTROL = Control(
    name="canny",
    params=Params,
    extract=extract,
    compare=compare,
    compare_maps=compare_maps,
    weights={"sd": Weights("lllyasviel/control_v11p_sd15_canny", revision="115a470d547982438f70198e353a921996e2e819")},
    resample="lines",
    looks_finished=looks_finished,
)
