"""What the picture of wanted and got shows."""

from collections.abc import Sequence

import numpy as np
import pytest

import controls
from controls.overlay import AGREED, EXTRA, MISSING, overlay
from controls.palettes import ADE20K
from core.control import Image
from core.skeleton import COLOURS


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


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        ("segmentation", ADE20K[11], ADE20K[15]),  # both as bright as can be in one channel
        ("pose", COLOURS[3], COLOURS[6]),  # the right elbow where the left wrist should be
        ("normal", (0, 128, 128), (128, 128, 0)),
    ],
)
def test_colours_that_mean_something_else_do_not_agree(kind: str, one: Sequence[int], other: Sequence[int]) -> None:
    wanted, got = np.zeros((2, 8, 32, 3), np.uint8)
    wanted[:, :20], got[:, :10], got[:, 10:20] = one, one, other
    shown = overlay(controls.get(kind), wanted, got)
    assert (np.ptp(shown[:, :10].astype(int), axis=2) == 0).all()
    assert (np.ptp(shown[:, 10:20].astype(int), axis=2) > 60).all()
    assert not shown[:, 20:].any()
