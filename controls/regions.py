"""Regions: the picture in a few flat colours, by clustering its colours alone; a segmentation that needs no network and knows no names.

Source: Lloyd, "Least squares quantization in PCM", 1982 (k-means, here in Lab on a small copy); Arthur and Vassilvitskii, "k-means++: the
advantages of careful seeding", SODA 2007.
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from controls.arrays import brightest
from controls.metrics import covering
from core.control import ByExtraction, Control, Image, Score
from core.request import Frozen

SAMPLE_PX = 64  # side of the copy that is clustered
TRIALS = 4  # colours tried as a cluster's first, of which the best is taken
STEPS = 32  # colour steps of each channel in the table from colours to regions


class Params(Frozen):
    """How many regions, and how small they may be."""

    count: int = Field(8, ge=2, le=32, description="colours")
    clean: int = Field(2, ge=0, le=5, description="specks of up to about twice this many pixels across go; 0 keeps them")


def extract(image_HWC: Image, params: Params) -> Image:
    """Flat regions, each in its mean colour: RGB uint8 HWC in and out."""
    image_HWC = np.ascontiguousarray(image_HWC)
    height, width = image_HWC.shape[:2]
    sample_HWC = cv2.resize(image_HWC, (min(width, SAMPLE_PX), min(height, SAMPLE_PX)), interpolation=cv2.INTER_AREA)
    colours_K3 = _clusters(sample_HWC, params.count)
    coarse_HWC = image_HWC >> 3
    keys_HW = cv2.transform(coarse_HWC.astype(np.int16), np.array([[STEPS * STEPS, STEPS, 1]], np.float32))
    labels_HW = _table(colours_K3)[keys_HW]
    if params.clean:
        labels_HW = cv2.medianBlur(labels_HW, 2 * params.clean + 1)
    map_HWC: Image = colours_K3[labels_HW]
    return map_HWC


def _clusters(sample_HWC: Image, count: int) -> NDArray[np.uint8]:
    """The clusters' mean colours, (K, 3), dark to light; K is `count`, or fewer in a picture of fewer colours."""
    lab_N3 = cv2.cvtColor(sample_HWC, cv2.COLOR_RGB2LAB).reshape(-1, 3).astype(np.float32)
    distinct = np.unique(lab_N3, axis=0)
    count = min(count, len(distinct))
    labels_N1 = _begun(lab_N3, count)
    until = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 10, 0.5)
    if count > 1:  # one cluster is all there is
        _, labels_N1, _ = cv2.kmeans(lab_N3, count, labels_N1, until, 1, cv2.KMEANS_USE_INITIAL_LABELS)
    totals = np.bincount(labels_N1[:, 0], minlength=count)
    means = [np.bincount(labels_N1[:, 0], weights=channel, minlength=count) for channel in sample_HWC.reshape(-1, 3).T]
    colours_K3 = np.rint(np.stack(means, axis=1)[totals > 0] / totals[totals > 0, None]).astype(np.uint8)
    return np.unique(colours_K3, axis=0)


def _begun(lab_N3: NDArray[np.float32], count: int) -> NDArray[np.int32]:
    """First clusters, (N, 1), about colours that leave the others near: greedy k-means++, drawing alike at every call."""
    rng = np.random.default_rng(0)
    labels_N1 = np.zeros((len(lab_N3), 1), np.int32)
    nearest_N = np.square(lab_N3 - lab_N3[rng.integers(len(lab_N3))]).sum(axis=1)
    for label in range(1, count):
        tried_T = rng.choice(len(lab_N3), TRIALS, p=nearest_N / nearest_N.sum(dtype=np.float64))
        distance_TN = np.square(lab_N3[None] - lab_N3[tried_T, None]).sum(axis=2)
        best_N = distance_TN[np.minimum(distance_TN, nearest_N).sum(axis=1).argmin()]
        labels_N1[best_N < nearest_N] = label
        nearest_N = np.minimum(nearest_N, best_N)
    return labels_N1


def _table(colours_K3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The nearest cluster in Lab for each of 32 × 32 × 32 colours."""
    steps = (np.arange(STEPS) * 8 + 4).astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(1, -1, 3)
    cube_N3, centres_K3 = (
        cv2.cvtColor(np.ascontiguousarray(part), cv2.COLOR_RGB2LAB)[0].astype(np.float32) for part in (cube, colours_K3[None])
    )
    distance_NK = (centres_K3**2).sum(axis=1) - 2 * cube_N3 @ centres_K3.T
    nearest: NDArray[np.uint8] = distance_NK.argmin(axis=1).astype(np.uint8)
    return nearest


def compare_maps(wanted_HWC: Image, got_HWC: Image) -> Score:
    """Covering of the wanted regions by those found; their colours do not count."""
    return covering(_labels(wanted_HWC), _labels(got_HWC))


def _labels(map_HWC: Image) -> NDArray[np.int32]:
    """A number for every colour; a map of more than 256 colours is no map of regions, and its brightness is cut into 16 steps."""
    keys_HW = (map_HWC[..., 0].astype(np.int32) << 16) | (map_HWC[..., 1].astype(np.int32) << 8) | map_HWC[..., 2]
    names, codes = np.unique(keys_HW, return_inverse=True)
    labels: NDArray[np.int32] = codes.reshape(keys_HW.shape).astype(np.int32)
    return labels if len(names) <= 256 else (brightest(map_HWC) >> 4).astype(np.int32)


compare = ByExtraction(Params, extract, compare_maps)

CONTROL = Control(
    name="regions",
    params=Params,
    extract=extract,
    compare=compare,
    compare_maps=compare_maps,
    resample="nearest",
)
