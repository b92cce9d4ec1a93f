"""Wanted and got in one picture: where they agree, what is missing, what is too much."""

import cv2
import numpy as np

from controls.arrays import brightest, darkest, white
from controls.metrics import tolerance_px
from core.control import Control, Image

# Colours that people with any colour vision tell apart. Source: Okabe and Ito, "Color universal design", 2008.
AGREED, MISSING, EXTRA = (255, 255, 255), (230, 159, 0), (86, 180, 233)


def overlay(control: Control, wanted_HWC: Image, got_HWC: Image) -> Image:
    """Two maps of one kind in one picture, RGB uint8 HWC.

    Lines and masks: white where both have one (within the tolerance of the score), orange where it is missing, blue where it is too much.
    All other kinds: the wanted map in grey, tinted where the colours differ in any channel: orange where the picture is darker than wanted,
    blue where it is brighter.
    """
    if control.resample == "lines" or _two_valued(wanted_HWC):
        return _lines(wanted_HWC, got_HWC, tolerance_px(*wanted_HWC.shape[:2]) if control.resample == "lines" else 0)
    difference_HWC = got_HWC.astype(np.int16) - wanted_HWC.astype(np.int16)
    darker_HW1 = difference_HWC.sum(axis=2, keepdims=True) < 0
    tint_HWC = np.where(darker_HW1, np.array(MISSING, np.float32), np.array(EXTRA, np.float32))
    share_HW1 = np.minimum(2 / 255 * brightest(np.abs(difference_HWC).astype(np.uint8)).astype(np.float32), 1)[..., None]
    mixed: Image = np.rint(0.7 * brightest(wanted_HWC)[..., None] * (1 - share_HW1) + tint_HWC * share_HW1).astype(np.uint8)
    return mixed


def _two_valued(map_HWC: Image) -> bool:
    dark_HW, light_HW = darkest(map_HWC), brightest(map_HWC)
    return bool(((light_HW == 0) | (dark_HW == 255)).all())


def _lines(wanted_HWC: Image, got_HWC: Image, reach_px: int) -> Image:
    wanted_HW, got_HW = white(wanted_HWC), white(got_HWC)
    kernel = np.ones((2 * reach_px + 1,) * 2, np.uint8)
    near_wanted_HW, near_got_HW = (cv2.dilate(mask_HW.view(np.uint8), kernel) > 0 for mask_HW in (wanted_HW, got_HW))
    canvas_HWC: Image = np.zeros_like(wanted_HWC)
    canvas_HWC[got_HW & ~near_wanted_HW] = EXTRA
    canvas_HWC[wanted_HW & ~near_got_HW] = MISSING
    canvas_HWC[(wanted_HW & near_got_HW) | (got_HW & near_wanted_HW)] = AGREED
    return canvas_HWC
