"""`limn verify`: pictures drawn again from their own records, and compared pixel by pixel.

On the same device with the same weights and versions they are equal bit for bit; where they are not, it is said what differs and how far
the pictures are apart.
"""

import contextlib
import json
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from batch.store import Folder, pictures
from batch.work import Drawer, OpenRenderer
from core import terminal
from core.control import Image
from core.errors import BadRequest, LimnError, UserError
from core.images import decode
from core.provenance import Record, read_record
from core.request import ROWS_OWN, RenderRequest
from pipelines.opening import Opening
from renderer import Picture, Renderer

DIFFERENT = 3  # exit code
RECORDS_HELD = 512  # read before the first of them is drawn, so that what was drawn together is found


@dataclass(frozen=True)
class Verdict:
    """What came of one picture. psnr_db: None where it is equal or was not drawn; differs: what is not as it was, in words."""

    path: Path
    equal: bool
    psnr_db: float | None = None
    differs: tuple[str, ...] = ()
    error: str = ""


def verify(paths: Sequence[Path], *, as_json: bool, model: str | None = None, opening: Opening | None = None) -> int:
    """Prints a verdict for every picture; the exit code: 0 where all are equal. model: where the record's own lies now, or another.

    Raises:
        BadRequest: there is no picture.
    """
    for path in paths:
        if not path.exists():
            raise BadRequest(f"{str(path)!r} does not exist: give pictures, or folders of them")
    found = list(_pictures(paths))
    if not found:
        raise BadRequest(f"{', '.join(map(str, paths))}: no picture that Limn made lies there")
    verdicts = []
    for verdict in judge(found, model, opening):
        verdicts.append(verdict)
        if as_json:
            print(json.dumps(_values(verdict)), flush=True)
    if not as_json:
        table = terminal.table("picture", "verdict", "what differs")
        for verdict in verdicts:
            table.add_row(verdict.path.name, _words(verdict), "\n".join(verdict.differs) or verdict.error)
        terminal.show(table)
    equal = sum(verdict.equal for verdict in verdicts)
    if not as_json:
        print(f"{equal} of {len(verdicts)} pictures are equal bit for bit")
    return 0 if equal == len(verdicts) else DIFFERENT


def judge(paths: Sequence[Path], model: str | None = None, opening: Opening | None = None) -> Iterator[Verdict]:
    """A verdict for every picture, drawn again on as many threads and in the same row of a batch as large as it was.

    model: by default the one that each record names; opening: how it is opened, by default as this machine would.
    """
    drawer: Drawer | None = None
    for start in range(0, len(paths), RECORDS_HELD):
        records: dict[Path, Record] = {}
        for path in paths[start : start + RECORDS_HELD]:
            try:
                records[path] = _with_model(read_record(path), model)
            except UserError as error:
                yield Verdict(path, False, error=str(error))
        if records:
            drawer = drawer or _drawer(opening or Opening())
            for some in redrawings(records):
                yield from _judge_together(some, records, drawer)


def _drawer(opening: Opening) -> Drawer:
    """A renderer with nothing loaded, for every record names its model, and one that is missing is no other picture's fault."""
    device = OpenRenderer(device=opening.device).device_of(0)
    return Renderer(replace(opening, device=device).engine(), "toyland")


def _with_model(record: Record, model: str | None) -> Record:
    return record if model is None else record.model_copy(update={"request": record.request.model_copy(update={"model": model})})


def redrawings(records: Mapping[Path, Record]) -> list[dict[int, Path]]:
    """What to draw together: pictures by the row they had, of one request, or where requests shared a batch, of requests alike."""
    found: dict[Hashable, list[dict[int, Path]]] = {}
    for path, record in records.items():
        mixed = record.batch_rows > 1
        row = record.batch_row if mixed else record.index
        rounds = found.setdefault(
            (record.threads, record.batch_rows, _alike(record.request) if mixed else record.request.canonical_json()), []
        )
        free = next((one for one in rounds if row not in one), None)
        if free is None:
            rounds.append(free := {})
        free[row] = path
    return [one for rounds in found.values() for one in rounds]


def _alike(request: RenderRequest) -> Hashable:
    """What requests have in common that share a batch, as far as it can be told without their texts; see `pipelines.mixing`."""
    controls = tuple((unit.kind, unit.model, unit.start, unit.end, unit.mode, unit.layer_weights) for unit in request.controls)
    return (request.model_dump_json(exclude=set(ROWS_OWN)), controls)


def _judge_together(paths: Mapping[int, Path], records: Mapping[Path, Record], drawer: Drawer) -> Iterator[Verdict]:
    """Draws pictures again and compares them. paths: by row, or by their number in their one request."""
    first = records[next(iter(paths.values()))]
    rows = first.batch_rows
    try:
        with on_threads(first.threads):
            if rows == 1:
                drawn = drawer.render_many([first.request])[0]
                again = {index: drawn[index] for index in paths}
            else:
                # A row's bits depend on how many rows there are and on which of them it is, not on what lies in the others.
                requests = [records[paths.get(row, paths[min(paths)])].request for row in range(rows)]
                again = {row: pictures[0] for row, pictures in enumerate(drawer.render_many(requests)) if row in paths}
    except LimnError as error:
        if len(paths) > 1:
            for row, path in paths.items():
                yield from _judge_together({row: path}, records, drawer)
        else:
            yield Verdict(next(iter(paths.values())), False, error=str(error))
        return
    for row, path in paths.items():
        if rows > 1 and len(paths) > 1 and again[row].record.batch_rows != rows:  # they could not be mixed after all
            yield from _judge_together({row: path}, records, drawer)
        else:
            yield compare(path, records[path], again[row])


@contextlib.contextmanager
def on_threads(count: int | None) -> Iterator[None]:
    """Computes on so many threads of the CPU; None for as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compare(path: Path, record: Record, again: Picture) -> Verdict:
    """A picture with the one that was drawn again."""
    was_HWC, is_HWC = decode(path), np.asarray(again.image)
    differs = tuple(differences(record, again.record))
    if was_HWC.shape == is_HWC.shape and np.array_equal(was_HWC, is_HWC):
        return Verdict(path, True, differs=differs)
    return Verdict(path, False, psnr_db(was_HWC, is_HWC), differs or ("nothing that the record knows of: the pixels were changed",))


def differences(was: Record, now: Record) -> Iterator[str]:
    """What is not as it was when the picture was made."""
    before = {(weight.part, weight.file): weight.sha256 for weight in was.weights}
    after = {(weight.part, weight.file): weight.sha256 for weight in now.weights}
    for part, file in sorted(before.keys() | after.keys()):
        if before.get((part, file)) != after.get((part, file)):
            yield f"weights: {part} {file}"
    for name in sorted(was.versions.keys() | now.versions.keys()):
        if was.versions.get(name) != now.versions.get(name):
            yield f"version: {name} {was.versions.get(name, 'none')}, now {now.versions.get(name, 'none')}"
    for name in ("device", "dtype", "threads"):
        if getattr(was, name) not in (None, getattr(now, name)):
            yield f"{name}: {getattr(was, name)}, now {getattr(now, name)}"
    if (was.batch_row, was.batch_rows) != (now.batch_row, now.batch_rows):
        yield f"batch: row {was.batch_row} of {was.batch_rows}, now row {now.batch_row} of {now.batch_rows}"
    for i, (old, new) in enumerate(zip(was.controls, now.controls, strict=True)):
        for name in ("source_sha256", "mask_sha256", "map_sha256"):
            if getattr(old, name) != getattr(new, name):
                yield f"control {i}: its {name.partition('_')[0]}"
    for name in ("init_sha256", "mask_sha256"):
        if getattr(was, name) != getattr(now, name):
            yield f"the {name.partition('_')[0]} picture"
    if was.notes != now.notes:
        yield "notes: " + "; ".join(sorted(set(was.notes) ^ set(now.notes)))


def psnr_db(first_HWC: Image, second_HWC: Image) -> float | None:
    """Peak signal to noise in decibels; None for pictures of different sizes and for equal ones."""
    if first_HWC.shape != second_HWC.shape:
        return None
    error = float(np.mean((first_HWC.astype(np.float64) - second_HWC.astype(np.float64)) ** 2))
    return None if error == 0.0 else 10.0 * math.log10(255.0**2 / error)


def _pictures(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from (path / name for name in sorted(pictures(Folder(path).names())))
        else:
            yield path


def _values(verdict: Verdict) -> dict[str, Any]:
    values = {"path": str(verdict.path), "equal": verdict.equal, "psnr_db": verdict.psnr_db, "differs": verdict.differs}
    return values | ({"error": verdict.error} if verdict.error else {})


def _words(verdict: Verdict) -> str:
    if verdict.equal:
        return "equal"
    if verdict.error:
        return "cannot be drawn"
    return "another size" if verdict.psnr_db is None else f"differs, {verdict.psnr_db:.1f} dB"
