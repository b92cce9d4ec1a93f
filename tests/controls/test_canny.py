"""Canny against OpenCV's own call, and its F1 against figures counted by hand."""

import cv2
import numpy as np
import pytest

from controls.canny import CONTROL, Params, compare, compare_maps, extract, thresholds
from controls.mistakes import looks_like_lines
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
    assert value(line(10), line(10)) == 1.0
    assert value(line(10), line(11)) == 1.0
    assert value(line(10), line(12)) == 0.0


def test_f1_by_hand() -> None:
    wanted, got = line(5), line(5) | line(20)
    score = compare_maps(wanted, got)
    assert score is not None
    assert score.value == pytest.approx(2 / 3)  # precision 1/2, recall 1
    assert score.parts == {"precision": 0.5, "recall": 1.0}
    assert value(got, wanted) == pytest.approx(2 / 3)  # precision 1, recall 1/2
    got[16:] = 0
    assert value(wanted, got) == pytest.approx(2 * 0.5 * 17 / 32 / (0.5 + 17 / 32))  # recall: 16 rows and one within a pixel


def test_the_tolerance_grows_with_the_picture() -> None:
    """0.75% of the diagonal: 1 pixel at 128, 5 at 512."""
    assert (value(line(40, 128), line(41, 128)), value(line(40, 128), line(42, 128))) == (1.0, 0.0)
    assert (value(line(40, 512), line(45, 512)), value(line(40, 512), line(46, 512))) == (1.0, 0.0)


def value(wanted: Image, got: Image) -> float:
    score = compare_maps(wanted, got)
    assert score is not None
    return score.value


def test_empty_maps() -> None:
    empty = np.zeros_like(line(0))
    assert value(empty, empty) == 1.0
    assert value(empty, line(3)) == 0.0
    assert value(line(3), empty) == 0.0


def test_a_picture_obeys_its_own_edges_and_not_anothers() -> None:
    params = Params(low=50, high=120)
    wanted = extract(picture(), params)
    own, other = compare(wanted, picture(), params), compare(wanted, picture()[::-1], params)
    assert own is not None
    assert other is not None
    assert own.value == 1.0
    assert other.value < 0.5


def test_training_maps_are_what_rendering_extracts() -> None:
    from toyland.dataset import CANNY_HIGH, CANNY_LOW

    assert Params() == Params(low=CANNY_LOW, high=CANNY_HIGH)


def test_a_finished_map_is_noticed() -> None:
    assert looks_like_lines(extract(picture(), Params()))
    assert not looks_like_lines(picture())
    assert not looks_like_lines(np.zeros((8, 8, 3), np.uint8))
    assert not looks_like_lines(np.full((8, 8, 3), 255, np.uint8))


def test_automatic_thresholds_find_the_shapes_in_a_faint_picture() -> None:
    faint = (picture().astype(np.uint16) // 8 + 100).astype(np.uint8)
    assert not extract(faint, Params()).any()
    found = extract(faint, Params(automatic=True))
    score = compare_maps(extract(picture(), Params(low=60, high=120)), found)
    assert score is not None
    assert score.value > 0.9
    low, high = thresholds(faint)
    np.testing.assert_array_equal(found[..., 0], cv2.Canny(faint, low, high))
    assert low == high // 2


def test_more_scales_keep_outlines_and_drop_texture() -> None:
    rng = np.random.default_rng(1)
    grainy = np.clip(picture().astype(int) + rng.normal(0, 25, picture().shape), 0, 255).astype(np.uint8)
    outline = cv2.dilate(extract(picture(), Params()), np.ones((5, 5), np.uint8)) > 0
    one, three = (extract(grainy, Params(scales=scales)) > 0 for scales in (1, 3))
    assert not (three & ~one).any()
    assert (three & ~outline).sum() < 0.25 * (one & ~outline).sum()
    assert (three & outline).sum() > 0.5 * (one & outline).sum()
