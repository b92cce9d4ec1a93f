"""Comparisons: a request varied along one to three axes, the pictures as one labelled grid, and what was measured."""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import controls
from core.control import Image
from core.errors import BadRequest, shortened, unknown_name
from core.images import decode
from core.provenance import Record
from core.request import RenderRequest, build_request
from core.sheet import contact_sheet
from web.compare_plot import Point

MOST_CELLS = 100

# What can be varied, as it is called on the page: where it stands in a request, and what its values are.
AXES: dict[str, tuple[str, type]] = {
    "prompt words": ("prompt", str),
    "seed": ("seed", int),
    "steps": ("steps", int),
    "guidance": ("guidance_scale", float),
    "sampler": ("sampler", str),
    "schedule": ("schedule", str),
    "model": ("model", str),
    "lora": ("loras", str),
    "control weight": ("controls.weight", float),
    "control start": ("controls.start", float),
    "control end": ("controls.end", float),
    "control mode": ("controls.mode", str),
    "control kind": ("controls.kind", str),
}
# What most people ask of a control: how much of it, and for how long.
WEIGHT_AND_WINDOW = (("control weight", "0, 0.25, 0.5, 0.75, 1, 1.5"), ("control end", "0.25, 0.5, 1"))

Done = Sequence[tuple["Cell", Path, Record]]


@dataclass(frozen=True)
class Axis:
    """One thing that is varied, and its values as they were written."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One picture of a comparison: its request, and its value on every axis by the axis' name."""

    request: RenderRequest
    at: dict[str, str]

    @property
    def labels(self) -> tuple[str, ...]:
        """What distinguishes it."""
        return tuple(value if name == "prompt words" else f"{name} {value}" for name, value in self.at.items())


def read_axis(name: str, text: str) -> Axis:
    """An axis from what is typed: values between commas, or in lines; whole numbers also as `1-4`.

    Raises:
        BadRequest: no such axis, no values, or a value that is no number where numbers are meant.
    """
    if name not in AXES:
        raise unknown_name("axis", name, AXES)
    values = [value.strip() for value in text.replace("\n", ",").split(",") if value.strip()]
    if AXES[name][1] is int:
        values = [one for value in values for one in _spread(value)]
    if not values:
        raise BadRequest(f"{name}: no values are given; write them between commas")
    return Axis(name, tuple(dict.fromkeys(values)))


def cells(base: RenderRequest, axes: Sequence[Axis]) -> list[Cell]:
    """The base request once for every combination, the first axis varying fastest.

    Raises:
        BadRequest: a combination is no request, an axis is there twice, or there are too many cells.
    """
    names = [axis.name for axis in axes]
    if not axes or len(set(names)) < len(names):
        raise BadRequest("a comparison needs at least one axis, and each only once: choose different ones")
    count = math.prod(len(axis.values) for axis in axes)
    if count > MOST_CELLS:
        raise BadRequest(f"{count} pictures in one comparison: the limit is {MOST_CELLS}; give fewer values")
    found = []
    for combination in itertools.product(*(axis.values for axis in reversed(axes))):
        values = combination[::-1]
        given = base.model_dump(exclude_unset=True) | {"count": 1}
        for axis, value in zip(axes, values, strict=True):
            _vary(given, axis, value)
        found.append(Cell(build_request(given), dict(zip(names, values, strict=True))))
    return found


def sheet(done: Done, columns: int) -> Image:
    """The pictures in a grid, with what distinguishes each and its fidelity below: RGB uint8 HWC."""
    captions = []
    for cell, _, record in done:
        scores = [
            f"{unit.kind} {control.fidelity.value:.2f}"
            for unit, control in zip(record.request.controls, record.controls, strict=True)
            if control.fidelity
        ]
        captions.append("\n".join([*cell.labels, *([", ".join(scores)] if scores else [])]))
    return contact_sheet([[decode(path)] for _, path, _ in done], captions, columns=columns, cell_px=192)


def points(done: Done) -> list[Point]:
    """What was measured of every picture, for a plot."""
    return [
        Point(cell.at, unit.kind, control.fidelity.value)
        for cell, _, record in done
        for unit, control in zip(record.request.controls, record.controls, strict=True)
        if control.fidelity is not None
    ]


def summary(done: Done, axes: Sequence[Axis]) -> str:
    """The comparison as JSON: its axes, and every picture's place on them, file, seed and fidelities."""
    cells = [
        {
            "at": cell.at,
            "file": path.name,
            "seed": record.seed,
            "fidelity": [None if control.fidelity is None else control.fidelity.value for control in record.controls],
        }
        for cell, path, record in done
    ]
    return json.dumps({"axes": {axis.name: axis.values for axis in axes}, "pictures": cells})


def is_number(axis: Axis) -> bool:
    """Whether pictures can be plotted along the axis."""
    return AXES[axis.name][1] in (int, float)


def _vary(given: dict[str, Any], axis: Axis, value: str) -> None:
    """One value put into a request's values. Names are checked here: a mistake in the last picture would be noticed late."""
    place, kind = AXES[axis.name]
    _check_name(place, value)
    try:
        typed = kind(value)
    except (ValueError, OverflowError):
        example = "numbers between commas, as in 1, 2" if kind is float else "whole numbers between commas, or as in 1-4"
        raise BadRequest(f"{axis.name} {shortened(value)} is not a number: write {example}") from None
    owner, _, own = place.partition(".")
    if own:
        if not given.get(owner):
            raise BadRequest(f"{axis.name}: there is no control in Create to vary: give one there first")
        changed: dict[str, Any] = {"params": {}} if own == "kind" else {}
        given[owner] = [dict(unit) | {own: typed} | changed for unit in given[owner]]
    elif place == "prompt":
        first = axis.values[0]
        if first not in given.get("prompt", ""):
            raise BadRequest(f"prompt words: the first, {shortened(first)}, does not stand in the prompt; the others take its place")
        given["prompt"] = given["prompt"].replace(first, value)
    elif place == "loras":
        name, _, weight = value.rpartition(":") if _is_float(value.rpartition(":")[2]) else (value, "", "1")
        given["loras"] = [] if value == "none" else [{"name": name, "weight": float(weight)}]
    else:
        given[place] = typed


def _check_name(place: str, value: str) -> None:
    """Raises BadRequest for a name that is in no registry."""
    if place == "controls.kind":
        controls.get(value)
    if place == "sampler":
        from pipelines.samplers import SAMPLERS

        if value not in SAMPLERS:
            raise unknown_name("sampler", value, SAMPLERS)
    if place == "schedule":
        from pipelines.schedules import SCHEDULES

        if value not in SCHEDULES:
            raise unknown_name("schedule", value, SCHEDULES)


def _is_float(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _spread(value: str) -> list[str]:
    low, dash, high = value.partition("-")
    if not (dash and low.isdecimal() and high.isdecimal() and len(value) < 40 and int(low) <= int(high)):
        return [value]
    if (count := int(high) - int(low) + 1) > MOST_CELLS:
        raise BadRequest(f"{value} are {count} values in one comparison: the limit is {MOST_CELLS} pictures; give fewer")
    return [str(one) for one in range(int(low), int(high) + 1)]
