"""The one loop over jobs, whoever draws them: give, hear, note, and stop in order.

What is done is what lies in the store under its name; what failed, under `failed/`. Both are looked at once, at the start.
"""

import contextlib
import json
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from batch.crew import Crew
from batch.job import Job
from batch.journal import Journal
from batch.store import Store, failure_name
from batch.work import Begun, Broken, Event, Lost, Outcome

Show: TypeAlias = Callable[["Tally", Job | None, Outcome | None], None]

_LISTEN_S = 0.2
_LOOK_AT_DISK_S = 2.0


@dataclass(frozen=True)
class Limits:
    """When to try again and when to stop. retries: of a job that failed by no fault of its request."""

    retries: int = 1
    max_hours: float | None = None
    min_free_gb: float = 0.0


@dataclass
class Tally:
    """How far a run is. there: done before it began; fidelity: of the pictures of this run, where it was measured."""

    total: int
    there: int = 0
    done: int = 0
    failed: int = 0
    failed_before: int = 0
    retried: int = 0
    reason: str = "finished"
    started: float = field(default_factory=time.monotonic)
    fidelity: list[float] = field(default_factory=list)

    @property
    def left(self) -> int:
        return self.total - self.there - self.done - self.failed - self.failed_before

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Pictures a second."""
        return self.done / max(self.seconds, 1e-9)

    def values(self) -> dict[str, Any]:
        """For machines."""
        known = self.fidelity
        return {
            "total": self.total,
            "there": self.there,
            "done": self.done,
            "failed": self.failed + self.failed_before,
            "left": self.left,
            "seconds": round(self.seconds, 3),
            "rate": round(self.rate, 4),
            "seconds_left": round(self.left / self.rate, 1) if self.done else None,
            "fidelity": round(sum(known) / len(known), 4) if known else None,
        }


class Stop:
    """How often somebody asked to stop: once for "finish what is begun", twice for "now"."""

    def __init__(self) -> None:
        self.asked, self.by = 0, ""

    def ask(self, by: str) -> None:
        self.asked, self.by = self.asked + 1, by


@contextlib.contextmanager
def signals(stop: Stop) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask to stop, in the main thread; elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
    before = {number: signal.signal(number, lambda found, _: stop.ask(names[signal.Signals(found)])) for number in names}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Drive:
    """One run over `jobs`, none of which is done. recorded: files that say why some of them failed before."""

    def __init__(self, jobs: Sequence[Job], crew: Crew, store: Store, journal: Journal, *, tally: Tally, recorded: Set[str]) -> None:
        self._waiting, self._crew, self._store, self._journal = deque(jobs), crew, store, journal
        self.tally, self._recorded = tally, recorded
        self._flying: dict[str, Job] = {}
        self._attempts: Counter[str] = Counter()
        self._next_look = 0.0

    def run(self, limits: Limits, stop: Stop, show: Show) -> Tally:
        """Until all is done or something says stop; what has been begun is finished unless it is asked for twice.

        show: is told of every job that ends, and now and then how far the run is.

        Raises:
            LimnError: nothing could be done any more; what is done stays done.
        """
        stopping = False
        try:
            while self._flying or (self._waiting and not stopping):
                if not stopping and (reason := self._reason(limits, stop)):
                    stopping, self.tally.reason = True, reason
                    self._crew.drop()
                if stop.asked > 1:
                    break
                while not stopping and self._waiting and self._crew.room > 0:
                    job = self._waiting.popleft()
                    self._flying[job.key] = job
                    self._crew.give(job)
                for event in self._crew.events(_LISTEN_S):
                    for job, outcome in self._hear(event, limits):
                        show(self.tally, job, outcome)
                self._journal.commit()
                show(self.tally, None, None)
        except BaseException:
            self._crew.close(now=True)
            raise
        self._crew.close(now=stop.asked > 1)
        return self.tally

    def _reason(self, limits: Limits, stop: Stop) -> str:
        """Why no more may be begun; empty where it may."""
        if stop.asked:
            return f"stopped by {stop.by}"
        if limits.max_hours is not None and self.tally.seconds > limits.max_hours * 3600:
            return f"stopped after --max-hours {limits.max_hours:g}"
        if limits.min_free_gb and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_AT_DISK_S
            free = self._store.free_bytes()
            if free is not None and free < limits.min_free_gb * 1e9:
                return f"stopped with {free / 1e9:.2f} GB free, under --min-free-gb {limits.min_free_gb:g}"
        return ""

    def _hear(self, event: Event, limits: Limits) -> Iterator[tuple[Job, Outcome]]:
        """Notes an event; the jobs that it ends."""
        match event:
            case Broken(error):
                raise error
            case Begun(key):
                if key in self._flying:
                    self._journal.write("started", **_who(self._flying[key]))
            case Lost(keys, begun, reason):
                for key in reversed(keys):
                    yield from self._end(Outcome(key, "failed" if key in begun else "returned", error=reason), limits)
            case Outcome():
                yield from self._end(event, limits)

    def _end(self, outcome: Outcome, limits: Limits) -> Iterator[tuple[Job, Outcome]]:
        job = self._flying.pop(outcome.key, None)
        if job is not None and self._settle(job, outcome, limits):
            yield job, outcome

    def _settle(self, job: Job, outcome: Outcome, limits: Limits) -> bool:
        """Notes what became of a job; False where it will be tried again."""
        if outcome.status == "returned":
            self._waiting.appendleft(job)
            return False
        self._attempts[job.key] += 1
        if outcome.status == "failed":
            if not outcome.lasting and self._attempts[job.key] <= limits.retries:
                self.tally.retried += 1
                self._waiting.append(job)
                return False
            values = _who(job) | {"error": outcome.error, "attempts": self._attempts[job.key], "fidelity": outcome.fidelity}
            data = json.dumps({**values, "time": round(time.time(), 3)}, indent=1).encode()
            self._store.publish(failure_name(job.name), data)
            self._journal.write("failed", **values)
            self.tally.failed += 1
            return True
        if failure_name(job.name) in self._recorded:
            self._store.remove(failure_name(job.name))
        self._journal.write("done", **_who(job), seconds=outcome.seconds, fidelity=outcome.fidelity)
        self.tally.done += 1
        self.tally.fidelity += [value for value in outcome.fidelity.values() if value is not None]
        return True


def _who(job: Job) -> dict[str, Any]:
    return {"key": job.key, "name": job.name, "line": job.line}
