"""One picture's scores against its controls, given or found in its record."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import controls
from controls.fidelity import measure, seen, why_not
from controls.overlay import overlay
from controls.prepare import Prepared, load_map, settled
from core.control import Control, Image, Score
from core.errors import BadRequest, UserError
from core.files import sha256_file
from core.images import decode, read_png_text
from core.provenance import Record, read_record
from core.request import ControlUnit, Frozen
from core.sheet import contact_sheet
from evaluation.known import Bounds, bounds

REMEDY = "say what to hold it against with --control KIND=FILE"


@dataclass(frozen=True, eq=False)
class Scored:
    """A picture against one control. prepared: its map at the picture's size; known: the model's floor and ceiling for the kind."""

    unit: ControlUnit
    params: Frozen
    score: Score | None
    prepared: Prepared
    picture_HWC: Image
    known: Bounds | None

    @property
    def wanted_HWC(self) -> Image:
        return self.prepared.map_HWC

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.prepared.warnings

    @property
    def control(self) -> Control:
        return controls.get(self.unit.kind)

    @cached_property
    def got_HWC(self) -> Image:
        """What the control's extractor finds in the picture; black where it cannot be asked."""
        found_HWC = seen(self.control, self.picture_HWC, self.params, self.prepared.scale)
        return np.zeros_like(self.wanted_HWC) if found_HWC is None else found_HWC

    @property
    def why_not(self) -> str:
        """Why there is no score."""
        return "; ".join([why_not(self.control, self.params), *self.warnings])

    def sentence(self) -> str:
        """Kind, metric and score in one line."""
        if self.score is None:
            return f"{self.unit.kind}: not measured"
        raw = f" ({self.score.raw:.1f} {self.score.unit})" if self.score.unit else ""
        return f"{self.unit.kind}: {self.score.metric} {self.score.value:.2f}{raw}"

    def values(self) -> dict[str, Any]:
        """For machines."""
        score, known = self.score, self.known
        measured = None if score is None else {"value": score.value, "metric": score.metric, "raw": score.raw, "unit": score.unit}
        return {
            "kind": self.unit.kind,
            "score": measured and measured | {"parts": dict(score.parts if score else {})},
            "floor": known and known.floor,
            "ceiling": known and known.ceiling,
            "warnings": list(self.warnings),
        }


def score_picture(picture: Path, units: Sequence[ControlUnit] = (), *, model: str | None = None) -> list[Scored]:
    """A picture's scores, one for each control; without units, against those that its record names.

    model: whose estimators, floor and ceiling to take; by default the record's, else toyland's estimators and neither floor nor ceiling.

    Raises:
        BadImage: picture or map cannot be read.
        BadRequest: no control is given and the record, or what it names, cannot be found; unknown kind or setting; nothing can be measured.
        BadModel: a named network cannot be loaded.
    """
    picture_HWC = decode(picture)
    record = _record(picture) if not units or model is None else None
    found = list(units) or _recorded(picture, record)
    name = model or (record.request.model if record else "toyland")
    limits = bounds(name) if model or record else {}  # of a picture from elsewhere toyland's say nothing
    scored = [_scored(unit, picture_HWC, name, limits.get(unit.kind)) for unit in found]
    if all(one.score is None for one in scored):
        raise BadRequest(f"{str(picture)!r} cannot be scored: {'; '.join(f'{one.unit.kind}: {one.why_not}' for one in scored)}")
    return scored


def agreement(scored: Sequence[Scored]) -> Image:
    """For each control a strip: what was wanted, what the picture has, and both in one (`controls.overlay`), with the score below."""
    strips = [[one.wanted_HWC, one.got_HWC, overlay(one.control, one.wanted_HWC, one.got_HWC)] for one in scored]
    captions = [f"wanted, got, agreement (orange: missing or too dark, blue: too much or too bright)\n{one.sentence()}" for one in scored]
    return contact_sheet(strips, captions)


def _scored(unit: ControlUnit, picture_HWC: Image, model: str, known: Bounds | None) -> Scored:
    control = controls.get(unit.kind)
    params = settled(control, control.parse_params(unit.params), model)
    prepared = load_map(unit, *picture_HWC.shape[1::-1], model=model)
    score = measure(control, prepared.map_HWC, picture_HWC, params, where_HW=prepared.mask_HW, scale=prepared.scale)
    return Scored(unit, params, score, prepared, picture_HWC, known)


def _record(picture: Path) -> Record | None:
    """The picture's record, if it is a PNG that has one."""
    try:
        return read_record(picture) if "limn" in read_png_text(picture) else None
    except UserError:
        return None


def _recorded(picture: Path, record: Record | None) -> list[ControlUnit]:
    """The record's controls with their files found again, by their digests."""
    if record is None:
        raise BadRequest(f"{str(picture)!r} holds no Limn record that could name its controls: {REMEDY}")
    if not record.request.controls:
        raise BadRequest(f"{str(picture)!r} was drawn without a control: {REMEDY}")
    units = []
    for unit, noted in zip(record.request.controls, record.controls, strict=True):
        files = {"image": (unit.image, noted.source_sha256)}
        if unit.mask is not None and noted.mask_sha256 is not None:
            files["mask"] = (unit.mask, noted.mask_sha256)
        units.append(
            unit.model_copy(update={name: _again(picture, unit.kind if name == "image" else name, *file) for name, file in files.items()})
        )
    return units


def _again(picture: Path, kind: str, path: Path, digest: str) -> Path:
    """A file that the record names: where it was, or beside the picture."""
    places = (path, picture.parent / path, picture.parent / path.name)
    found = next((place for place in places if place.is_file() and sha256_file(place) == digest), None)
    if found is None:
        changed = "has changed since" if path.is_file() else "is not there any more"
        raise BadRequest(f"{str(picture)!r} was drawn with {kind}={str(path)!r}, which {changed}: {REMEDY}")
    return found
