"""Shuffle: the picture's content pulled about by a smooth random flow, so that colours and style remain and composition goes.

Source: ControlNet 1.1's annotator "shuffle" (every pixel is taken from a smooth random field of places, spanning the whole picture, whose
waves are 256 pixels wide).
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from controls.metrics import colours as compare_maps
from core.control import ByExtraction, Control, Image, Weights
from core.errors import BadImage
from core.request import Frozen

LONGEST_PX = 2**15 - 2  # cv2.remap counts in 16 bits


class Params(Frozen):
    """Which flow."""

    seed: int = Field(0, ge=0, lt=2**32, description="another seed is another flow")
    wave: int = Field(256, ge=16, le=1024, description="width of the flow's waves, in pixels; smaller tears the picture into smaller parts")


def extract(image_HWC: Image, params: Params) -> Image:
    """The picture pulled about: RGB uint8 HWC in and out; equal seeds give equal flows.

    Raises:
        BadImage: a side is too long for OpenCV.
    """
    height, width = image_HWC.shape[:2]
    if max(height, width) > LONGEST_PX:
        raise BadImage(f"a picture of {width}x{height} cannot be shuffled: make its sides {LONGEST_PX} pixels at most")
    rng = np.random.default_rng(params.seed)
    x, y = (_field(rng, (height, width), params.wave) * np.float32(side - 1) for side in (width, height))
    shuffled: Image = cv2.remap(np.ascontiguousarray(image_HWC), x, y, cv2.INTER_LINEAR)
    return shuffled


def _field(rng: np.random.Generator, size: tuple[int, int], wave_px: int) -> NDArray[np.float32]:
    """Smooth random numbers from 0 to 1, both reached."""
    rows, columns = (side // wave_px + 4 for side in size)
    coarse = rng.random((rows, columns), np.float32)
    top, left = (int(rng.integers(wave_px, 2 * wave_px)) for _ in size)
    field_HW = _weights(rows, wave_px, (top, size[0])) @ coarse @ _weights(columns, wave_px, (left, size[1])).T
    low, high = float(field_HW.min()), float(field_HW.max())
    return np.ascontiguousarray((field_HW - low) / max(high - low, 1e-6), np.float32)


def _weights(cells: int, wave_px: int, span: tuple[int, int]) -> NDArray[np.float32]:
    """Cubic interpolation as a matrix (pixels, cells), of `span` (first, length) of the cells enlarged `wave_px` times."""
    whole: NDArray[np.float32] = cv2.resize(np.eye(cells, dtype=np.float32), (cells, cells * wave_px), interpolation=cv2.INTER_CUBIC)
    return whole[span[0] : span[0] + span[1]]


compare = ByExtraction(Params, extract, compare_maps)

CONTROL = Control(
    name="shuffle",
    params=Params,
    extract=extract,
    compare=compare,
    compare_maps=compare_maps,
    weights={"sd": Weights("lllyasviel/control_v11e_sd15_shuffle")},
)
