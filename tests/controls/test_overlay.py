"""What the picture of wanted and got shows."""

import numpy as np

import controls
from controls.overlay import AGREED, EXTRA, MISSING, overlay
from core.control import Image


def line(*columns: int) -> Image:
    canvas = np.zeros((32, 32, 3), np.uint8)
    canvas[:, list(columns)] = 255
    return canvas


def test_lines_that_agree_are_missing_or_too_many() -> None:
    shown = overlay(controls.get("canny"), line(5, 20), line(6, 28))
    assert tuple(shown[9, 5]) == tuple(shown[9, 6]) == AGREED  # within a pixel
    assert tuple(shown[9, 20]) == MISSING
    assert tuple(shown[9, 28]) == EXTRA
    assert not shown[:, 10:18].any()


def test_other_maps_are_tinted_where_they_differ() -> None:
    ramp = np.repeat(np.linspace(0, 255, 32).astype(np.uint8)[None, :, None], 32, axis=0).repeat(3, axis=2)
    depth = controls.get("depth")
    same = overlay(depth, ramp, ramp)
    assert (np.ptp(same, axis=2) == 0).all()
    darker = overlay(depth, ramp, ramp // 4)[5, -1]
    assert tuple(int(value) for value in darker) == MISSING
    brighter = overlay(depth, ramp // 4, ramp)[5, -1]
    assert tuple(int(value) for value in brighter) == EXTRA
