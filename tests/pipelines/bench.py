"""One family's tiny model with controls and pictures, as the cells of `tests.pipelines.matrix` exercise it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.request import ControlUnit, RenderRequest
from pipelines.family import Family
from pipelines.steering import Steering
from renderer import Picture, Renderer

STEPS, SIDE = 3, 64


@dataclass(frozen=True)
class Bench:
    """One family's tiny model with two ControlNets beside it, and pictures to control and begin with."""

    name: str
    renderer: Renderer
    pictures: Path

    @property
    def family(self) -> Family:
        return self.renderer.base(self.renderer.model)

    def request(self, **values: Any) -> RenderRequest:
        """A small, guided request."""
        guided = {"true_cfg_scale": 2.5} if self.family.guidance != "classifier_free" else {"guidance_scale": 2.5}
        plain = {"prompt": "a red sphere", "width": SIDE, "height": SIDE, "steps": STEPS, "sampler": "euler", "seed": 7}
        return RenderRequest(**(plain | guided | values))

    def unguided(self, **values: Any) -> RenderRequest:
        return self.request(**({"guidance_scale": 1.0, "true_cfg_scale": 1.0} | values))

    def draw(self, *values: RenderRequest) -> list[Any]:
        """The requests' first pictures, as whole numbers."""
        return [pixels(self.renderer.render(value)[0]) for value in values]

    def control(self, kind: str = "canny", **values: Any) -> ControlUnit:
        return ControlUnit(kind=kind, image=self.pictures / "depth.png", ready=True, **values)

    @contextmanager
    def counted(self) -> Iterator[dict[str, list[int]]]:
        """The rows of every call of the base network and of the ControlNets."""
        calls: dict[str, list[int]] = {"base": [], "control": []}
        family, predict, residuals = self.family, self.family.predict, Steering.residuals

        def counted_predict(x: Any, *others: Any) -> Any:
            calls["base"].append(x.shape[0])
            return predict(x, *others)

        def counted_residuals(steering: Steering, x: Any, *others: Any) -> Any:
            calls["control"].append(x.shape[0])
            return residuals(steering, x, *others)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(family, "predict", counted_predict)
            patch.setattr(Steering, "residuals", counted_residuals)
            yield calls


def pixels(picture: Picture) -> Any:
    return np.asarray(picture.image).astype(int)


def far(one: Any, other: Any) -> bool:
    return bool(np.abs(one - other).max() > 1)


def near(one: Any, other: Any) -> bool:
    """Equal to rounding: a level of 255 may tip over."""
    return bool(np.abs(one - other).max() <= 1)
