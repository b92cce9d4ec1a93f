"""A few real pairs to train on."""

from pathlib import Path

import cv2
import numpy as np

from core.images import encode_png


def write_pairs(folder: Path, count: int = 4) -> Path:
    """A dataset of the layout `folders`: rectangles of different colours, 128×128, their edges, a caption each."""
    rng = np.random.default_rng(0)
    for name in ("images", "canny"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        image_HWC = np.full((128, 128, 3), rng.integers(0, 256, 3), np.uint8)
        x, y = rng.integers(10, 60, 2)
        image_HWC[y : y + 50, x : x + 50] = rng.integers(0, 256, 3)
        edges_HWC = np.repeat(cv2.Canny(image_HWC, 50, 100)[..., None], 3, axis=2)
        (folder / "images" / f"{number}.png").write_bytes(encode_png(image_HWC))
        (folder / "images" / f"{number}.txt").write_text("a red cube on grass")
        (folder / "canny" / f"{number}.png").write_bytes(encode_png(edges_HWC))
    return folder
