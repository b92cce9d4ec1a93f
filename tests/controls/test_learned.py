"""The embedded estimators on pictures larger than what they look at."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest

from controls import estimators, learned
from core.control import Image
from toyland.render import render
from toyland.scene import sample


def wide_scene() -> Image:
    """A scene with a person, 288 x 256."""
    seed = next(seed for seed in range(20) if sample(seed, "test").figure is not None)
    picture_HWC = cv2.resize(render(sample(seed, "test"), 128).picture_HWC, (256, 256), interpolation=cv2.INTER_CUBIC)
    return cv2.copyMakeBorder(picture_HWC, 0, 0, 16, 16, cv2.BORDER_REPLICATE)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], Any]:
    def see(kind: str, longest_px: int) -> Any:
        monkeypatch.setattr(learned, "LONGEST_PX", longest_px)
        estimate = estimators.need(kind)
        return estimate(wide_scene())

    return see


def test_a_picture_that_is_made_smaller_first_has_the_same_depth_and_pose(seen: Callable[[str, int], Any]) -> None:
    whole, smaller = seen("depth", 4096), seen("depth", 144)
    assert smaller.shape == whole.shape == (256, 288)
    assert np.abs(smaller.astype(int) - whole).mean() < 4  # of 255
    whole, smaller = seen("pose", 4096), seen("pose", 144)
    assert smaller.shape == whole.shape == (1, 18, 2)
    assert np.nanmax(np.abs(smaller - whole)) < 4  # half a cell of what the network sees


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1)])
def test_a_long_strip_takes_no_square_of_its_length(shape: tuple[int, int]) -> None:
    """20,000 pixels squared are 1.2 GB, and a strip may have sixteen million."""
    strip = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    assert max(learned._narrowed(strip).shape) == learned.LONGEST_PX
    assert estimators.need("depth")(strip).shape == shape
    assert estimators.need("pose")(strip).shape[1:] == (18, 2)
