"""A bench from beginning to end: cases shared out over processes, every finished case noted, report and plot published."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import controls
from core.errors import BadRequest
from core.files import output_folder, publish, sha256_file
from core.provenance import library_versions
from core.spread import default_workers, spread
from evaluation.bench import TOGETHER, Bench, Reading, Settings
from evaluation.cases import Cases
from evaluation.report import Report, build_report

NOTES, CURVES = "readings.jsonl", "fidelity.png"


def evaluate(
    settings: Settings, cases: Cases, out: Path, *, workers: int | None = None, on_progress: Callable[[int, int], None] | None = None
) -> Report:
    """Measures every case and publishes `evaluation.json`, `table.md` and, of a sweep, `fidelity.png` in `out`; stopped and started again,
    it goes on.

    workers: processes; by default one per core, or one where there is an accelerator. on_progress(done, cases) is called after every
    batch of cases.

    Raises:
        BadRequest: no case, an unknown kind, or one that cannot be measured here.
        BadModel, Mismatch: the model or a network cannot be used.
        DiskFull: `out` cannot be written to.
    """
    from evaluation.plot import plot
    from pipelines.engine import choose_place

    for name, number in (("count", len(cases)), ("seeds", settings.seeds)):
        if number < 1:
            raise BadRequest(f"{name} = {number}: give 1 at least")
    if not settings.kinds:
        raise BadRequest("no kind of control is named: give --controls canny,depth,…")
    for kind in (*settings.kinds, *settings.controlnets):
        controls.get(kind)
    settings = replace(settings, kinds=tuple(dict.fromkeys(settings.kinds)))  # a kind that is named twice is measured once
    described = _described(settings, cases)
    notes = Notes(output_folder(out) / NOTES, described)
    batches = [range(start, min(start + TOGETHER, len(cases))) for start in range(0, len(cases), TOGETHER)]
    left = [batch for batch in batches if not notes.done.keys() >= set(batch)]
    done = sum(map(len, batches)) - sum(map(len, left))
    processes = workers or default_workers(choose_place(settings.opening.device).device.type)
    with tempfile.TemporaryDirectory() as folder:
        for found in _measured(settings, cases, Path(folder), left, processes):
            notes.add(found)
            done += len(found)
            if on_progress:
                on_progress(done, len(cases))
    report = build_report([reading for index in range(len(cases)) for reading in notes.done[index]], settings.kinds, described)
    publish(out / "evaluation.json", report.as_json().encode())
    publish(out / "table.md", report.as_markdown().encode())
    if report.swept:
        publish(out / CURVES, plot(report))
    else:
        (out / CURVES).unlink(missing_ok=True)  # of other settings
    return report


class Notes:
    """The readings of finished cases, a line of JSON each, under a line that says how they were made; of other settings none counts."""

    def __init__(self, path: Path, described: dict[str, Any]) -> None:
        self._path, same = path, {name: value for name, value in described.items() if name != "count"}  # more cases may come later
        self._head = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()
        self.done: dict[int, list[Reading]] = dict(self._read())
        lines = [json.dumps({"settings": self._head}), *(_line(index, readings) for index, readings in self.done.items())]
        publish(path, "".join(f"{line}\n" for line in lines).encode())  # anew, so that a torn last line is gone

    def add(self, found: Mapping[int, list[Reading]]) -> None:
        """Notes finished cases."""
        self.done |= found
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(f"{_line(index, readings)}\n" for index, readings in found.items())

    def _read(self) -> Iterator[tuple[int, list[Reading]]]:
        try:
            head, *lines = self._path.read_text(encoding="utf-8").split("\n")
            if json.loads(head) != {"settings": self._head}:
                return
        except (OSError, ValueError):
            return
        for line in lines:
            try:
                noted = json.loads(line)
            except ValueError:  # the last line, torn
                continue
            readings = [Reading(**(one | {key: tuple(one[key]) for key in ("values", "raws")})) for one in noted["readings"]]
            yield noted["case"], readings


def _line(index: int, readings: list[Reading]) -> str:
    return json.dumps({"case": index, "readings": [asdict(reading) for reading in readings]})


def _measured(settings: Settings, cases: Cases, folder: Path, jobs: list[range], workers: int) -> Iterator[dict[int, list[Reading]]]:
    """The readings of each batch of cases, in the batches' order."""
    if workers > 1 and jobs:
        Bench(settings, cases, folder)  # what is wrong with a model is said here, once, and not by every process
    yield from spread(partial(Bench, settings, cases, folder), jobs, workers)


def _described(settings: Settings, cases: Cases) -> dict[str, Any]:
    """What another person needs to measure the same; other weights or libraries are another measurement."""
    from pipelines.engine import choose_place, default_control, resolve

    base = resolve(settings.model)
    beside = {kind: default_control(base, kind) for kind in settings.kinds}
    nets = {kind: resolve(settings.controlnets[kind]) if kind in settings.controlnets else beside[kind] for kind in settings.kinds}
    weights = _digests("base", base)
    for kind, path in nets.items():
        weights |= {} if path is None else _digests(kind, path)
    return {
        **asdict(settings),
        "kinds": list(settings.kinds),
        **cases.described(),
        "device": str(choose_place(settings.opening.device).device),
        "versions": library_versions(),
        "weights_sha256": weights,
    }


def _digests(part: str, path: Path) -> dict[str, str]:
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    return {f"{part}/{file.relative_to(path) if path.is_dir() else file.name}": sha256_file(file) for file in files}
