"""What the comparisons with diffusers draw: words, a seed, a size that is not square, pictures of noise and masks."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pipelines.family import Place
from tests.tinymodels import SIZE_PX, control_map

PROMPT, NEGATIVE, SEED, STEPS = "A red sphere left of a blue cube", "snow at night", 7, 6
PLACE = Place(torch.device("cpu"), torch.float32)
WIDTH, HEIGHT = 96, SIZE_PX  # rows taken for columns show
# diffusers' pipelines call numpy.array on a tensor, its ControlNet an old name of one of its classes; only the oracle does, never our loop.
ORACLES_OWN = [
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning"),
]


def picture(seed: int) -> NDArray[np.uint8]:
    """A picture or map of noise at the size that is drawn."""
    return np.concatenate([control_map(seed), control_map(seed + 100)[:, : WIDTH - SIZE_PX]], axis=1)


def left_half() -> NDArray[np.uint8]:
    """A mask: 255 on the left."""
    mask_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask_HW[:, : WIDTH // 2] = 255
    return mask_HW


def image(pixels: NDArray[np.uint8]) -> Image.Image:
    """As diffusers' pipelines take it."""
    return Image.fromarray(pixels)


# What `ours` is given to draw from noise, from a picture, and in a hole of it.
WAYS: dict[str, dict[str, Any]] = {
    "txt2img": {},
    "img2img": {"image_HWC": picture(5), "strength": 0.8},
    "inpaint": {"image_HWC": picture(5), "strength": 0.8, "mask_HW": left_half()},
}
