"""Mask: one thing in the picture, white on black, cut out with the help of a box or a point.

By colour it needs no network: GrabCut on a small copy says what is foreground inside the box, watershed finds its border at full size.
Source: Rother, Kolmogorov and Blake, "GrabCut", SIGGRAPH 2004; Meyer, "Color image segmentation", 1992 (watershed); Kirillov et al.,
"Segment anything", arXiv 2304.02643 (with a network).
"""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from controls import estimators
from controls.arrays import as_map
from controls.metrics import shape as compare_maps
from controls.mistakes import is_black_and_white
from core.control import ByExtraction, Control, Image
from core.request import Frozen

SMALL_PX = 96  # side of the copy that GrabCut works on
GRABCUT_STEPS = 2


class Params(Frozen):
    """Where the thing is, as shares of the picture's width and height, and who cuts it out."""

    method: Literal["colour", "network"] = Field("colour", description="GrabCut and watershed, or a Segment Anything network")
    estimator: str = Field("", max_length=300, description=estimators.EXPLAINED_FOLDER.format("Segment Anything"))
    left: float = Field(0.1, ge=0.0, le=1.0, description="the box's left edge")
    top: float = Field(0.1, ge=0.0, le=1.0, description="the box's upper edge")
    right: float = Field(0.9, ge=0.0, le=1.0, description="the box's right edge")
    bottom: float = Field(0.9, ge=0.0, le=1.0, description="the box's lower edge")
    x: float | None = Field(None, ge=0.0, le=1.0, description="a point on the thing, if the box alone is not enough")
    y: float | None = Field(None, ge=0.0, le=1.0, description="the point's height, from the top")

    @model_validator(mode="after")
    def _a_box(self) -> "Params":
        if self.left >= self.right or self.top >= self.bottom:
            raise ValueError(f"box {self.left:g}, {self.top:g} to {self.right:g}, {self.bottom:g}: give left < right and top < bottom")
        if (self.x is None) != (self.y is None):
            raise ValueError("a point needs both x and y")
        return self

    @property
    def box(self) -> tuple[float, float, float, float]:
        return self.left, self.top, self.right, self.bottom

    @property
    def point(self) -> tuple[float, float] | None:
        return None if self.x is None or self.y is None else (self.x, self.y)


def available(params: Params | None = None) -> bool:
    """Whether the mask can be cut out here: by colour always, by a network if one is named or installed."""
    return params is None or params.method == "colour" or estimators.installed("mask", params.estimator)


def extract(image_HWC: Image, params: Params) -> Image:
    """The thing in the box: RGB uint8 HWC → 0 or 255 in all three channels, same size.

    Raises:
        BadRequest: a network is asked for and none is named or installed.
    """
    if params.method == "network":
        return as_map(estimators.need("mask", params.estimator)(image_HWC, params.box, params.point))
    return as_map(_by_colour(np.ascontiguousarray(image_HWC), params))


def _by_colour(image_HWC: Image, params: Params) -> NDArray[np.uint8]:
    height, width = image_HWC.shape[:2]
    shrink = max(1.0, max(height, width) / SMALL_PX)
    small = max(1, round(width / shrink)), max(1, round(height / shrink))
    guess_hw = _seeds(small, params)
    if not (guess_hw == cv2.GC_BGD).any() or min(small) < 3:  # nothing to learn the background from
        guess_HW = cv2.resize(guess_hw, (width, height), interpolation=cv2.INTER_NEAREST)
        return _white(guess_HW != cv2.GC_BGD)
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    small_HWC = cv2.resize(image_HWC, small, interpolation=cv2.INTER_AREA)
    cv2.grabCut(small_HWC, guess_hw, None, *models, GRABCUT_STEPS, cv2.GC_INIT_WITH_MASK)
    inside_hw = (guess_hw & 1).astype(np.uint8)
    return _sharpened(image_HWC, inside_hw)


def _seeds(size: tuple[int, int], params: Params) -> NDArray[np.uint8]:
    """GrabCut's labels before it starts: background outside the box, perhaps foreground inside, surely foreground about the point."""
    width, height = size
    left, right = int(params.left * width), max(int(np.ceil(params.right * width)), int(params.left * width) + 1)
    top, bottom = int(params.top * height), max(int(np.ceil(params.bottom * height)), int(params.top * height) + 1)
    seeds_hw = np.full((height, width), cv2.GC_BGD, np.uint8)
    seeds_hw[top:bottom, left:right] = cv2.GC_PR_FGD
    if params.point is not None:
        place = min(int(params.point[0] * width), width - 1), min(int(params.point[1] * height), height - 1)
        cv2.circle(seeds_hw, place, max(1, min(size) // 32), cv2.GC_FGD, -1)
    return seeds_hw


def _sharpened(image_HWC: Image, inside_hw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A small mask at full size, its border where the picture's own edge is: watershed in a band two small pixels wide."""
    height, width = image_HWC.shape[:2]
    if inside_hw.shape == (height, width) or not inside_hw.any() or inside_hw.all():
        return _white(cv2.resize(inside_hw, (width, height), interpolation=cv2.INTER_NEAREST) > 0)
    cross = np.ones((3, 3), np.uint8)
    sure, never = cv2.erode(inside_hw, cross), cv2.erode(1 - inside_hw, cross)
    markers_HW = cv2.resize(never + 2 * sure, (width, height), interpolation=cv2.INTER_NEAREST).astype(np.int32)
    cv2.watershed(image_HWC, markers_HW)
    return _white(markers_HW == 2)


def _white(mask_HW: NDArray[np.bool_]) -> NDArray[np.uint8]:
    white_HW: NDArray[np.uint8] = mask_HW.view(np.uint8) * np.uint8(255)
    return white_HW


compare = ByExtraction(Params, extract, compare_maps)

CONTROL = Control(
    name="mask",
    params=Params,
    extract=extract,
    compare=compare,
    compare_maps=compare_maps,
    resample="nearest",
    available=available,
    looks_finished=is_black_and_white,
)
