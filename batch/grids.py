"""Products over every row: `seed=1..8`, `control.weight=0.5,0.75,1`, `canny.end=0.5,1`.

A key is a column of a manifest, `control.KEY` for all controls, or `KIND.KEY` for those of a kind; KEY is a field of the control or one of
its extractor's settings. Values are separated by commas, whole numbers may be given as FIRST..LAST; a value with a comma needs quotes.
"""

import csv
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import controls
from batch.manifest import Manifest, Problem
from batch.rows import BadRow, check_keys, parse_size, request_of
from core.errors import BadRequest, UserError, unknown_name
from core.request import ControlUnit, RenderRequest, build_request

MOST = 1_000_000
_RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})")


@dataclass(frozen=True)
class Axis:
    """One way in which rows are varied."""

    key: str
    values: tuple[str, ...]


def parse_axis(text: str) -> Axis:
    """One `--grid` value.

    Raises:
        BadRequest: it is written otherwise, or the key is unknown.
    """
    key, equals, values = text.partition("=")
    key = key.strip()
    if not equals or not key or not values.strip():
        raise BadRequest(f"--grid {text[:60]!r}: write KEY=VALUE,VALUE,… or KEY=FIRST..LAST")
    owner, dot, inner = key.rpartition(".")
    if dot:
        if owner != "control" and owner not in controls.names():
            raise unknown_name("grid key", owner, ("control", *controls.names()))
        if not inner or inner == "kind":
            raise BadRequest(f"--grid {text[:60]!r}: name what of the control is varied, as in control.weight")
    else:
        try:
            check_keys([key])
        except BadRow as error:
            raise BadRequest(f"--grid {error}") from None
    found: list[str] = []
    for part in next(csv.reader([values], skipinitialspace=True)):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            found.append(part.strip())
            continue
        first, last = int(match[1]), int(match[2])
        if last < first or last - first >= MOST:
            raise BadRequest(f"--grid {text[:60]!r}: {first}..{last} runs backwards or is longer than {MOST}")
        found += map(str, range(first, last + 1))
    return Axis(key, tuple(found))


def vary(manifest: Manifest, axes: Sequence[Axis]) -> Manifest:
    """Every good row once for every combination of values; a combination that is wrong is a problem of its row.

    Raises:
        BadRequest: more than a million rows would come of it.
    """
    if not axes:
        return manifest
    count = len(manifest.rows)
    for axis in axes:
        count *= len(axis.values)
    if count > MOST:
        raise BadRequest(f"the grid makes {count} rows, over the limit of {MOST}: give fewer values")
    found = Manifest(problems=list(manifest.problems))
    for row in manifest.rows:
        try:
            found.rows += [replace(row, request=request) for request in _varied(row.request, axes)]
        except UserError as error:
            found.problems.append(Problem(row.line, None, f"grid: {error}"))
    return found


def _varied(request: RenderRequest, axes: Sequence[Axis]) -> Iterator[RenderRequest]:
    for values in itertools.product(*(axis.values for axis in axes)):
        changed = request
        for axis, value in zip(axes, values, strict=True):
            changed = _changed(changed, axis.key, value)
        yield changed


def _changed(request: RenderRequest, key: str, value: str) -> RenderRequest:
    owner, dot, inner = key.rpartition(".")
    given: dict[str, Any] = {name: getattr(request, name) for name in request.model_fields_set}
    if not dot:
        if key == "size":
            width, height = parse_size(value)
            return build_request(given | {"width": width, "height": height})
        made = request_of({key: value}, Path())
        changes = {name: getattr(made, name) for name in made.model_fields_set}
        if key not in RenderRequest.model_fields and "controls" in changes:  # of that kind; the others stay
            changes["controls"] = (*(unit for unit in request.controls if unit.kind != key), *made.controls)
        return build_request(given | changes)
    if not any(owner in ("control", unit.kind) for unit in request.controls):
        raise BadRequest(f"{key}: the row has no {owner if owner != 'control' else 'control'}")
    units: Iterable[ControlUnit] = [_unit(unit, inner, value) if owner in ("control", unit.kind) else unit for unit in request.controls]
    return build_request(given | {"controls": tuple(units)})


def _unit(unit: ControlUnit, key: str, value: str) -> ControlUnit:
    control = controls.get(unit.kind)
    given = {name: getattr(unit, name) for name in unit.model_fields_set}
    if key in control.params.model_fields:
        checked = control.parse_params({**unit.params, key: value})
        given["params"] = checked.model_dump(mode="json", include={*unit.params, key})
    elif key in ControlUnit.model_fields:
        given[key] = value
    else:
        raise unknown_name(f"{unit.kind} key", key, [*ControlUnit.model_fields, *control.params.model_fields])
    return build_request({"controls": [given]}).controls[0]
