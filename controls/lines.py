"""Straight line segments: white lines, one pixel wide, on black, for rooms and buildings.

Stands in for M-LSD, on whose maps the published ControlNet was trained. Source: Grompone von Gioi et al., "LSD: a fast line segment
detector with a false detection control", TPAMI 2010; Gu et al., "Towards light-weight and real-time line segment detection", arXiv
2106.00186.
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from controls.arrays import as_map, luminance
from controls.metrics import edges as compare_maps
from controls.mistakes import lines_mistake, looks_like_lines
from core.control import ByExtraction, Control, Image, Weights
from core.request import Frozen

LEAST_SIDE_PX = 8  # in a smaller picture the detector has nothing to look at


class Params(Frozen):
    """Which segments are drawn."""

    length: float = Field(0.04, ge=0.0, le=1.0, description="shortest segment, as a share of the picture's shorter side")
    scale: float = Field(0.8, ge=0.1, le=1.0, description="size at which segments are looked for; smaller overlooks texture")


def extract(image_HWC: Image, params: Params) -> Image:
    """Line segments of a picture: RGB uint8 HWC → 0 or 255 in all three channels, same size."""
    height, width = image_HWC.shape[:2]
    map_HW = np.zeros((height, width), np.uint8)
    for x0, y0, x1, y1 in segments(image_HWC, params).round().astype(int).tolist():
        cv2.line(map_HW, (x0, y0), (x1, y1), 255)
    return as_map(map_HW)


def segments(image_HWC: Image, params: Params) -> NDArray[np.float32]:
    """The segments' ends as (N, 4): x0, y0, x1, y1, where (0, 0) is the centre of the first pixel."""
    if min(image_HWC.shape[:2]) < LEAST_SIDE_PX:
        return np.empty((0, 4), np.float32)
    found = cv2.createLineSegmentDetector(scale=params.scale).detect(luminance(image_HWC))[0]
    if found is None:
        return np.empty((0, 4), np.float32)
    ends_N4: NDArray[np.float32] = found.reshape(-1, 4)
    lengths = np.hypot(ends_N4[:, 2] - ends_N4[:, 0], ends_N4[:, 3] - ends_N4[:, 1])
    long_N4: NDArray[np.float32] = ends_N4[lengths >= params.length * min(image_HWC.shape[:2])]
    return long_N4


compare = ByExtraction(Params, extract, compare_maps)

CONTROL = Control(
    name="lines",
    params=Params,
    extract=extract,
    compare=compare,
    compare_maps=compare_maps,
    weights={"sd": Weights("lllyasviel/control_v11p_sd15_mlsd")},
    resample="lines",
    looks_finished=looks_like_lines,
    mistake=lines_mistake,
)
