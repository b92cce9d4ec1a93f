"""Mistakes with control files: what is said about each, and how seldom the checks err on toyland."""

from pathlib import Path

import cv2
import numpy as np
import pytest

import controls
from benchmarks.mistakes import LINES, maps, measure, stored
from controls import canny, depth, mistakes, normal, pose
from controls.prepare import load_map
from core.control import Image
from core.images import encode_png
from core.request import ControlUnit
from toyland.render import render
from toyland.scene import sample


@pytest.fixture(scope="module")
def person() -> dict[str, Image]:
    """A scene with a person: its picture, and a finished map of every kind."""
    rendered = render(sample(0, "test"), 128)
    return {"picture": rendered.picture_HWC, **dict(maps(rendered))}


def warnings(image_HWC: Image, folder: Path, **unit: object) -> list[str]:
    path = folder / "file.png"
    path.write_bytes(encode_png(image_HWC))
    return list(load_map(ControlUnit(image=path, **unit), 128, 128).warnings)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["canny", "depth", "pose", "normal", "segmentation", "softedge", "lineart", "lines", "scribble"])
def test_a_picture_passed_as_a_map_and_a_map_passed_as_one(person: dict[str, Image], tmp_path: Path, kind: str) -> None:
    assert warnings(person[kind], tmp_path, kind=kind, ready=True) == []
    (said,) = warnings(person["picture"], tmp_path, kind=kind, ready=True)
    assert said.startswith("file.png ")
    assert said.endswith("looks like a picture, not a finished map: leave out 'ready' to have it extracted")


@pytest.mark.parametrize("kind", LINES)
def test_black_lines_on_white(person: dict[str, Image], tmp_path: Path, kind: str) -> None:
    (said,) = warnings(255 - person[kind], tmp_path, kind=kind, ready=True)
    assert "is mostly white, but these maps are white lines on black: invert it" in said


def test_far_bright_depth_and_swapped_channels(person: dict[str, Image], tmp_path: Path) -> None:
    (said,) = warnings(255 - person["depth"], tmp_path, kind="depth", ready=True)
    assert "near is bright in a depth map: invert it" in said
    (said,) = warnings(person["normal"][..., ::-1], tmp_path, kind="normal", ready=True)
    assert "has red where blue belongs" in said


def test_an_empty_map_and_another_aspect(person: dict[str, Image], tmp_path: Path) -> None:
    (said,) = warnings(np.zeros((64, 64, 3), np.uint8), tmp_path, kind="pose", ready=True)
    assert "is empty (all black)" in said
    (said,) = warnings(person["canny"][:, 2:], tmp_path, kind="canny", ready=True)
    assert "file.png is 126x128 and loses 2% to fit 128x128" in said
    (said,) = warnings(person["canny"][:, 2:], tmp_path, kind="canny", ready=True, resize="just")
    assert "is squeezed" in said
    assert warnings(person["canny"][:, 1:], tmp_path, kind="canny", ready=True) == []  # 0.8%
    assert warnings(person["picture"][:, 40:], tmp_path, kind="canny") == []  # a picture may be cut


def test_inverting_is_the_remedy_that_is_named(person: dict[str, Image], tmp_path: Path) -> None:
    scanned = 255 - person["canny"]
    assert warnings(scanned, tmp_path, kind="canny", ready=True) != []
    inverted = controls.get("invert").extract(scanned, controls.get("invert").parse_params({}))
    assert warnings(inverted, tmp_path, kind="canny", ready=True) == []


def test_a_blank_page_a_photograph_in_grey_and_thick_lines() -> None:
    rng = np.random.default_rng(0)
    grey = cv2.GaussianBlur(rng.integers(0, 256, (128, 128), np.uint8), (0, 0), 6)
    grey_HWC = cv2.normalize(grey, None, 0, 255, cv2.NORM_MINMAX)[..., None].repeat(3, axis=2)
    assert canny.CONTROL.mistake is not None
    assert canny.CONTROL.mistake(grey_HWC) == mistakes.PICTURE
    assert mistakes.soft_mistake(np.full((9, 9, 3), 255, np.uint8)) == mistakes.INVERTED
    assert depth.CONTROL.mistake is not None
    assert depth.CONTROL.mistake(grey_HWC) is None  # it may be one
    assert not depth.CONTROL.looks_finished(grey_HWC)  # type: ignore[misc]
    thick = np.zeros((128, 128, 3), np.uint8)
    cv2.circle(thick, (64, 64), 40, (255, 255, 255), 6, cv2.LINE_AA)
    assert canny.CONTROL.mistake(thick) is None
    assert not pose.looks_finished(grey_HWC)
    assert not normal.looks_finished(grey_HWC)


@pytest.mark.parametrize("quality", [None, 85])
def test_toylands_pictures_and_maps_raise_no_false_alarm_and_their_mistakes_are_seen(quality: int | None) -> None:
    """A few scenes here; `benchmarks/mistakes.py` measures 200: below 1% of false alarms, above 98% of detections."""
    rates = measure(6, 128, quality)
    alarms, of = rates.share(rates.alarms)
    assert alarms == 0, rates.table()
    assert of > 150
    found, made = rates.share(rates.detections)
    assert found == made, rates.table()
    assert made > 180


def test_files_go_through_jpeg_as_users_files_do() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert stored(picture, None) is picture
    assert 0 < np.abs(stored(picture, 85).astype(int) - picture).mean() < 60
