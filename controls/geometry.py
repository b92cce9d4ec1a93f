"""Brings a control picture, map or mask to exactly the generation size, to a fraction of a pixel.

Legend: a picture's left edge is at x = 0 and its right edge at x = width; the centre of pixel i is at i + 0.5. All resampling here keeps to
that, so that nothing shifts by half a pixel on the way from the source to the map.

just: stretched to the size. crop: scaled to cover the size, the overhang cut off evenly. fill: scaled to fit into the size, the rest black.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from core.control import Image, Resample
from core.request import Resize

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Placement:
    """`box` of the source is resized to `inner` (width, height) and put at `offset` (x, y) of a black `width` × `height` picture."""

    box: Box
    inner: tuple[int, int]
    offset: tuple[int, int]
    width: int
    height: int

    def resize(self, image_HWC: Image, resample: Resample) -> Image:
        """The boxed part of the source at the inner size: uint8 HWC → uint8 (inner height, inner width, 3)."""
        left, top, right, bottom = self.box
        axes = [(0, top, bottom, self.inner[1]), (1, left, right, self.inner[0])]
        for axis, low, high, size in sorted(axes, key=lambda a: a[3] / (a[2] - a[1])):  # shrink first: bounded memory
            image_HWC = _resize_axis(image_HWC, axis, (low, high), size, resample)
        return image_HWC

    def pad(self, inner_HWC: Image) -> Image:
        """Black (no edge, far, nobody) around what `resize` returned, or was made of it: uint8 (height, width, 3)."""
        x, y = self.offset
        canvas_HWC = np.zeros((self.height, self.width, inner_HWC.shape[2]), np.uint8)
        canvas_HWC[y : y + self.inner[1], x : x + self.inner[0]] = inner_HWC
        return canvas_HWC

    def points(self, xy: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """Where points of the source (…, 2) come to lie."""
        left, top, right, bottom = self.box
        scale = (self.inner[0] / (right - left), self.inner[1] / (bottom - top))
        return (xy - (left, top)) * scale + self.offset


def place(source_width: float, source_height: float, width: int, height: int, mode: Resize) -> Placement:
    """How a source of one size comes to lie in a picture of another."""
    whole: Box = (0.0, 0.0, source_width, source_height)
    if mode == "just":
        return Placement(whole, (width, height), (0, 0), width, height)
    scales = width / source_width, height / source_height
    if mode == "crop":
        scale = max(scales)
        x, y = (source_width - width / scale) / 2, (source_height - height / scale) / 2
        return Placement((x, y, source_width - x, source_height - y), (width, height), (0, 0), width, height)
    scale = min(scales)
    inner = min(width, max(1, round(source_width * scale))), min(height, max(1, round(source_height * scale)))
    return Placement(whole, inner, ((width - inner[0]) // 2, (height - inner[1]) // 2), width, height)


def _resize_axis(image_HWC: Image, axis: int, span: tuple[float, float], size: int, resample: Resample) -> Image:
    """Resamples `span` of one axis to `size` pixels: by area when shrinking, cubic when enlarging; labels and lines are never mixed."""
    length = image_HWC.shape[axis]
    low, high = span
    step = (high - low) / size
    if span == (0, length) and size == length:
        return image_HWC
    if resample == "lines" and step > 1:  # every source pixel falls into one output pixel, the brightest wins
        starts = np.ceil(low + np.arange(size) * step - 0.5).astype(int)
        stop = int(np.ceil(high - 0.5))
        kept = image_HWC.take(np.arange(starts[0], stop), axis=axis)
        brightest: Image = np.maximum.reduceat(kept, starts - starts[0], axis=axis)
        return brightest
    if resample != "area":
        nearest = np.floor(low + (np.arange(size) + 0.5) * step).astype(int).clip(0, length - 1)
        picked: Image = image_HWC.take(nearest, axis=axis)
        return picked
    if step > 1:
        return _average(image_HWC, axis, np.linspace(low, high, size + 1).clip(0, length))
    height, width = image_HWC.shape[:2]
    box = (low, 0, high, height) if axis == 1 else (0, low, width, high)
    to = (size, height) if axis == 1 else (width, size)
    return np.asarray(Pillow.fromarray(image_HWC).resize(to, Pillow.Resampling.BICUBIC, box=box))


def _average(image_HWC: Image, axis: int, edges: NDArray[np.float64]) -> Image:
    """Exact means between neighbouring `edges` along one axis; pixels that an edge cuts count by their part."""
    whole = edges.astype(int)
    shape = [-1 if i == axis else 1 for i in range(3)]
    inside = image_HWC[: whole[-1]] if axis == 0 else image_HWC[:, : whole[-1]]
    sums = np.add.reduceat(inside, whole[:-1], axis=axis, dtype=np.uint32)  # of the pixels that begin between two edges
    cut = image_HWC.take(np.minimum(whole, image_HWC.shape[axis] - 1), axis=axis) * (edges - whole).reshape(shape)
    means = (sums + np.diff(cut, axis=axis)) / np.diff(edges).reshape(shape)
    return _bytes(means)


def _bytes(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    rounded: NDArray[np.uint8] = np.rint(values).clip(0, 255).astype(np.uint8)
    return rounded
