"""All pictures of the output folder: an index in memory that is rebuilt from the files whenever they have changed.

A search is words that all stand in the prompt, and conditions: `kind:canny`, `model:toyland`, `seed:7`, `fidelity>0.5`, `after:2026-11-01`,
`before:2026-11-30`. With `in:trash` it looks there instead.
"""

import datetime
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.errors import BadImage, BadRequest
from core.provenance import Record, read_record

_TRASH, _IN_TRASH = ".trash", "in:trash"
_NOT_PICTURES = {"batches", "comparisons", "controls"}
_CONDITION = re.compile(r"^(kind|model|seed|after|before|fidelity|in)(:|>=|<=|>|<)(.+)$")


@dataclass(frozen=True)
class Entry:
    """One picture. fidelity: the lowest of its controls', None where none was measured."""

    path: Path
    time: float
    record: Record

    @property
    def fidelity(self) -> float | None:
        return min((control.fidelity.value for control in self.record.controls if control.fidelity is not None), default=None)

    @property
    def prompt(self) -> str:
        return self.record.prompt or self.record.request.prompt


class Library:
    """The pictures below a folder."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._known: dict[Path, tuple[tuple[int, int], Entry | None]] = {}
        self._lock = threading.Lock()

    def entries(self) -> list[Entry]:
        """Every picture with a record, those in the trash too, newest first; only files that are new or have changed are read."""
        with self._lock:
            known, self._known = self._known, {}
            for path in self._files():
                try:
                    stat = path.stat()
                except OSError:  # it went in the meantime
                    continue
                state = (stat.st_mtime_ns, stat.st_size)
                before = known.get(path)
                self._known[path] = before if before is not None and before[0] == state else (state, _read(path, stat.st_mtime))
            found = [entry for _, entry in self._known.values() if entry is not None]
        return sorted(found, key=lambda entry: (-entry.time, entry.path.name))

    def search(self, text: str) -> list[Entry]:
        """The pictures that answer to a search.

        Raises:
            BadRequest: a condition that cannot be read.
        """
        words = text.split()
        tests, trashed = [_test(word) for word in words if word != _IN_TRASH], _IN_TRASH in words
        return [entry for entry in self.entries() if self.is_trashed(entry.path) == trashed and all(test(entry) for test in tests)]

    def is_trashed(self, path: Path) -> bool:
        """Whether a picture lies in the trash."""
        return path.is_relative_to(self.out / _TRASH)

    def discard(self, path: Path) -> Path:
        """Move a picture to the trash, `.trash` in the output folder; its new place.

        Raises:
            BadRequest: it is no picture of this library, or has gone.
        """
        if path not in self._known or self.is_trashed(path) or not path.is_file():
            raise BadRequest(f"{path.name!r} is no longer in the output folder: search again")
        return _moved(path, self.out / _TRASH / path.relative_to(self.out))

    def recover(self, path: Path) -> Path:
        """Move a picture from the trash to where it lay; its place there.

        Raises:
            BadRequest: it is no picture of the trash, has gone, or was drawn again in the meantime.
        """
        if path not in self._known or not self.is_trashed(path) or not path.is_file():
            raise BadRequest(f"{path.name!r} is no longer in the trash: search again")
        target = self.out / path.relative_to(self.out / _TRASH)
        if target.exists():
            raise BadRequest(f"{path.name!r} is in the output folder already, for it was drawn again: search for it there")
        return _moved(path, target)

    def _files(self) -> list[Path]:
        return [
            path for path in self.out.rglob("*.png") if path.is_file() and not _NOT_PICTURES & set(path.relative_to(self.out).parts[:-1])
        ]


def _moved(path: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return path.replace(target)


def _read(path: Path, time: float) -> Entry | None:
    try:
        return Entry(path, time, read_record(path))
    except (BadImage, BadRequest):
        return None


def _test(word: str) -> Callable[[Entry], bool]:
    condition = _CONDITION.match(word)
    if condition is None:
        return lambda entry: word.lower() in entry.prompt.lower()
    name, sign, value = condition.groups()
    if name == "kind" and sign == ":":
        return lambda entry: value in [unit.kind for unit in entry.record.request.controls]
    if name == "model" and sign == ":":
        return lambda entry: value.lower() in entry.record.request.model.lower()
    try:
        if name == "seed" and sign == ":":
            return lambda entry, seed=int(value): entry.record.seed == seed  # type: ignore[misc]
        if name in ("after", "before") and sign == ":":
            day = datetime.datetime.fromisoformat(value).timestamp()
            return (lambda entry: entry.time >= day) if name == "after" else (lambda entry: entry.time < day)
        if name == "fidelity" and sign != ":":
            limit = float(value)
            above = sign.startswith(">")
            return lambda entry: entry.fidelity is not None and (entry.fidelity >= limit if above else entry.fidelity <= limit)
    except (ValueError, OverflowError):
        pass
    known = "kind:canny, model:toyland, seed:7, fidelity>0.5, after:2026-11-01, before:2026-11-30 or in:trash"
    raise BadRequest(f"search {word[:60]!r}: write {known}")
