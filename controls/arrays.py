"""Small array work that several kinds share: maps from single channels, luminance, pictures as OpenCV takes them."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from core.control import Image


def as_map(values_HW: NDArray[Any]) -> Image:
    """One channel as a grey map: any numbers (H, W), rounded and kept in 0 to 255, in all three channels."""
    if values_HW.dtype != np.uint8:
        values_HW = np.rint(values_HW).clip(0, 255).astype(np.uint8)
    map_HWC: Image = cv2.cvtColor(np.ascontiguousarray(values_HW), cv2.COLOR_GRAY2RGB)
    return map_HWC


def white(map_HWC: Image) -> NDArray[np.bool_]:
    """Where a black-and-white map is white: its brightest channel is above the middle."""
    return brightest(map_HWC) > 127


def brightest(image_HWC: Image) -> NDArray[np.uint8]:
    """Every pixel's largest channel, (H, W). (`max(axis=2)` takes NumPy ten times as long.)"""
    top: NDArray[np.uint8] = np.maximum(np.maximum(image_HWC[..., 0], image_HWC[..., 1]), image_HWC[..., 2])
    return top


def darkest(image_HWC: NDArray[Any]) -> NDArray[Any]:
    """Every pixel's smallest channel, (H, W), of any numbers."""
    low: NDArray[Any] = np.minimum(np.minimum(image_HWC[..., 0], image_HWC[..., 1]), image_HWC[..., 2])
    return low


def luminance(image_HWC: Image) -> NDArray[np.uint8]:
    """Rec. 601 luma of a picture, (H, W)."""
    grey_HW: NDArray[np.uint8] = cv2.cvtColor(np.ascontiguousarray(image_HWC), cv2.COLOR_RGB2GRAY)
    return grey_HW


def blurred(image_HWC: NDArray[Any], sigma_px: float) -> NDArray[Any]:
    """A Gaussian blur in the array's own type; the border is mirrored."""
    soft: NDArray[Any] = cv2.GaussianBlur(np.ascontiguousarray(image_HWC), (0, 0), sigma_px)
    return soft
