"""Where a known pattern lands after resizing, in every mode and for every way of resampling."""

import cv2
import numpy as np
import pytest

from controls.geometry import place
from core.control import Image, Resample
from core.request import Resize

MODES: tuple[Resize, ...] = ("just", "crop", "fill")
RESAMPLES: tuple[Resample, ...] = ("area", "nearest", "lines")


def resize(image_HWC: Image, width: int, height: int, mode: Resize = "just", resample: Resample = "area") -> Image:
    placement = place(image_HWC.shape[1], image_HWC.shape[0], width, height, mode)
    return placement.pad(placement.resize(image_HWC, resample))


def blob(width: int, height: int, x: float, y: float, sigma: float) -> Image:
    """A bright spot with its centre at (x, y), measured from the picture's corner."""
    grid_x, grid_y = np.arange(width) + 0.5 - x, (np.arange(height) + 0.5 - y)[:, None]
    spot = 255 * np.exp(-(grid_x**2 + grid_y**2) / (2 * sigma**2))
    picture: Image = np.rint(spot)[..., None].repeat(3, axis=2).astype(np.uint8)
    return picture


def centre(image_HWC: Image) -> tuple[float, float]:
    light = image_HWC[..., 0].astype(float)
    rows, columns = np.indices(light.shape)
    return float((columns + 0.5).ravel() @ light.ravel() / light.sum()), float((rows + 0.5).ravel() @ light.ravel() / light.sum())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("resample", ["area", "nearest"])
@pytest.mark.parametrize("size", [(128, 128), (320, 240), (512, 512), (96, 160), (1280, 960), (64, 200)])
def test_a_640_by_480_picture_stays_aligned_to_half_a_pixel(mode: Resize, resample: Resample, size: tuple[int, int]) -> None:
    x, y, sigma = 315.3, 232.7, 12.0
    placement = place(640, 480, *size, mode)
    wanted = placement.points(np.array([x, y]))
    got = centre(resize(blob(640, 480, x, y, sigma), *size, mode, resample))
    assert np.abs(np.array(got) - wanted).max() < (0.5 if resample == "nearest" else 0.1)


def test_crop_keeps_the_middle_and_fill_keeps_all() -> None:
    source = np.zeros((40, 80, 3), np.uint8)
    source[:, :20], source[:, 20:60], source[:, 60:] = 50, 150, 250
    assert (resize(source, 64, 64, "crop")[:, 4:-4] == 150).all()  # cubic interpolation takes in two source pixels beyond the cut
    assert (resize(source, 20, 20, "crop") == 150).all()
    filled = resize(source, 80, 80, "fill")
    assert not filled[:20].any()
    assert not filled[60:].any()
    np.testing.assert_array_equal(filled[20:60], source)
    assert (resize(source, 64, 128, "just")[:, [0, 32, 63], 0] == (50, 150, 250)).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("resample", RESAMPLES)
@pytest.mark.parametrize("source", [(1, 1), (1, 4000), (4000, 1), (7, 10), (640, 480), (65, 64)])
@pytest.mark.parametrize("size", [(64, 64), (128, 72)])
def test_the_size_is_exact_and_a_flat_picture_stays_flat(
    mode: Resize, resample: Resample, source: tuple[int, int], size: tuple[int, int]
) -> None:
    flat = np.full((source[1], source[0], 3), (10, 120, 240), np.uint8)
    got = resize(flat, *size, mode, resample)
    assert got.shape == (size[1], size[0], 3)
    inner = got[got.any(axis=2)]
    assert len(inner) > 0
    assert (inner == (10, 120, 240)).all()
    assert mode == "fill" or len(inner) == size[0] * size[1]


def test_the_same_size_is_the_same_picture() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)
    for mode in MODES:
        for resample in RESAMPLES:
            np.testing.assert_array_equal(resize(noise, 96, 64, mode, resample), noise)


def test_shrinking_by_area_is_opencvs_area() -> None:
    noise = np.random.default_rng(2).integers(0, 256, (96, 128, 3), np.uint8)
    ours, theirs = resize(noise, 32, 24).astype(int), cv2.resize(noise, (32, 24), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(ours - theirs).max() <= 1  # we round once per axis


@pytest.mark.parametrize("size", [(100, 77), (127, 95), (33, 50)])
def test_fractional_shrinking_is_the_mean_over_each_pixels_area(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(4).integers(0, 256, (96, 128, 3), np.uint8)
    ours, theirs = resize(noise, *size).astype(int), cv2.resize(noise, size, interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(ours - theirs).max() <= 1


def test_labels_are_never_mixed() -> None:
    labels = np.random.default_rng(3).choice(np.array([0, 90, 255], np.uint8), (37, 53))[..., None].repeat(3, axis=2)
    for size in [(128, 96), (16, 16), (64, 20)]:
        for resample in RESAMPLES[1:]:
            assert set(np.unique(resize(labels, *size, "crop", resample))) <= {0, 90, 255}


@pytest.mark.parametrize("size_px", [64, 100, 128, 511])
def test_one_pixel_lines_outlive_shrinking_whole_and_thin(size_px: int) -> None:
    for column in (0, 3, 200, 511):
        lines = np.zeros((512, 512, 3), np.uint8)
        lines[:, column] = 255
        small = resize(lines, size_px, size_px, "just", "lines")[..., 0]
        assert (small > 0).sum(axis=1).tolist() == [1] * size_px
        assert abs(np.flatnonzero(small[0])[0] + 0.5 - (column + 0.5) * size_px / 512) <= 0.5
        assert set(np.unique(small)) == {0, 255}


@pytest.mark.parametrize("mode", MODES)
def test_points_follow_the_picture(mode: Resize) -> None:
    placement = place(200, 100, 64, 128, mode)
    got = centre(resize(blob(200, 100, 97, 55, 5), 64, 128, mode))
    np.testing.assert_allclose(got, placement.points(np.array([97.0, 55.0])), atol=0.1)
