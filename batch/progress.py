"""How a long run shows itself: a bar on a terminal, lines of JSON for machines, and a word now and then where there is neither."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from batch.driver import Show, Tally
from batch.job import Job
from batch.times import duration
from batch.work import Outcome

_WORD_EVERY_S = 30.0


@contextmanager
def shown(as_json: bool) -> Iterator[Show]:
    """What `Drive.run` tells: JSON on stdout for every job that ends, or on stderr a bar, off a terminal a line now and then."""
    if as_json:
        yield _lines
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Words()
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("")

        def show(tally: Tally, job: Job | None, outcome: Outcome | None) -> None:
            bar.update(task, total=tally.total, completed=tally.total - tally.left, description=words(tally))

        yield show


def words(tally: Tally) -> str:
    """Rate, time left, failures and fidelity so far."""
    parts = [f"{tally.rate:.2f}/s"]
    if tally.done and tally.left:
        parts.append(f"{duration(tally.left / tally.rate)} left")
    if tally.failed + tally.failed_before:
        parts.append(f"{tally.failed + tally.failed_before} failed")
    if tally.fidelity:
        parts.append(f"fidelity {sum(tally.fidelity) / len(tally.fidelity):.2f}")
    return ", ".join(parts)


def _lines(tally: Tally, job: Job | None, outcome: Outcome | None) -> None:
    if job is None or outcome is None:
        return
    values = {"event": outcome.status, "name": job.name, "line": job.line, "fidelity": outcome.fidelity}
    if outcome.error:
        values["error"] = outcome.error
    print(json.dumps({**values, **tally.values()}), flush=True)


class _Words:
    def __init__(self) -> None:
        self._next = time.monotonic() + _WORD_EVERY_S

    def __call__(self, tally: Tally, job: Job | None, outcome: Outcome | None) -> None:
        if outcome is not None and outcome.status == "failed" and job is not None:
            print(f"limn: line {job.line} failed: {outcome.error}", file=sys.stderr, flush=True)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _WORD_EVERY_S
            print(f"limn: {tally.total - tally.left} of {tally.total}, {words(tally)}", file=sys.stderr, flush=True)
