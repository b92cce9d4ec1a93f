"""Measures a ControlNet that was trained on circles (`toyland.circles`) on ones it has never seen, beside floor and ceiling.

Floor: the same caption without the outline. Ceiling: the true picture through the autoencoder, which carries its blur but no mistake.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import BadRequest
from core.files import publish
from core.images import encode_png
from core.intervals import bootstrap
from core.request import ControlUnit, RenderRequest
from core.sheet import contact_sheet
from renderer import Renderer
from toyland import circles
from toyland.circles import Circle, Image, Measured

FIRST = 1_000_000  # seeds from here on are never built into a dataset of fewer circles
COLUMNS = ("floor", "value", "ceiling")
SHOWN = 12  # circles on the sheet


@dataclass
class Lesson:
    """What every circle's pictures were measured at, by column, and the strips outline, floor, value, truth of the first."""

    found: dict[str, list[Measured]] = field(default_factory=lambda: {column: [] for column in COLUMNS})
    strips: list[list[Image]] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)

    def rows(self) -> list[dict[str, Any]]:
        """One row a measure: its name, the mean of every column, and the 95% interval of the value's."""
        rows: list[dict[str, Any]] = []
        for name in ("iou", "colour_error"):
            values = {column: [getattr(one, name) for one in self.found[column]] for column in COLUMNS}
            row = {"measure": name, **{column: float(np.mean(values[column])) for column in COLUMNS}}
            rows.append(row | {"interval": bootstrap([[value] for value in values["value"]])})
        return rows

    def sheet(self) -> Image:
        """The first circles: outline, without it, with it, truth."""
        return contact_sheet(self.strips, self.captions, columns=3, cell_px=128, title="outline, without it, with it, truth")


@dataclass(frozen=True)
class Settings:
    """How the circles are drawn. net: the ControlNet's folder or file."""

    net: str
    model: str = "toyland"
    count: int = 64
    size: int = 128
    steps: int = 20
    guidance_scale: float = 4.0


def judge(settings: Settings, renderer: Renderer | None = None, on_progress: Callable[[int], None] | None = None) -> Lesson:
    """Draws and measures `count` circles. on_progress is told how many are done.

    Raises:
        BadRequest: no circle to measure.
        BadModel, Mismatch: the model or the ControlNet cannot be used.
    """
    from pipelines.engine import resolve
    from pipelines.images import tensor_to_pictures

    if settings.count < 1:
        raise BadRequest(f"count = {settings.count}: at least 1 circle is measured")
    renderer = renderer or Renderer.open(settings.model)
    family = renderer.engine.base(resolve(settings.model))
    lesson = Lesson()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(settings.count):
            circle = circles.sample(FIRST + number)
            true_HWC, outline_HWC = circle.picture(settings.size), circle.outline(settings.size)
            publish(path := Path(folder) / f"{number}.png", encode_png(outline_HWC))
            pictures = {
                "floor": _drawn(renderer, settings, circle, None),
                "value": _drawn(renderer, settings, circle, path),
                "ceiling": tensor_to_pictures(family.decode(family.encode_image(true_HWC)))[0],
            }
            measured = {column: circles.measure(circle, picture_HWC) for column, picture_HWC in pictures.items()}
            for column, one in measured.items():
                lesson.found[column].append(one)
            if number < SHOWN:
                value = measured["value"]
                lesson.strips.append([outline_HWC, pictures["floor"], pictures["value"], true_HWC])
                lesson.captions.append(f"{circle.caption}: IoU {value.iou:.2f}, colour error {value.colour_error:.0f}")
            if on_progress:
                on_progress(number + 1)
    return lesson


def _drawn(renderer: Renderer, settings: Settings, circle: Circle, outline: Path | None) -> Image:
    units = () if outline is None else (ControlUnit(kind="canny", image=outline, ready=True, model=settings.net),)
    request = RenderRequest(
        prompt=circle.caption,
        model=settings.model,
        width=settings.size,
        height=settings.size,
        steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        seed=circle.seed,
        controls=units,
    )
    (picture,) = renderer.render(request)
    return np.asarray(picture.image)
