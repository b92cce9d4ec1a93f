"""Flat circles before toyland's grounds and skies, with their outlines: the first lesson of a ControlNet, its truth known to the pixel.

    DIR/prompt.json    {"source": "source/0.png", "target": "target/0.png", "prompt": "a red circle on grass by day", "colour": "red", …}

The layout and the lesson, from an outline to a disc of the colour that is said, are those of ControlNet's own tutorial, fill50k. The
pictures are toyland's, so that the embedded autoencoder can show them and the base knows all the words but "circle". A row also says where
its circle is, so that what is drawn can be measured.

Source: Zhang et al., "Adding Conditional Control to Text-to-Image Diffusion Models", 2023, and its repository's docs/train.md.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from core.errors import BadRequest
from core.files import publish
from core.images import encode_png
from toyland import scene
from toyland.captions import article
from toyland.render import ALBEDO, render

Image = NDArray[np.uint8]  # RGB, HWC

PROMPTS = "prompt.json"
COLOURS = tuple(colour for colour in scene.COLOURS if colour != "white")  # which snow and clouds are too
RADIUS = (0.12, 0.30)  # of the picture's side
MARGIN = 0.03
OUTLINE_PX = 2.0
SUPERSAMPLES = 4  # per axis


@dataclass(frozen=True)
class Circle:
    """One circle: the seed of what is behind it, its colour, the ground's name; centre and radius as shares of the picture's side."""

    seed: int
    colour: str
    ground: str
    x: float
    y: float
    radius: float

    @property
    def caption(self) -> str:
        """What is said of it."""
        return f"{article(self.colour)} {self.colour} circle on {self.ground} by day"

    def cover(self, size: int, inside_px: float = 0.0) -> NDArray[np.float64]:
        """How much of every pixel lies inside the circle, its radius `inside_px` smaller: (size, size) from 0 to 1."""
        fine = (np.arange(size * SUPERSAMPLES) + 0.5) / SUPERSAMPLES
        distance = np.hypot(fine[None, :] - self.x * size, fine[:, None] - self.y * size)
        blocks = (distance < self.radius * size - inside_px).reshape(size, SUPERSAMPLES, size, SUPERSAMPLES)
        share_HW: NDArray[np.float64] = blocks.mean(axis=(1, 3))
        return share_HW

    def picture(self, size: int) -> Image:
        """The disc before an empty ground by day, RGB uint8 (size, size, 3)."""
        empty = replace(scene.sample(self.seed), ground=self.ground, time="day", things=(), figure=None, solids=())
        cover_HW1 = self.cover(size)[..., None]
        drawn_HWC = cover_HW1 * rgb(self.colour) + (1 - cover_HW1) * render(empty, size).picture_HWC
        return (drawn_HWC + 0.5).astype(np.uint8)

    def outline(self, size: int) -> Image:
        """Its outline, white on black, inside its edge: RGB uint8 (size, size, 3)."""
        ring_HW = self.cover(size) - self.cover(size, OUTLINE_PX) > 0.5
        return np.repeat((ring_HW * np.uint8(255))[..., None], 3, axis=2)


@dataclass(frozen=True)
class Measured:
    """How well pictures obey: intersection over union of the disc that is seen with the true one, and its colour's error, CIELAB ΔE."""

    iou: float
    colour_error: float


def rgb(colour: str) -> NDArray[np.float64]:
    """A colour of toyland in full light, 0 to 255."""
    return np.asarray(ALBEDO[colour]) ** (1 / 2.2) * 255


def sample(seed: int) -> Circle:
    """The circle of a seed, wholly inside the picture."""
    rng = np.random.default_rng([2027, seed])
    colour, ground = str(rng.choice(COLOURS)), str(rng.choice(scene.GROUNDS))
    radius = float(rng.uniform(*RADIUS))
    x, y = (float(value) for value in rng.uniform(radius + MARGIN, 1 - radius - MARGIN, 2))
    return Circle(seed, colour, ground, x, y, radius)


def build(out: Path, count: int, *, seed: int = 0, size: int = 128, on_progress: Callable[[int], None] | None = None) -> Path:
    """Writes `count` circles, seeds `seed` … `seed + count - 1`, and returns the path of `prompt.json`, which is written last.

    on_progress is told how many are done.

    Raises:
        BadRequest: fewer than one circle.
        DiskFull: no room is left.
    """
    if count < 1:
        raise BadRequest(f"count = {count}: a dataset has at least 1 circle")
    rows = []
    for index in range(count):
        circle = sample(seed + index)
        names = {"source": f"source/{index}.png", "target": f"target/{index}.png"}
        publish(out / names["source"], encode_png(circle.outline(size)))
        publish(out / names["target"], encode_png(circle.picture(size)))
        rows.append({**names, "prompt": circle.caption, **asdict(circle)})
        if on_progress:
            on_progress(index + 1)
    prompts = out / PROMPTS
    publish(prompts, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return prompts


def measure(circle: Circle, picture_HWC: Image) -> Measured:
    """How well a square picture shows a circle.

    The disc that is seen are the pixels nearer to the median colour inside the true disc than to the median of their own row outside it, so
    that shape is judged apart from colour. The colour's error is that of the median inside.
    """
    true_HW = circle.cover(len(picture_HWC)) > 0.5
    lab_HWC = cv2.cvtColor((picture_HWC / np.float32(255)).astype(np.float32), cv2.COLOR_RGB2LAB).astype(np.float64)
    inside = np.median(lab_HWC[true_HW], axis=0)
    behind_H1C = np.stack([np.median(row_WC[~inside_W], axis=0) for row_WC, inside_W in zip(lab_HWC, true_HW, strict=True)])[:, None]
    seen_HW = np.linalg.norm(lab_HWC - inside, axis=2) < np.linalg.norm(lab_HWC - behind_H1C, axis=2)
    iou = (seen_HW & true_HW).sum() / (seen_HW | true_HW).sum()
    return Measured(float(iou), float(np.linalg.norm(inside - _lab(circle.colour))))


def _lab(colour: str) -> NDArray[np.float64]:
    pixel = (rgb(colour) / 255).astype(np.float32)[None, None]
    return np.asarray(cv2.cvtColor(pixel, cv2.COLOR_RGB2LAB)[0, 0], np.float64)
