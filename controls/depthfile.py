"""Depth in files of more than 8 bits: NumPy's `.npy` and 16-bit grey PNG → a grey map, near = bright, at the size that is drawn.

Axes: H and W pixels of the file.
"""

import ast
import io
import struct
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngImageFile

from controls.arrays import as_map
from controls.geometry import place
from core.control import Image
from core.errors import BadImage
from core.images import MAX_PIXELS
from core.request import Resize

_NPY = b"\x93NUMPY"
_PNG_GREY_16 = b"\x10\x00"  # bit depth 16, colour type 0, at byte 24
_LIMIT = f"{MAX_PIXELS / 1e6:.1f} million"


def is_depth_file(head: bytes) -> bool:
    """Whether a file that begins like this is `.npy`, or PNG in 16-bit grey."""
    return head.startswith(_NPY) or (head.startswith(b"\x89PNG\r\n\x1a\n") and head[24:26] == _PNG_GREY_16)


def read_depth(data: bytes, size: tuple[int, int] | None, resize: Resize, *, far_is_large: bool = False) -> Image:
    """A depth file as a grey map of exactly `size` (width, height), or of its own: its smallest value 0 and its largest 255.

    far_is_large: the values are distances (in any unit), not nearness; the map is then linear in 1 / distance, as depth networks' are,
    and 0 counts as "not measured", which is far.

    Raises:
        BadImage: no such file, not one channel, over a limit, values that are no numbers or infinite, no positive distance.
    """
    values_HW = _npy(data) if data.startswith(_NPY) else _png16(data)
    levels_HW = _levels(_nearness(values_HW) if far_is_large else values_HW)
    if size is None:
        return as_map(levels_HW)
    placement = place(levels_HW.shape[1], levels_HW.shape[0], *size, resize)
    return placement.pad(placement.resize(as_map(levels_HW), "area"))


def _nearness(values_HW: NDArray[np.float64]) -> NDArray[np.float64]:
    measured = values_HW > 0
    if not measured.any():
        raise BadImage("a depth file of distances without a single positive value: distances are positive, 0 is 'not measured'")
    inverse_HW: NDArray[np.float64] = np.zeros_like(values_HW)
    inverse_HW[measured] = 1 / values_HW[measured]
    inverse_HW[~measured] = inverse_HW[measured].min()
    return inverse_HW


def _levels(values_HW: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scaled to 0 … 255; flat values are all far."""
    low, high = float(values_HW.min()), float(values_HW.max())
    return (values_HW - low) * (255 / (high - low)) if high > low else np.zeros_like(values_HW)


def _npy(data: bytes) -> NDArray[np.float64]:
    """The array of a `.npy` file, (H, W) or with single axes of length 1, checked before any of it is laid out in memory."""
    try:
        dtype, shape, order, start = _npy_header(data)
    except (ValueError, SyntaxError, KeyError, TypeError, AttributeError, RecursionError, MemoryError, struct.error) as error:
        raise BadImage(f"the depth file is no readable .npy ({type(error).__name__}): save it with numpy.save") from None
    sides = tuple(side for side in shape if side != 1) if len(shape) > 2 else shape
    sides = (*(1,) * (2 - len(sides)), *sides) if len(shape) > 2 else sides
    if dtype.kind not in "fiu" or len(sides) != 2 or 0 in shape:
        raise BadImage(f"the depth file holds {dtype} of shape {shape}: give one number for each pixel, as height × width")
    count = sides[0] * sides[1]
    if count > MAX_PIXELS:
        raise BadImage(f"the depth file has {sides[0]} × {sides[1]} values, over the limit of {_LIMIT}: make it smaller")
    if len(data) - start < count * dtype.itemsize:
        raise BadImage(f"the depth file ends early: {len(data) - start} bytes of {count * dtype.itemsize} are there")
    with np.errstate(invalid="ignore", over="ignore"):  # what does not fit is infinite, and refused
        values_HW = np.frombuffer(data, dtype, count, start).reshape(sides, order=order).astype(np.float64)
    if bad := int((~np.isfinite(values_HW)).sum()):
        raise BadImage(f"the depth file has {bad} values of {count} that are NaN or infinite: give them a number, as the farthest depth")
    return values_HW


def _npy_header(data: bytes) -> tuple[np.dtype[Any], tuple[int, ...], Literal["C", "F"], int]:
    """The type, the shape, whether rows or columns come one after the other, and the place of the first value.

    Source: numpy.lib.format (version, header length, a Python literal).
    """
    wide = data[6] > 1
    (length,) = struct.unpack_from("<I" if wide else "<H", data, 8)
    start = (12 if wide else 10) + int(length)
    if length > 10_000 or start > len(data):
        raise ValueError("header too long")
    header = ast.literal_eval(data[start - length : start].decode("latin-1"))
    shape = tuple(int(side) for side in header["shape"])
    if not isinstance(header["descr"], str) or any(side < 0 for side in shape):
        raise ValueError("no plain array")
    return np.dtype(header["descr"]), shape, "F" if header["fortran_order"] else "C", start


def _png16(data: bytes) -> NDArray[np.float64]:
    try:
        with PngImageFile(io.BytesIO(data)) as file:
            if file.width * file.height > MAX_PIXELS:
                raise BadImage(f"the depth file has {file.width} × {file.height} pixels, over the limit of {_LIMIT}: make it smaller")
            return np.asarray(file, np.float64)
    except BadImage:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, MemoryError, Pillow.DecompressionBombError) as error:
        raise BadImage(f"the depth file is damaged ({' '.join(str(error).split())}): save it again as PNG") from None
