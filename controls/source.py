"""The picture that a request begins from, and its mask, brought to the size that is drawn."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from controls.geometry import place
from core.control import Image
from core.errors import BadRequest
from core.images import decode
from core.request import RenderRequest


def load_source(request: RenderRequest) -> tuple[Image, NDArray[np.uint8] | None] | None:
    """The request's picture and mask (uint8 (H, W), 255: paint here; grey where a pixel is cut), or None where it begins from noise.

    What `fill` leaves over is black in both: nothing is painted there.

    Raises:
        BadImage: a file is missing, is no picture, or is over a limit.
        BadRequest: the mask is of another size than the picture.
    """
    if request.init_image is None:
        return None
    image_HWC = decode(request.init_image)
    height, width = image_HWC.shape[:2]
    placement = place(width, height, request.width, request.height, request.resize)
    placed_HWC = placement.pad(placement.resize(image_HWC, "area"))
    return placed_HWC, None if request.mask is None else _load_mask(request.mask, (width, height), request)


def _load_mask(path: Path, size: tuple[int, int], request: RenderRequest) -> NDArray[np.uint8]:
    mask_HWC = decode(path)
    height, width = mask_HWC.shape[:2]
    if (width, height) != size:
        raise BadRequest(f"mask {path.name!r} is {width}x{height}, its picture {size[0]}x{size[1]}: give a mask of the picture's size")
    placement = place(width, height, request.width, request.height, request.resize)
    mask_HW: NDArray[np.uint8] = np.rint(placement.pad(placement.resize(mask_HWC, "area")).mean(axis=2)).astype(np.uint8)
    return mask_HW
