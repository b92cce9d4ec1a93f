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
from batch.planner import Bundle
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
    """How often somebody asked to stop: once for "finish what is begun", twice for "now".

    at_once: nothing is begun yet, so a signal breaks off whatever the main thread waits for.
    """

    def __init__(self) -> None:
        self.asked, self.by, self.at_once = 0, "", False

    def ask(self, by: str) -> None:
        self.asked, self.by = self.asked + 1, by


@contextlib.contextmanager
def signals(stop: Stop) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask to stop, in the main thread; elsewhere nothing changes.

    Raises:
        KeyboardInterrupt: inside, for a signal that comes while `stop.at_once` holds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}

    def ask(number: int, _: object) -> None:
        stop.ask(names[signal.Signals(number)])
        if stop.at_once:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, ask) for number in names}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Drive:
    """One run over bundles of jobs, none of which is done but those that are not wanted.

    recorded: files that say why some of them failed before.
    """

    def __init__(self, bundles: Sequence[Bundle], crew: Crew, store: Store, journal: Journal, *, tally: Tally, recorded: Set[str]) -> None:
        self._crew, self._store, self._journal = crew, store, journal
        self.tally, self._recorded = tally, recorded
        self._bundles = [bundle.jobs for bundle in bundles]  # by number
        self._number = {key: number for number, bundle in enumerate(bundles) for key in bundle.wanted}
        self._waiting = deque(range(len(bundles)))
        self._wanted = {number: set(bundle.wanted) for number, bundle in enumerate(bundles)}  # of those that wait
        self._flying: dict[str, Job] = {}
        self._attempts: Counter[str] = Counter()
        self._deaths: Counter[int] = Counter()
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
                    self._give(self._waiting.popleft())
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

    def _give(self, number: int) -> None:
        bundle = Bundle(self._bundles[number], frozenset(self._wanted.pop(number)))
        self._flying |= {job.key: job for job in bundle.jobs if job.key in bundle.wanted}
        self._crew.give(bundle)

    def _take_back(self, job: Job) -> None:
        """A job that was given and not drawn waits again, with those that it would have been drawn with."""
        number = self._number[job.key]
        if number in self._wanted:
            self._wanted[number].add(job.key)
        else:
            self._wanted[number] = {job.key}
            self._waiting.appendleft(number)

    def _try_alone(self, job: Job) -> None:
        """A job that failed waits again, by itself: whatever it was, it takes no other with it."""
        number = self._number[job.key] = len(self._bundles)
        self._bundles.append((job,))
        self._wanted[number] = {job.key}
        self._waiting.append(number)

    def _hear(self, event: Event, limits: Limits) -> Iterator[tuple[Job, Outcome]]:
        """Notes an event; the jobs that it ends."""
        match event:
            case Broken(error):
                raise error
            case Begun(key):
                if key in self._flying:
                    self._journal.write("started", **_who(self._flying[key]))
            case Lost(keys, begun, reason):
                blamed = self._blamed(begun)
                for key in reversed(keys):
                    yield from self._end(Outcome(key, "failed" if key in blamed else "returned", error=reason), limits)
            case Outcome():
                yield from self._end(event, limits)

    def _blamed(self, begun: Sequence[str]) -> Set[str]:
        """Which of the jobs that a dead worker had begun may have killed it: of several not the first time, it could be any of them."""
        numbers = {self._number[key] for key in begun if key in self._flying}
        self._deaths.update(numbers)
        spared = {number for number in numbers if len(self._bundles[number]) > 1 and self._deaths[number] == 1}
        return {key for key in begun if self._number.get(key) not in spared}

    def _end(self, outcome: Outcome, limits: Limits) -> Iterator[tuple[Job, Outcome]]:
        job = self._flying.pop(outcome.key, None)
        if job is not None and self._settle(job, outcome, limits):
            yield job, outcome

    def _settle(self, job: Job, outcome: Outcome, limits: Limits) -> bool:
        """Notes what became of a job; False where it will be tried again."""
        if outcome.status == "returned":
            self._take_back(job)
            return False
        self._attempts[job.key] += 1
        if outcome.status == "failed":
            if not outcome.lasting and self._attempts[job.key] <= limits.retries:
                self.tally.retried += 1
                self._try_alone(job)
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
