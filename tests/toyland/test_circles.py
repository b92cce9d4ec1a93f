"""Circles are where they are said to be, and measured by what is known of them."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from core.errors import BadRequest
from core.images import decode
from toyland import circles
from toyland.circles import Circle, build, measure, sample
from training.data import DataConfig, read_pairs

CIRCLE = Circle(seed=5, colour="red", ground="grass", x=0.5, y=0.4, radius=0.25)


def test_a_circle_covers_its_area_and_the_outline_is_its_edge() -> None:
    cover_HW = CIRCLE.cover(128)
    assert cover_HW.sum() == pytest.approx(np.pi * 32**2, rel=2e-3)  # 16 samples a pixel on its edge
    outline_HW = CIRCLE.outline(128)[..., 0] > 0
    assert set(np.unique(CIRCLE.outline(128))) == {0, 255}
    y, x = np.nonzero(outline_HW)
    distance = np.hypot(x + 0.5 - 64, y + 0.5 - 51.2)
    assert (distance.min(), distance.max()) == (pytest.approx(30, abs=1), pytest.approx(32, abs=1))


def test_pictures_have_the_colour_they_are_said_to_have() -> None:
    picture_HWC = CIRCLE.picture(128)
    assert np.abs(picture_HWC[51, 64] - circles.rgb("red")).max() <= 0.5
    assert np.array_equal(picture_HWC[-1], Circle(5, "blue", "grass", 0.5, 0.4, 0.25).picture(128)[-1])  # what is behind it is the seed's
    assert CIRCLE.caption == "a red circle on grass by day"
    assert {sample(seed).colour for seed in range(60)} == set(circles.COLOURS)
    for circle in map(sample, range(60)):
        assert min(circle.x, circle.y) - circle.radius > 0
        assert max(circle.x, circle.y) + circle.radius < 1


def test_measures_are_those_of_two_discs() -> None:
    truth = measure(CIRCLE, CIRCLE.picture(128))
    assert truth.iou > 0.98  # pixels that the edge halves
    assert truth.colour_error < 0.5  # rounding to 8 bits
    # another disc inside: its overlap is the ratio of the areas
    smaller = measure(CIRCLE, Circle(5, "blue", "grass", 0.5, 0.4, 0.2).picture(128))
    assert smaller.iou == pytest.approx(0.2**2 / 0.25**2, abs=0.02)
    red, blue = (cv2.cvtColor((circles.rgb(name) / 255).astype(np.float32)[None, None], cv2.COLOR_RGB2LAB) for name in ("red", "blue"))
    assert smaller.colour_error == pytest.approx(np.linalg.norm(red - blue), abs=0.5)
    nothing = measure(CIRCLE, Circle(5, "blue", "grass", 0.1, 0.9, 0.05).picture(128))
    assert nothing.iou < 0.5


def test_the_dataset_is_one_that_training_reads(tmp_path: Path) -> None:
    seen: list[int] = []
    path = build(tmp_path, 3, seed=7, size=64, on_progress=seen.append)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    pairs = read_pairs(DataConfig(folder=tmp_path, condition="source", kind="canny"))
    assert [pair.caption for pair in pairs] == [sample(7 + index).caption for index in range(3)]
    assert np.array_equal(decode(tmp_path / "target" / "2.png"), sample(9).picture(64))
    assert np.array_equal(decode(tmp_path / "source" / "2.png"), sample(9).outline(64))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert Circle(**{name: rows[1][name] for name in ("seed", "colour", "ground", "x", "y", "radius")}) == sample(8)
    build(tmp_path, 3, seed=7, size=64)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.*")} == before
    assert seen == [1, 2, 3]
    with pytest.raises(BadRequest, match="count = 0"):
        build(tmp_path / "none", 0)
