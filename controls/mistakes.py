"""Recognises maps and the usual mistakes with them: a picture passed as a finished map, and a map whose meaning is turned round.

Every check sees the file as it was given, RGB uint8 HWC, before it is resized. A mistake is a sentence without its subject, with the
remedy; None where nothing is wrong. The thresholds are set on toyland's pictures and maps; `benchmarks/mistakes.py` prints how often they
err.
"""

import numpy as np

from controls.arrays import brightest, darkest
from core.control import Image

PICTURE = "looks like a picture, not a finished map: leave out 'ready' to have it extracted"
INVERTED = "is mostly white, but these maps are white lines on black: invert it (limn extract invert FILE)"
FAR_BRIGHT = "is bright at the top and dark at the bottom, but near is bright in a depth map: invert it if its far end is bright"
PLAIN = 32  # how far the channels of a grey pixel may lie apart after JPEG


def is_grey(image_HWC: Image) -> bool:
    """Whether less than 1 pixel in 50 has a colour."""
    return float((brightest(image_HWC) - darkest(image_HWC) > PLAIN).mean()) < 0.02


def is_black_and_white(image_HWC: Image) -> bool:
    """Whether this is grey and both black and white are there, with at most a tenth of the pixels between them."""
    light_HW = brightest(image_HWC)
    dark, light = float((light_HW < 64).mean()), float((light_HW > 191).mean())
    return dark > 0 and light > 0 and dark + light > 0.9 and is_grey(image_HWC)


def looks_like_lines(image_HWC: Image) -> bool:
    """Whether this is a map of white lines on black: black and white, at most 40% of it white."""
    return is_black_and_white(image_HWC) and float((brightest(image_HWC) > 191).mean()) < 0.4


def lines_mistake(image_HWC: Image) -> str | None:
    """What is wrong with a map of white lines on black."""
    if not image_HWC.any():
        return None  # said of every empty map
    if not is_black_and_white(image_HWC):
        return PICTURE
    return INVERTED if float((brightest(image_HWC) > 191).mean()) > 0.5 else None


def looks_like_soft_lines(image_HWC: Image) -> bool:
    """Whether this is a map of grey lines on black: grey, at least 40% of it nearly black, some of it lighter."""
    light_HW = brightest(image_HWC)
    return is_grey(image_HWC) and float((light_HW < 32).mean()) > 0.4 and float((light_HW > 48).mean()) > 0.0005


def soft_mistake(image_HWC: Image) -> str | None:
    """What is wrong with a map of grey lines on black."""
    if not image_HWC.any():
        return None
    if not is_grey(image_HWC):
        return PICTURE
    light_HW = brightest(image_HWC)
    if float(np.median(light_HW)) > 160:
        return INVERTED
    return None if float((light_HW < 64).mean()) > 0.3 else PICTURE


def depth_mistake(image_HWC: Image) -> str | None:
    """What is wrong with a depth map: coloured, or its rows get darker towards the bottom, where the ground is nearest."""
    if not is_grey(image_HWC):
        return PICTURE
    rows_H = brightest(image_HWC).mean(axis=1)
    edge = max(1, len(rows_H) // 5)
    if rows_H[:edge].mean() - rows_H[-edge:].mean() < 48:
        return None
    return FAR_BRIGHT if float(np.corrcoef(np.arange(len(rows_H)), rows_H)[0, 1]) < -0.7 else None


def looks_like_depth(image_HWC: Image) -> bool:
    """Whether this may be a depth map: grey, smooth, of many levels, and nearer at the bottom."""
    light_HW = brightest(image_HWC).astype(np.int16)
    if min(light_HW.shape) < 8 or not is_grey(image_HWC) or len(np.unique(light_HW)) < 16:
        return False
    rough = np.median(np.abs(light_HW[1:-1] - (light_HW[:-2] + light_HW[2:]) // 2))
    rows_H = light_HW.mean(axis=1)
    edge = max(1, len(rows_H) // 5)
    return bool(rough <= 1 and rows_H[-edge:].mean() - rows_H[:edge].mean() > 48)
