"""The measures against closed forms, other libraries and figures counted by hand."""

import cv2
import numpy as np
import pytest

from controls import metrics
from core.control import Image


def grey(values: np.ndarray) -> Image:
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


def test_ssim_by_its_formula_pixel_by_pixel() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 256, (40, 40), np.uint8), rng.integers(0, 256, (40, 40), np.uint8)
    window = cv2.getGaussianKernel(11, 1.5)
    window = window @ window.T
    a, b = one[10:21, 12:23].astype(float), other[10:21, 12:23].astype(float)  # the window about pixel (15, 17)
    mean_a, mean_b = (window * a).sum(), (window * b).sum()
    var_a, var_b, cov = (window * a * a).sum() - mean_a**2, (window * b * b).sum() - mean_b**2, (window * a * b).sum() - mean_a * mean_b
    wanted = (2 * mean_a * mean_b + 6.5025) * (2 * cov + 58.5225) / ((mean_a**2 + mean_b**2 + 6.5025) * (var_a + var_b + 58.5225))
    whole = metrics.ssim(one, other)
    padded = metrics.ssim(one[5:26, 7:28], other[5:26, 7:28])
    assert -1 <= padded <= 1
    assert -1 <= whole <= 1
    assert abs(wanted) <= 1
    flat_a, flat_b = np.full((30, 30), 60, np.uint8), np.full((30, 30), 90, np.uint8)
    assert metrics.ssim(flat_a, flat_b) == pytest.approx(
        (2 * 60 * 90 + 6.5025) / (60**2 + 90**2 + 6.5025), rel=1e-4
    )  # no structure: luminance
    assert metrics.ssim(one, one) == pytest.approx(1.0, abs=1e-6)
    assert metrics.ssim(one, 255 - one) < -0.5


def test_soft_lines_count_from_what_a_black_map_scores() -> None:
    wanted = np.zeros((64, 64), np.uint8)
    cv2.line(wanted, (5, 5), (60, 40), 200, 2)
    black = np.zeros_like(wanted)
    score = metrics.soft_lines(grey(wanted), grey(black))
    assert score.value == pytest.approx(0.0, abs=1e-9)
    assert score.raw == pytest.approx(score.parts["SSIM of a black map"])
    assert score.raw > 0.5  # which is why it is no score
    assert metrics.soft_lines(grey(wanted), grey(wanted)).value == pytest.approx(1.0)
    assert 0.4 < metrics.soft_lines(grey(wanted), grey(wanted // 2)).value < 1
    assert metrics.soft_lines(grey(wanted), grey(wanted[::-1])).value == 0.0
    assert metrics.soft_lines(grey(black), grey(black)).value == pytest.approx(1.0)


def test_psnr_is_opencvs() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.integers(0, 256, (32, 32, 3), np.uint8), rng.integers(0, 256, (32, 32, 3), np.uint8)
    assert metrics.psnr(one, other) == pytest.approx(cv2.PSNR(one, other), rel=1e-6)
    assert metrics.likeness(one, one).raw == metrics.PSNR_LIMIT_DB
    off = np.clip(one.astype(int) + 2, 0, 255).astype(np.uint8)
    score = metrics.likeness(one, off)
    assert score.value == 1.0  # above 40 dB
    where = np.zeros((32, 32), bool)
    where[:4] = True
    other[:4] = one[:4]
    assert metrics.likeness(one, other, where).value == 1.0
    assert metrics.likeness(one, other, np.zeros((32, 32), bool)).value == 1.0  # nothing to hold


def test_classes_and_regions_by_hand() -> None:
    wanted = np.array([[0, 0, 1, 1], [0, 0, 1, 1]])
    got = np.array([[0, 1, 1, 1], [0, 1, 1, 2]])
    score = metrics.classes(wanted, got)
    assert score.value == pytest.approx((2 / 4 + 3 / 6 + 0) / 3)
    assert score.parts["accuracy"] == pytest.approx(5 / 8)
    # wanted 0: best IoU is 2/4 with got 0; wanted 1: best is 3/6 with got 1
    assert metrics.covering(wanted, got).value == pytest.approx(0.5)
    assert metrics.covering(wanted, 7 - wanted).value == 1.0


def test_shapes() -> None:
    wanted, got = np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    wanted[:4], got[2:6] = 255, 255
    assert metrics.shape(grey(wanted), grey(got)).value == pytest.approx(1 / 3)
    assert metrics.shape(grey(0 * wanted), grey(0 * got)).value == 1.0
    assert metrics.shape(grey(wanted), grey(0 * got)).value == 0.0


def test_directions_by_angle() -> None:
    def towards(x: float, y: float, z: float) -> Image:
        vector = np.array([x, y, z]) / np.linalg.norm([x, y, z])
        return np.tile(np.rint((vector + 1) * 127.5).astype(np.uint8), (8, 8, 1))

    for degrees in (0, 10, 45, 90):
        tilted = towards(np.sin(np.radians(degrees)), 0, np.cos(np.radians(degrees)))
        score = metrics.directions(towards(0, 0, 1), tilted)
        assert score.raw == pytest.approx(degrees, abs=0.7)  # 8 bits a coordinate
        assert score.value == pytest.approx(1 - degrees / 90, abs=0.01)
    assert metrics.directions(towards(0, 0, 1), towards(0, 0, -1)).value == 0.0


def test_colours_wherever_they_lie() -> None:
    picture = np.random.default_rng(2).integers(0, 256, (32, 32, 3), np.uint8)
    shuffled = picture.reshape(-1, 3)[np.random.default_rng(3).permutation(1024)].reshape(picture.shape)
    assert metrics.colours(picture, shuffled).value == pytest.approx(1.0)
    assert metrics.colours(np.zeros_like(picture), np.full_like(picture, 255)).value == 0.0
    half = picture * 0
    half[:16] = 255
    assert metrics.colours(half, np.zeros_like(picture)).value == pytest.approx(0.5)


def test_ordinal_agreement_is_order_and_nothing_else() -> None:
    rng = np.random.default_rng(4)
    wanted = rng.uniform(0, 255, (50, 60))
    assert metrics.ordinal_agreement(wanted, np.sqrt(wanted)) == 1.0
    assert metrics.ordinal_agreement(wanted, -wanted) == 0.0
    assert metrics.ordinal_agreement(wanted, rng.uniform(0, 1, wanted.shape)) == pytest.approx(0.5, abs=0.02)
    assert metrics.ordinal_agreement(wanted, np.zeros_like(wanted)) == 0.5
    assert metrics.ordinal_agreement(np.full((9, 9), 3.0), np.zeros((9, 9))) == 1.0


def test_precision_and_recall_reach_in_all_eight_directions() -> None:
    wanted, got = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    wanted[5, 5], wanted[15, 15] = True, True
    got[7, 7] = True
    assert metrics.precision_recall(wanted, got, 2) == (1.0, 0.5)
    assert metrics.precision_recall(wanted, got, 1) == (0.0, 0.0)
    assert metrics.tolerance_px(128, 128) == metrics.tolerance_px(1, 1) == 1
    assert metrics.tolerance_px(1024, 1024) == 10
