"""What the command line shows: tables, progress bars, and the report on finished pictures. rich is imported when something is shown."""

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from core.provenance import Record


def table(*columns: str, right: Sequence[str] = ()) -> "Table":
    """An empty table; the columns named in `right` are aligned to the right."""
    from rich import box
    from rich.table import Table

    empty = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        whole = column == columns[0]  # the row's name is never broken
        empty.add_column(column, justify="right" if column in right else "left", overflow="fold", no_wrap=whole)
    return empty


def show(filled: "Table") -> None:
    """Prints a table on stdout; its cells are plain text, whatever brackets they hold."""
    from rich.console import Console

    Console(markup=False, highlight=False, emoji=False).print(filled)


def warn(warnings: Sequence[str]) -> None:
    """One line on stderr for each."""
    for warning in warnings:
        print(f"limn: warning: {warning}", file=sys.stderr)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, if that is a terminal; yields a function that is told how much of `total` is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def report(found: "Sequence[tuple[Path, Record]]", more: dict[str, Any], as_json: bool) -> None:
    """What was drawn, how well it obeys its controls, and where it lies: a table, or one JSON object that `more` is added to.

    more: `seconds`, and what else belongs into the JSON; `sheet`, a path, is named last in place of the folder.
    """
    if as_json:
        print(json.dumps({"pictures": [_values(path, record) for path, record in found], **more}))
        return
    filled = table("picture", "prompt", "seed", "fidelity", right=("seed",))
    for path, record in found:
        words = record.request.prompt if record.prompt is None else record.prompt
        filled.add_row(path.name, words, str(record.seed), "\n".join(fidelity_lines(record)))
    show(filled)
    warn(sorted({note for _, record in found for note in record.notes}))
    where = more.get("sheet") or found[0][0].parent
    print(f"{len(found)} picture{'s' * (len(found) != 1)} in {more['seconds']:.1f} s: {where}")


def fidelity_lines(record: "Record") -> list[str]:
    """One line for each control: its metric, its score from 0 to 1, and the raw value where that has a unit of its own."""
    lines = []
    for unit, control in zip(record.request.controls, record.controls, strict=True):
        score = control.fidelity
        raw = f" ({score.raw:.1f} {score.unit})" if score and score.unit else ""
        lines.append(f"{unit.kind}: {score.metric} {score.value:.2f}{raw}" if score else f"{unit.kind}: not measured")
    return lines


def _values(path: Path, record: "Record") -> dict[str, Any]:
    """A picture for machines; `fidelity` has an entry for each control, whose `score` is null where it cannot be measured."""
    fidelity = [
        {"kind": unit.kind, "score": control.fidelity and control.fidelity.model_dump()}
        for unit, control in zip(record.request.controls, record.controls, strict=True)
    ]
    return {"path": str(path), "seed": record.seed, "fidelity": fidelity, "notes": record.notes}


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the block is left: an import that is cut off would leave half a module behind.

    Who starts this process may have blocked the signal from its very beginning; here it is let through.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals go to the main thread
        return
    caught: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt
