"""What a training's folder says: how far it is, its curves, its newest pictures, its last words. Files are the truth."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from core.errors import BadRequest

SETTINGS, SAID = "settings.yaml", "said.log"  # written by the page; the trainer writes config.yaml, log.jsonl and monitor.jsonl
ATTEMPT = "--- "  # begins the line before what an attempt says
MOST_POINTS = 400  # of one curve
TAIL_BYTES, TAIL_LINES = 20_000, 200
KEPT = {"weights": "the finished weights", "best_fidelity": "the weights of the best fidelity", "first_converged": "the first that obeyed"}

Rows = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Told:
    """One training as its folder tells it. step: the last that was logged or saved; saved: the newest checkpoint, 0 without one.

    usable: a ControlNet that can be drawn with, and what it is. problem: its last words, where it failed.
    """

    name: str
    settings: dict[str, Any]
    step: int
    saved: int
    log: Rows = field(default_factory=list)
    measured: Rows = field(default_factory=list)
    grid: Path | None = None
    said: str = ""
    problem: str | None = None
    usable: tuple[Path, str] | None = None

    @property
    def steps(self) -> int:
        return int(self.settings.get("train", {}).get("steps", 0))

    @property
    def finished(self) -> bool:
        return self.usable is not None and self.usable[0].name == "weights" and self.saved >= self.steps

    @property
    def seconds_left(self) -> float | None:
        left = self.log[-1].get("left_s") if self.log else None
        return float(left) if isinstance(left, int | float) else None


def names(runs: Path) -> list[str]:
    """The trainings in a folder, the newest first."""
    found = {path.parent for pattern in (SETTINGS, "config.yaml") for path in runs.glob(f"*/{pattern}")}
    return [folder.name for folder in sorted(found, key=lambda folder: (-changed(folder), folder.name))]


def usable(folder: Path) -> tuple[Path, str] | None:
    """A training's ControlNet that can be drawn with, and what it is: the finished one where there is one."""
    return next(((folder / name, what) for name, what in KEPT.items() if (folder / name / "config.json").is_file()), None)


def changed(folder: Path) -> int:
    """When a training last wrote something, in nanoseconds."""
    parts = ("log.jsonl", "monitor.jsonl", SETTINGS, "config.yaml", SAID, "weights", "checkpoints", "grids")
    return max((path.stat().st_mtime_ns for part in parts if (path := folder / part).exists()), default=0)


def settings_of(folder: Path) -> Path:
    """The file of its settings: the trainer's own, which is complete, or what the page asked for.

    Raises:
        BadRequest: it has none.
    """
    for name in ("config.yaml", SETTINGS):
        if (folder / name).is_file():
            return folder / name
    raise BadRequest(f"there is no training {folder.name!r}: choose another")


def read(folder: Path) -> Told:
    """What a training's folder says now.

    Raises:
        BadRequest: it is no training's folder, or its settings cannot be read.
    """
    path = settings_of(folder)
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert isinstance(settings, dict)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AssertionError):
        raise BadRequest(f"the settings of training {folder.name!r} cannot be read ({path.name} is no YAML): choose another") from None
    log, said = _rows(folder / "log.jsonl"), _tail(folder / SAID)
    saved = max((int(one.name[5:]) for one in folder.glob("checkpoints/step-*") if one.name[5:].isdigit()), default=0)
    return Told(
        name=folder.name,
        settings=settings,
        step=max([saved, *(int(row["step"]) for row in log[-1:])]),
        saved=saved,
        log=_thinned(log),
        measured=_rows(folder / "monitor.jsonl"),
        grid=max(folder.glob("grids/step-*.png"), default=None),
        said=said,
        problem=_problem(said),
        usable=usable(folder),
    )


def curve(rows: Rows, **series: str) -> list[tuple[int, float, str]]:
    """(step, value, name) of every row that holds a number under a key. series: name = key."""
    return [
        (int(row["step"]), float(row[key]), name.replace("_", " "))
        for name, key in series.items()
        for row in rows
        if isinstance(row.get(key), int | float)
    ]


def _rows(path: Path) -> Rows:
    """The rows of a log; where a training that was cut did some steps again, the later ones count."""
    rows: Rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    for row in _parsed(lines):
        while rows and rows[-1]["step"] >= row["step"]:
            rows.pop()
        rows.append(row)
    return rows


def _parsed(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # the last line of a training that is writing it, or was killed
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield row


def _thinned(rows: Rows) -> Rows:
    stride = -(-len(rows) // MOST_POINTS) or 1
    return rows[::-1][::stride][::-1]


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-TAIL_LINES:])


def _problem(said: str) -> str | None:
    """The last words of an attempt that failed; None where it was stopped, has finished or goes on."""
    lines = said.rpartition(ATTEMPT)[2].strip().splitlines()
    if not lines or lines[-1] == "limn: interrupted" or "stopped after step" in lines[-1]:
        return None
    if lines[-1].startswith("limn: "):
        return lines[-1].removeprefix("limn: ")
    unforeseen = "Traceback (most recent call last):" in lines and re.match(r"[A-Za-z_.]+(Error|Exception)\b", lines[-1])
    return lines[-1] if unforeseen else None


def short(folder: Path) -> str:
    """A path from here where it lies below."""
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
