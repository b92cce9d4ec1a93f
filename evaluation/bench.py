"""Draws cases, a batch at a time, with and without their controls, and measures each picture: the fidelity protocol.

The floor is the same prompt and noise without the control, the ceiling the true picture through the model's autoencoder: what a model that
makes no mistake would draw. Equal settings give equal numbers: all noise comes from the seed and the case's number.
"""

from collections.abc import Mapping, Sequence
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
from pipelines.opening import Opening
from renderer import Renderer

WEIGHTS = (0.25, 0.5, 0.75, 1.25, 1.5)  # beside 0 and 1, which are the floor and the value
ENDS = (0.1, 0.2, 0.4, 0.6, 0.8)  # beside 0 and 1
SWEEP = (*(("weight", weight) for weight in WEIGHTS), *(("end", end) for end in ENDS))
TOGETHER = 8  # cases whose pictures are drawn in one batch; always the same ones, so that the numbers are


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
    opening: Opening = field(default_factory=Opening)


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
        self.renderer = Renderer.open(settings.model, **settings.opening.arguments)

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height, as the settings or the model say."""
        from pipelines.planning import with_defaults

        request = with_defaults(self._request(), self.renderer.base(self.settings.model))
        return request.width, request.height

    def __call__(self, indices: Sequence[int]) -> dict[int, list[Reading]]:
        """All readings of some cases, whose pictures are drawn together, by the case's number."""
        cases = {index: self.cases.case(index, self.settings.kinds, self.size, self.settings.model) for index in indices}
        plain = self.draw(cases, dict.fromkeys(indices))
        copies = {index: [self._through_autoencoder(case.picture_HWC)] for index, case in cases.items()}
        found: dict[int, list[Reading]] = {index: [] for index in indices}
        for kind in self.settings.kinds:
            units = {index: self._unit(index, kind, case.maps[kind]) for index, case in cases.items() if kind in case.maps}
            drawn = {("floor", 0.0): plain, ("ceiling", 1.0): copies, ("value", 1.0): self.draw(cases, units)}
            swept = [index for index in units if index < self.settings.sweep]
            for what, at in SWEEP if swept else ():
                changed = {index: units[index].model_copy(update={what: at}) for index in swept}
                drawn[what, at] = self.draw(cases, changed)
            for index in units:
                for setting, pictures in drawn.items():
                    if index in pictures:
                        found[index] += self._readings(index, kind, setting, (cases[index].maps[kind], pictures[index]))
        return found

    def draw(self, cases: Mapping[int, Case], units: Mapping[int, ControlUnit | None]) -> dict[int, list[Image]]:
        """Of each case that `units` names its pictures, one for each seed, with this control or without."""
        seeds = self.settings.seeds
        requests = [
            self._request(prompt=cases[index].prompt, seed=self.settings.seed + index * seeds + i, controls=() if unit is None else (unit,))
            for index, unit in units.items()
            for i in range(seeds)
        ]
        pictures = [np.asarray(picture.image) for (picture,) in self.renderer.render_many(requests)]
        return {index: pictures[place * seeds : (place + 1) * seeds] for place, index in enumerate(units)}

    def _request(self, **own: Any) -> RenderRequest:
        return build_request({"model": self.settings.model, **self.settings.fields, **own})

    def _unit(self, index: int, kind: str, map_HWC: Image) -> ControlUnit:
        path = self.folder / f"{kind}-{index}.png"
        publish(path, encode_png(map_HWC))
        return ControlUnit(kind=kind, image=path, ready=True, model=self.settings.controlnets.get(kind))

    def _through_autoencoder(self, picture_HWC: Image) -> Image:
        from pipelines.images import tensor_to_pictures

        family = self.renderer.base(self.settings.model)
        return tensor_to_pictures(family.decode(family.encode_image(picture_HWC)))[0]

    def _readings(self, index: int, kind: str, setting: tuple[str, float], seen: tuple[Image, Sequence[Image]]) -> list[Reading]:
        """One reading, or none where there is nothing to measure. seen: the map that was wanted, and the pictures."""
        control, params = self.judges[kind]
        scores = [measure(control, seen[0], picture_HWC, params) for picture_HWC in seen[1]]
        known: list[Score] = [score for score in scores if score is not None]
        if not known:
            return []
        values, raws = tuple(score.value for score in known), tuple(score.raw for score in known)
        return [Reading(index, kind, *setting, known[0].metric, known[0].unit, values, raws)]


def _judge(kind: str, model: str) -> tuple[Control, Frozen]:
    control = controls.get(kind)
    params = settled(control, control.parse_params({}), model)
    if not control.available(params):
        raise BadRequest(f"{kind}: no estimator is installed that could measure it: leave {kind} out of --controls")
    return control, params
