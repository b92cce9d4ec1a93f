"""What has happened, a line of JSON each: `journal.jsonl`. The files are the truth; the journal can be made again from them.

    {"event": "run", "time": …, "total": 1000, "there": 250, "command": …}
    {"event": "started", "time": …, "key": …, "name": …, "line": 7}
    {"event": "done", "time": …, "key": …, "name": …, "line": 7, "seconds": 1.2, "fidelity": {"canny": 0.81}}
    {"event": "failed", "time": …, "key": …, "name": …, "line": 7, "error": …, "attempts": 2}
    {"event": "end", "time": …, "reason": "finished"}

A line may be torn where the machine stopped; it is passed over, and the next run begins on a line of its own.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from batch.store import JOURNAL, Folder, Store, pictures, read_failures
from core.errors import BadImage, BadRequest, DiskFull
from core.provenance import Record, read_record

_REMOTE_LINES = 500  # of a remote journal's part: an object store cannot append
_REMOTE_S = 15.0


class Journal(Protocol):
    """Something that remembers events."""

    def write(self, event: str, **values: Any) -> None:
        """Note an event; it is kept at the next `commit`."""
        ...

    def commit(self) -> None:
        """Bring everything that was noted to the disk."""
        ...

    def close(self) -> None:
        """Commit, and stop."""
        ...


class FileJournal:
    """A journal in a folder: appended to, and forced to the disk once a commit."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL
        self._waiting: list[str] = []
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            size = os.fstat(self._descriptor).st_size
            if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
                os.write(self._descriptor, b"\n")
        except OSError as error:
            raise BadRequest(f"{str(self._path)!r} cannot be written ({(error.strerror or '').lower()}): choose another folder") from None

    def write(self, event: str, **values: Any) -> None:
        self._waiting.append(_line(event, values))

    def commit(self) -> None:
        if not self._waiting:
            return
        data, self._waiting = "".join(self._waiting).encode(), []
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
            os.fsync(self._descriptor)
        except OSError as error:
            raise DiskFull(
                f"no room for {str(self._path)!r} ({(error.strerror or '').lower()}): free some space and start again"
            ) from error

    def close(self) -> None:
        try:
            self.commit()
        finally:
            os.close(self._descriptor)


class RemoteJournal:
    """A journal where nothing can be appended to: parts of it, each published whole again while it grows."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._start, self._part = f"{time.time():.3f}", 0
        self._lines: list[str] = []
        self._published, self._last = 0, 0.0

    def write(self, event: str, **values: Any) -> None:
        self._lines.append(_line(event, values))

    def commit(self, *, at_once: bool = False) -> None:
        full = len(self._lines) >= _REMOTE_LINES
        if len(self._lines) == self._published or not (full or at_once or time.monotonic() - self._last > _REMOTE_S):
            return
        self._store.publish(f"{JOURNAL}.d/{self._start}-{self._part:06}.jsonl", "".join(self._lines).encode())
        self._published, self._last = len(self._lines), time.monotonic()
        if full:
            self._part, self._lines, self._published = self._part + 1, [], 0

    def close(self) -> None:
        self.commit(at_once=True)


def open_journal(store: Store) -> Journal:
    """The journal of a store, to be continued."""
    return FileJournal(store.path) if isinstance(store, Folder) else RemoteJournal(store)


def read_journal(store: Store) -> Iterator[dict[str, Any]]:
    """Every event in order; torn lines are passed over."""
    if isinstance(store, Folder):
        parts = [store.read(JOURNAL) or b""]
    else:
        parts = [store.read(name) or b"" for name in sorted(store.names()) if name.startswith(f"{JOURNAL}.d/")]
    for part in parts:
        for line in part.split(b"\n"):
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event:
                yield event


def rebuild(folder: Path) -> list[dict[str, Any]]:
    """The journal's events as far as the files tell: every picture and every failure, by their times.

    Seconds are not known. A picture of another program's is passed over.
    """
    store = Folder(folder)
    names = store.names()
    events = []
    for name in pictures(names):
        try:
            record = read_record(folder / name)
        except (BadImage, BadRequest):
            continue
        when = (folder / name).stat().st_mtime
        events.append({"event": "done", "time": round(when, 3), "name": name, "seconds": None, "fidelity": fidelity_of(record)})
    for failure in read_failures(store, names).values():
        events.append({"event": "failed", **failure})
    return sorted(events, key=lambda event: (event.get("time", 0.0), str(event.get("name"))))


def write_rebuilt(folder: Path) -> int:
    """Make the journal again from the files; how many events it has. The last run's line stays: no file says what was asked for.

    Raises:
        DiskFull, BadRequest: the folder cannot be written to.
    """
    runs = [event for event in read_journal(Folder(folder)) if event["event"] == "run"]
    events = [*runs[-1:], *rebuild(folder)]
    Folder(folder).publish(JOURNAL, "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events).encode())
    return len(events)


def fidelity_of(record: Record) -> dict[str, float | None]:
    """How well a picture obeys each of its controls, by `kind`, or `kind 1`, `kind 2`, … where one is there twice."""
    kinds = [unit.kind for unit in record.request.controls]
    return {
        (kind if kinds.count(kind) == 1 else f"{kind} {kinds[: i + 1].count(kind)}"): (
            round(control.fidelity.value, 6) if control.fidelity is not None else None
        )
        for i, (kind, control) in enumerate(zip(kinds, record.controls, strict=True))
    }


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of what was measured; None where nothing was."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _line(event: str, values: dict[str, Any]) -> str:
    return json.dumps({"event": event, "time": round(time.time(), 3), **values}, ensure_ascii=True) + "\n"
