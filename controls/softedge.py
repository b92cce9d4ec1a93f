"""Soft edges: where brightness or colour changes at several scales, as grey lines on black.

Stands in for HED without its weights: the gradient of Gaussian-smoothed pictures, normalised by scale, the strongest scale and channel at
every pixel. Source: Lindeberg, "Edge detection and ridge detection with automatic scale selection", IJCV 1998 (σ-normalised gradients);
Xie and Tu, "Holistically-nested edge detection", arXiv 1504.06375 (what the published ControlNet was trained on).
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from controls.arrays import as_map, brightest
from controls.metrics import soft_lines as compare_maps
from controls.mistakes import looks_like_soft_lines, soft_mistake
from core.control import ByExtraction, Control, Image, Weights
from core.request import Frozen


class Params(Frozen):
    """At what sizes edges are looked for, and how strongly they are drawn."""

    scales: int = Field(3, ge=1, le=5, description="how many: the first sees edges 1 pixel wide, every other twice the width before it")
    gain: float = Field(1.0, ge=0.1, le=10.0, description="brightness of the lines; at 1 a full black-to-white edge is white")
    levels: int = Field(0, ge=0, le=16, description="round to so many grey levels, which hides faint traces of the picture; 0: none")


def extract(image_HWC: Image, params: Params) -> Image:
    """Soft edges of a picture: RGB uint8 HWC → grey lines on black in all three channels, same size."""
    image_HWC = np.ascontiguousarray(image_HWC)
    height, width = image_HWC.shape[:2]
    strength_HW = np.zeros((height, width), np.uint8)
    level_HWC = cv2.GaussianBlur(image_HWC, (0, 0), 1.0)
    for scale in range(params.scales):
        edges_HW = _gradient(level_HWC)
        if scale:
            edges_HW = cv2.resize(edges_HW, (width, height), interpolation=cv2.INTER_LINEAR)
        np.maximum(strength_HW, edges_HW, out=strength_HW)
        if min(level_HWC.shape[:2]) < 4:
            break
        level_HWC = cv2.pyrDown(level_HWC)  # halving the picture is the scale's normalisation: a gradient counts per pixel of its level
    grey_HW = strength_HW.astype(np.float32) * np.float32(params.gain)
    if params.levels > 1:
        grey_HW = np.floor(grey_HW.clip(0, 255) * np.float32(params.levels / 256)) * np.float32(255 / (params.levels - 1))
    return as_map(grey_HW)


def _gradient(image_HWC: Image) -> NDArray[np.uint8]:
    """The strongest channel's gradient magnitude, (H, W): 255 where a step from black to white, smoothed with σ = 1, is steepest."""
    across, down = (cv2.Sobel(image_HWC, cv2.CV_16S, *axes).astype(np.float32) for axes in ((1, 0), (0, 1)))
    steepest = 4 * 0.6247 * 255  # Sobel: 4 times the step between the neighbours on both sides, Φ(0.5) − Φ(−1.5) of the whole
    return brightest(cv2.convertScaleAbs(cv2.magnitude(across, down), alpha=255 / steepest))


compare = ByExtraction(Params, extract, compare_maps)

CONTROL = Control(
    name="softedge",
    params=Params,
    extract=extract,
    compare=compare,
    compare_maps=compare_maps,
    weights={"sd": Weights("lllyasviel/control_v11p_sd15_softedge")},
    marks=True,
    looks_finished=looks_like_soft_lines,
    mistake=soft_mistake,
)
