"""Colour grid: the mean colour of every square of a coarse grid, for the palette and where its colours lie.

Source: Mou et al., "T2I-Adapter", arXiv 2302.08453 (the colour condition: shrunk 64 times, enlarged by nearest neighbour).
"""

import cv2
import numpy as np
from pydantic import Field

from controls.metrics import likeness as compare_maps
from core.control import ByExtraction, Control, Image
from core.request import Frozen


class Params(Frozen):
    """How coarse the grid is."""

    cell: int = Field(64, ge=4, le=256, description="side of a square, in pixels")


def extract(image_HWC: Image, params: Params) -> Image:
    """Squares of mean colour: RGB uint8 HWC in and out; the squares fill the picture evenly."""
    height, width = image_HWC.shape[:2]
    cells = max(1, round(width / params.cell)), max(1, round(height / params.cell))
    means_HWC = cv2.resize(np.ascontiguousarray(image_HWC), cells, interpolation=cv2.INTER_AREA)
    rows, columns = (np.arange(side) * count // side for side, count in ((height, cells[1]), (width, cells[0])))
    squares: Image = means_HWC[rows][:, columns]
    return squares


compare = ByExtraction(Params, extract, compare_maps)

CONTROL = Control(
    name="colour_grid",
    params=Params,
    extract=extract,
    compare=compare,
    compare_maps=compare_maps,
    resample="nearest",
)
