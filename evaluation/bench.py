"""Draws one case after the other, with and without its controls, and measures each picture: the fidelity protocol.

The floor is the same prompt and noise without the control, the ceiling the true picture through the model's autoencoder: what a model that
makes no mistake would draw. Equal settings give equal numbers: all noise comes from the seed and the case's number.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import controls
from controls.fidelity import measure
from controls.prepare import settled
from core.control import Control, Image, Score
from core.errors import BadRequest
from core.files import publish
from core.images import encode_png
from core.request import ControlUnit, Frozen, RenderRequest, build_request
from evaluation.cases import Case, Cases
from renderer import Renderer

WEIGHTS = (0.25, 0.5, 0.75, 1.25, 1.5)  # beside 0 and 1, which are the floor and the value
ENDS = (0.1, 0.2, 0.4, 0.6, 0.8)  # beside 0 and 1


@dataclass(frozen=True)
class Settings:
    """What is measured, and how it is drawn.

    controlnets: networks by kind; by default those beside the model, else published ones. seeds: pictures of each case. sweep: of so many
    cases the control is also drawn at other weights and with shorter windows. fields: of the request, where the model's own defaults are
    not wanted.
    """

    model: str = "toyland"
    kinds: tuple[str, ...] = ("canny", "depth", "pose")
    controlnets: Mapping[str, str] = field(default_factory=dict)
    seeds: int = 1
    seed: int = 0
    sweep: int = 20
    fields: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None


@dataclass(frozen=True)
class Reading:
    """The scores of one case under one setting, one for each seed: `value` from 0 to 1, `raw` in the metric's unit.

    what: "floor", "value", "ceiling", "weight" or "end"; at: the weight, or the end of the window.
    """

    case: int
    kind: str
    what: str
    at: float
    metric: str
    unit: str
    values: tuple[float, ...]
    raws: tuple[float, ...]


class Bench:
    """One process's renderer and measures. folder: where control maps are put for the renderer to read."""

    def __init__(self, settings: Settings, cases: Cases, folder: Path) -> None:
        """
        Raises:
            BadRequest: an unknown kind, or one whose fidelity cannot be measured here.
            BadModel, Mismatch: the model or a network cannot be used.
        """
        self.settings, self.cases, self.folder = settings, cases, folder
        self.judges = {kind: _judge(kind, settings.model) for kind in settings.kinds}
        self.renderer = Renderer.open(settings.model, settings.device)

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height, as the settings or the model say."""
        from pipelines.planning import with_defaults

        request = with_defaults(self._request("", 0, ()), self.renderer.base(self.settings.model))
        return request.width, request.height

    def __call__(self, index: int) -> list[Reading]:
        """All readings of one case."""
        case = self.cases.case(index, self.settings.kinds, self.size, self.settings.model)
        plain = self.draw(case, index, ())
        copy_HWC = self._through_autoencoder(case.picture_HWC)
        found = []
        for kind, map_HWC in case.maps.items():
            path = self.folder / f"{kind}-{index}.png"
            publish(path, encode_png(map_HWC))
            unit = ControlUnit(kind=kind, image=path, ready=True, model=self.settings.controlnets.get(kind))
            drawn = {("floor", 0.0): plain, ("ceiling", 1.0): [copy_HWC], ("value", 1.0): self.draw(case, index, (unit,))}
            drawn |= {setting: self.draw(case, index, (changed,)) for setting, changed in self._swept(unit, index)}
            found += [self._reading(index, unit, setting, (map_HWC, pictures)) for setting, pictures in drawn.items()]
        return [reading for reading in found if reading is not None]

    def draw(self, case: Case, index: int, units: tuple[ControlUnit, ...]) -> list[Image]:
        """The case's pictures, one for each seed, with these controls."""
        return [np.asarray(picture.image) for picture in self.renderer.render(self._request(case.prompt, index, units))]

    def _request(self, prompt: str, index: int, units: tuple[ControlUnit, ...]) -> RenderRequest:
        count = self.settings.seeds
        own = {"prompt": prompt, "seed": self.settings.seed + index * count, "count": count, "controls": units}
        return build_request({"model": self.settings.model, **self.settings.fields, **own})

    def _swept(self, unit: ControlUnit, index: int) -> Iterator[tuple[tuple[str, float], ControlUnit]]:
        if index < self.settings.sweep:
            yield from ((("weight", weight), unit.model_copy(update={"weight": weight})) for weight in WEIGHTS)
            yield from ((("end", end), unit.model_copy(update={"end": end})) for end in ENDS)

    def _through_autoencoder(self, picture_HWC: Image) -> Image:
        from pipelines.images import tensor_to_pictures

        family = self.renderer.base(self.settings.model)
        return tensor_to_pictures(family.decode(family.encode_image(picture_HWC)))[0]

    def _reading(self, index: int, unit: ControlUnit, setting: tuple[str, float], maps: tuple[Image, Sequence[Image]]) -> Reading | None:
        control, params = self.judges[unit.kind]
        scores = [measure(control, maps[0], picture_HWC, params) for picture_HWC in maps[1]]
        known: list[Score] = [score for score in scores if score is not None]
        if not known:
            return None
        values, raws = tuple(score.value for score in known), tuple(score.raw for score in known)
        return Reading(index, unit.kind, *setting, known[0].metric, known[0].unit, values, raws)


def _judge(kind: str, model: str) -> tuple[Control, Frozen]:
    control = controls.get(kind)
    params = settled(control, control.parse_params({}), model)
    if not control.available(params):
        raise BadRequest(f"{kind}: no estimator is installed that could measure it: leave {kind} out of --controls")
    return control, params
