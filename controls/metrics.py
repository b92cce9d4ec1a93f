"""How two maps are held against each other: every measure gives the metric in its own unit and a value from 0 (worst) to 1 (best).

Axes: H and W pixels. Maps are uint8; two maps that are compared have the same size.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from controls.arrays import brightest, white
from core.control import Image, Score

PSNR_FLOOR_DB, PSNR_CEILING_DB = 10.0, 40.0  # unrelated pictures lie at about 10 dB; above 40 dB no eye sees a difference
PSNR_LIMIT_DB = 100.0  # what equal pictures are given, so that the number stays finite

Mask = NDArray[np.bool_]


def tolerance_px(height: int, width: int) -> int:
    """How far apart two edges may lie and still be the same: 0.75% of the diagonal, at least 1 (128 × 128: 1, 512 × 512: 5).

    Source: Martin, Fowlkes and Malik, "Learning to detect natural image boundaries", TPAMI 2004 (maxDist = 0.0075).
    """
    return max(1, int(0.0075 * np.hypot(height, width)))


def edges(wanted_HWC: Image, got_HWC: Image) -> Score:
    """F1 between two edge maps: an edge pixel counts as found if the other map has one within the tolerance.

    1: every edge is where it should be. 0: none is, or only one of the maps has any. Unrelated pictures score what their edges' density
    gives by chance. Parts: precision (of what was drawn) and recall (of what was wanted).
    """
    wanted_HW, got_HW = white(wanted_HWC), white(got_HWC)
    reach = tolerance_px(*wanted_HW.shape)
    precision, recall = precision_recall(wanted_HW, got_HW, reach)
    value = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return Score(value, f"edge F1 within {reach} px", value, "", {"precision": precision, "recall": recall})


def precision_recall(wanted_HW: Mask, got_HW: Mask, reach_px: int = 1) -> tuple[float, float]:
    """Shares of one mask's pixels with one of the other's in reach (Chebyshev distance); (1, 1) if both are empty, (0, 0) if one is."""
    if not wanted_HW.any() or not got_HW.any():
        both = float(not wanted_HW.any() and not got_HW.any())
        return both, both
    return float(_thick(wanted_HW, reach_px)[got_HW].mean()), float(_thick(got_HW, reach_px)[wanted_HW].mean())


def _thick(mask_HW: Mask, reach_px: int) -> Mask:
    side = 2 * reach_px + 1
    grown_HW: NDArray[np.uint8] = cv2.dilate(mask_HW.view(np.uint8), np.ones((side, side), np.uint8))
    return grown_HW.view(bool)


def soft_lines(wanted_HWC: Image, got_HWC: Image) -> Score:
    """SSIM between two maps of soft lines on black.

    A black map is already much like another that is mostly black, so `value` counts from there: 0 is no better than drawing nothing, 1 is
    equal. `raw` is the mean SSIM itself.
    """
    wanted_HW, got_HW = brightest(wanted_HWC), brightest(got_HWC)
    raw, nothing = ssim(wanted_HW, got_HW), ssim(wanted_HW, np.zeros_like(wanted_HW))
    value = raw if nothing >= 1 - 1e-9 else (raw - nothing) / (1 - nothing)
    return Score(min(1.0, max(0.0, value)), "SSIM", raw, "", {"SSIM of a black map": nothing})


def ssim(one_HW: NDArray[np.uint8], other_HW: NDArray[np.uint8]) -> float:
    """Mean structural similarity of two grey pictures, −1 to 1.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", TIP 2004 (Gaussian window of 11 pixels,
    σ = 1.5, K = 0.01 and 0.03).
    """
    x, y = one_HW.astype(np.float32), other_HW.astype(np.float32)

    def mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
        window: NDArray[np.float32] = cv2.GaussianBlur(values, (11, 11), 1.5)
        return window

    small, contrast = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = mean(x), mean(y)
    variance = mean(x * x + y * y) - mean_x * mean_x - mean_y * mean_y
    covariance = mean(x * y) - mean_x * mean_y
    alike = (2 * mean_x * mean_y + small) * (2 * covariance + contrast)
    return float((alike / ((mean_x * mean_x + mean_y * mean_y + small) * (variance + contrast))).mean(dtype=np.float64))


def likeness(wanted_HWC: Image, got_HWC: Image, where_HW: Mask | None = None) -> Score:
    """Peak signal-to-noise ratio in dB; `value` is 0 at 10 dB and below, 1 at 40 dB and above.

    where_HW: only these pixels count.
    """
    raw = psnr(wanted_HWC, got_HWC, where_HW)
    value = (raw - PSNR_FLOOR_DB) / (PSNR_CEILING_DB - PSNR_FLOOR_DB)
    return Score(min(1.0, max(0.0, value)), "PSNR", raw, "dB")


def psnr(wanted_HWC: Image, got_HWC: Image, where_HW: Mask | None = None) -> float:
    """PSNR in decibels, at most 100."""
    wanted, got = (wanted_HWC, got_HWC) if where_HW is None else (wanted_HWC[where_HW], got_HWC[where_HW])
    if not wanted.size:
        return PSNR_LIMIT_DB
    error = float(np.mean(np.square(wanted.astype(np.float32) - got.astype(np.float32)), dtype=np.float64))
    return PSNR_LIMIT_DB if error == 0 else min(PSNR_LIMIT_DB, float(10 * np.log10(255**2 / error)))


def classes(wanted_HW: NDArray[np.integer[Any]], got_HW: NDArray[np.integer[Any]]) -> Score:
    """Mean intersection over union of the labels that stand in either map: 1 for equal maps, 0 where no pixel agrees. Parts: accuracy."""
    table = contingency(wanted_HW, got_HW)
    both = np.diagonal(table)
    either = table.sum(axis=0) + table.sum(axis=1) - both
    value = float((both[either > 0] / either[either > 0]).mean())
    return Score(value, "mean IoU", value, "", {"accuracy": float(both.sum() / table.sum())})


def contingency(wanted_HW: NDArray[np.integer[Any]], got_HW: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """How many pixels have label i in one map and j in the other, (K, K), over the labels that occur at all."""
    names, codes = np.unique(np.concatenate([wanted_HW.ravel(), got_HW.ravel()]), return_inverse=True)
    wanted, got = codes[: wanted_HW.size], codes[wanted_HW.size :]
    return np.bincount(wanted * len(names) + got, minlength=len(names) ** 2).reshape(len(names), len(names))


def covering(wanted_HW: NDArray[np.integer[Any]], got_HW: NDArray[np.integer[Any]]) -> Score:
    """How well regions without names agree: the mean over the wanted pixels of their region's best IoU with a region found.

    1: the same regions, whatever they are called.

    Source: Arbeláez et al., "Contour detection and hierarchical image segmentation", TPAMI 2011, section 2.3.1.
    """
    table = contingency(wanted_HW, got_HW)
    wanted, got = table.sum(axis=1, keepdims=True), table.sum(axis=0, keepdims=True)
    overlap = table / np.maximum(wanted + got - table, 1)
    value = float((overlap.max(axis=1) * wanted[:, 0]).sum() / wanted.sum())
    return Score(value, "segmentation covering", value, "")


def shape(wanted_HWC: Image, got_HWC: Image) -> Score:
    """Intersection over union of two white shapes on black; 1 if both are empty, 0 if one is."""
    wanted_HW, got_HW = white(wanted_HWC), white(got_HWC)
    either = int((wanted_HW | got_HW).sum())
    value = float((wanted_HW & got_HW).sum() / either) if either else 1.0
    return Score(value, "IoU", value, "")


def directions(wanted_HWC: Image, got_HWC: Image) -> Score:
    """Mean angle between two normal maps; `value` is 1 − angle / 90°: 1 for equal maps, 0 for surfaces that face elsewhere altogether."""
    wanted, got = unit_vectors(wanted_HWC), unit_vectors(got_HWC)
    chord_HW = np.sqrt(np.square(wanted - got).sum(axis=2))  # exact for small angles, where the cosine is not
    angle = float(np.degrees(2 * np.arcsin((chord_HW / 2).clip(0, 1))).mean(dtype=np.float64))
    return Score(min(1.0, max(0.0, 1 - angle / 90)), "mean angle between normals", angle, "degrees")


def unit_vectors(map_HWC: Image) -> NDArray[np.float32]:
    """A normal map's directions, (H, W, 3) of length 1."""
    vectors = map_HWC.astype(np.float32) / np.float32(127.5) - 1
    unit: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=2, keepdims=True), 1e-6)
    return unit


def colours(wanted_HWC: Image, got_HWC: Image) -> Score:
    """Overlap of two pictures' colour histograms (8 × 8 × 8), wherever the colours lie: 1 for the same colours, 0 for none in common."""
    one, other = (_histogram(image_HWC) for image_HWC in (wanted_HWC, got_HWC))
    value = float(np.minimum(one, other).sum())
    return Score(value, "overlap of colour histograms", value, "")


def _histogram(image_HWC: Image) -> NDArray[np.float64]:
    cells = (image_HWC >> 5).astype(np.int32)
    counts = np.bincount((cells[..., 0] * 64 + cells[..., 1] * 8 + cells[..., 2]).ravel(), minlength=512)
    shares: NDArray[np.float64] = counts / counts.sum()
    return shares


def ordinal_agreement(wanted_HW: NDArray[Any], got_HW: NDArray[Any], pairs: int = 20_000) -> float:
    """Of pairs of pixels that clearly differ in the wanted depth (by 5% of its range), the share that the other map orders alike.

    0.5 is chance, 1 the same order everywhere; 1 where the wanted map is flat. The pairs are the same at every call.

    Source: Chen et al., "Single-image depth perception in the wild", NIPS 2016 (ordinal error).
    """
    draw = np.random.default_rng(0).integers(0, wanted_HW.size, (2, pairs))
    wanted = np.diff(wanted_HW.ravel()[draw].astype(np.float64), axis=0)[0]
    got = np.diff(got_HW.ravel()[draw].astype(np.float64), axis=0)[0]
    clear = np.abs(wanted) > 0.05 * max(float(np.ptp(wanted_HW)), 1e-9)
    if not clear.any():
        return 1.0
    return float(np.where(got == 0, 0.5, np.sign(wanted) == np.sign(got))[clear].mean())
