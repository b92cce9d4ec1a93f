"""Segmentation maps held against each other: files that were JPEG, pictures of very many colours, margins."""

import io
import tracemalloc

import numpy as np
import PIL.Image
import pytest

from controls.geometry import place
from controls.palettes import ADE20K, COCO
from controls.segmentation import compare_maps
from core.control import Image

PALETTES = pytest.mark.parametrize("palette", [ADE20K, COCO], ids=["ade20k", "coco"])


def painted(palette: np.ndarray, side: int = 128) -> Image:
    """Sixteen squares of sixteen classes."""
    labels = np.random.default_rng(0).permutation(100)[:16].reshape(4, 4)
    map_HWC: Image = palette[labels.repeat(side // 4, axis=0).repeat(side // 4, axis=1)]
    return map_HWC


def jpeg(image_HWC: Image, quality: int) -> Image:
    file = io.BytesIO()
    PIL.Image.fromarray(image_HWC).save(file, "JPEG", quality=quality)
    return np.asarray(PIL.Image.open(file))


@PALETTES
@pytest.mark.parametrize("quality", [95, 75])
def test_a_map_that_was_a_jpeg_asks_for_the_same_classes(palette: np.ndarray, quality: int) -> None:
    """Its colours are hundreds, one for each of which it was asked for before."""
    exact = painted(palette)
    stored = jpeg(exact, quality)
    assert len(np.unique(stored.reshape(-1, 3), axis=0)) > 100
    score = compare_maps(stored, exact)
    assert score is not None
    assert score.value > 0.99
    turned = compare_maps(stored, exact[::-1])
    assert turned is not None
    assert turned.value < 0.2


@PALETTES
def test_a_margin_asks_for_nothing(palette: np.ndarray) -> None:
    exact = painted(palette)
    placement = place(128, 128, 192, 128, "fill")
    assert np.array_equal(placement.pad(exact)[:, 32:160], exact)
    everywhere = np.pad(exact, ((0, 0), (32, 32), (0, 0)), mode="edge")  # what a network finds in a picture without margins
    score = compare_maps(placement.pad(exact), everywhere)
    assert score is not None
    assert score.value == 1.0


def test_the_palettes_are_told_apart() -> None:
    score = compare_maps(painted(ADE20K), painted(COCO))
    assert score is not None
    assert score.value == 0.0


def test_a_picture_of_very_many_colours_is_measured_in_little_memory() -> None:
    """One that was passed as a finished map: of every pair of its colours there was a number once, 8 GB for 128 x 128 pixels."""
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 256, (2, 128, 128, 3), np.uint8)
    tracemalloc.start()
    score = compare_maps(one, other)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert score is not None
    assert score.value < 0.05
    assert peak < 64 * 2**20
    assert compare_maps(np.zeros_like(one), other) is None  # black is no class
