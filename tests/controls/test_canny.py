"""Canny against OpenCV's own call, and its F1 against figures counted by hand."""

import cv2
import numpy as np
import pytest

from controls.canny import CONTROL, Params, compare, compare_maps, edge_f1, extract, looks_finished
from core.control import Image
from core.errors import BadRequest


def picture(size_px: int = 96) -> Image:
    """A disc and a box on a gradient."""
    canvas = np.repeat(np.linspace(40, 90, size_px)[:, None, None], size_px, axis=1).repeat(3, axis=2).astype(np.uint8).copy()
    cv2.circle(canvas, (30, 40), 18, (220, 30, 30), -1)
    cv2.rectangle(canvas, (55, 50), (85, 85), (20, 60, 230), -1)
    return canvas


@pytest.mark.parametrize(("low", "high"), [(100, 200), (20, 60), (0, 255)])
def test_edges_are_opencvs(low: int, high: int) -> None:
    edges_HWC = extract(picture(), Params(low=low, high=high))
    np.testing.assert_array_equal(edges_HWC, cv2.Canny(picture(), low, high)[..., None].repeat(3, axis=2))
    assert edges_HWC.dtype == np.uint8
    assert set(np.unique(edges_HWC)) == {0, 255}


def test_views_that_are_not_contiguous_are_fine() -> None:
    np.testing.assert_array_equal(extract(picture()[:, ::-1], Params()), extract(np.ascontiguousarray(picture()[:, ::-1]), Params()))


def test_thresholds_out_of_order_or_range_are_refused() -> None:
    with pytest.raises(BadRequest, match=r"low 220 is above high 200: give low <= high"):
        CONTROL.parse_params({"low": 220})
    with pytest.raises(BadRequest, match=r"high = 300: .*255"):
        CONTROL.parse_params({"high": 300})
    with pytest.raises(BadRequest, match=r"unknown canny setting 'lwo': did you mean 'low'\?"):
        CONTROL.parse_params({"lwo": 3})


def line(column: int, size_px: int = 32) -> Image:
    canvas = np.zeros((size_px, size_px, 3), np.uint8)
    canvas[:, column] = 255
    return canvas


def test_f1_forgives_one_pixel_and_not_two() -> None:
    assert compare_maps(line(10), line(10)).value == 1.0
    assert compare_maps(line(10), line(11)).value == 1.0
    assert compare_maps(line(10), line(12)).value == 0.0


def test_f1_by_hand() -> None:
    wanted, got = line(5)[..., 0] > 0, (line(5) | line(20))[..., 0] > 0
    assert edge_f1(wanted, got) == pytest.approx(2 / 3)  # precision 1/2, recall 1
    assert edge_f1(got, wanted) == pytest.approx(2 / 3)  # precision 1, recall 1/2
    got[16:] = False
    assert edge_f1(wanted, got) == pytest.approx(2 * 0.5 * 17 / 32 / (0.5 + 17 / 32))  # recall: 16 rows and one within a pixel


def test_empty_maps() -> None:
    empty = np.zeros_like(line(0))
    assert compare_maps(empty, empty).value == 1.0
    assert compare_maps(empty, line(3)).value == 0.0
    assert compare_maps(line(3), empty).value == 0.0


def test_a_picture_obeys_its_own_edges_and_not_anothers() -> None:
    params = Params(low=50, high=120)
    wanted = extract(picture(), params)
    assert compare(wanted, picture(), params).value == 1.0
    assert compare(wanted, picture()[::-1], params).value < 0.5


def test_training_maps_are_what_rendering_extracts() -> None:
    from toyland.dataset import CANNY_HIGH, CANNY_LOW

    assert Params() == Params(low=CANNY_LOW, high=CANNY_HIGH)


def test_a_finished_map_is_noticed() -> None:
    assert looks_finished(extract(picture(), Params()))
    assert not looks_finished(picture())
    assert not looks_finished(np.zeros((8, 8, 3), np.uint8))
    assert not looks_finished(np.full((8, 8, 3), 255, np.uint8))
