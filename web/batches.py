"""Batches that were started on the page: each on the batch runner in a thread of its own, drawing through the queue everybody waits in."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batch.doctor import Doctor
from batch.driver import Limits, Stop, Tally
from batch.job import Job, make_jobs
from batch.journal import fidelity_of, mean
from batch.manifest import Manifest
from batch.runner import Settings, look, run_batch
from batch.store import Folder, open_store
from batch.work import Outcome
from core.errors import BadRequest, Cancelled, LimnError, QueueFull
from core.provenance import read_record
from core.request import RenderRequest
from renderer import Picture
from web import manifest
from web.service import Drawing, Finished, Service

MOST_PICTURES = 10_000
MOST_RUNNING = 4
_ROOM_S = 0.5  # between two looks for room in the queue


@dataclass
class Line:
    """A row of the manifest. pictures: how many it asks for; problem: why one of them is not there."""

    number: int
    prompt: str = ""
    controls: str = ""
    pictures: int = 0
    done: int = 0
    problem: str = ""
    fidelity: list[float] = field(default_factory=list)

    def cells(self) -> list[Any]:
        """The row as the page's table has it."""
        state = "done" if self.done == self.pictures else "ready" if not self.done else f"{self.done} of {self.pictures} done"
        score = mean(self.fidelity)
        return [self.number, self.prompt[:80], self.controls, self.problem or state, "" if score is None else f"{score:.2f}"]


class Batch:
    """The pictures of one manifest; what is there already counts as done. paths: of what was drawn, newest last."""

    def __init__(self, service: Service, key: str, found: Manifest, folder: Path) -> None:
        self.service, self.key, self.folder = service, key, folder
        self._visitor = f"batch {key}"
        made = make_jobs(found.rows, Doctor(service.model, fetch=False, rounding=service.opening.rounding))
        if len(made.jobs) > MOST_PICTURES:
            raise BadRequest(f"{len(made.jobs)} pictures, over the page's limit of {MOST_PICTURES}: draw them with 'limn render MANIFEST'")
        self.jobs = made.jobs
        self.lines = {
            row.line: Line(row.line, row.request.prompt, ", ".join(unit.kind for unit in row.request.controls)) for row in found.rows
        }
        self.paths: list[Path] = []
        self.problem, self.step, self.started = "", (0, 1), False
        self.changes = 0  # grows whenever a row has changed
        self._stop, self._thread = Stop(), threading.Thread()
        for job in made.jobs:
            self.lines[job.line].pictures += 1
        for line, before in made.twice:
            self.lines[line].problem = f"asks for the same as line {before}"
        for problem in [*found.problems, *made.problems]:
            self.lines.setdefault(problem.line, Line(problem.line)).problem = problem.message
        self.bad = len({problem.line for problem in [*found.problems, *made.problems]})
        self._there: set[str] = set()
        self._look()

    @property
    def running(self) -> bool:
        """Whether its thread draws, or is about to end."""
        return self._thread.is_alive()

    @property
    def done(self) -> int:
        """How many of its pictures are there."""
        return sum(line.done for line in self.lines.values())

    @property
    def failed(self) -> int:
        """How many rows have said why a picture of theirs is missing since they were started."""
        return sum(bool(line.problem) and line.done < line.pictures for line in self.lines.values())

    def table(self) -> list[list[Any]]:
        """Every row, in the manifest's order."""
        return [line.cells() for _, line in sorted(self.lines.items())]

    def start(self) -> None:
        """Draw what is not there; a picture that has failed is tried again."""
        self._stop, self.problem, self.started, self.step = Stop(), "", True, (0, 1)
        for line in self.lines.values():
            line.problem = line.problem if line.done == line.pictures else ""
        self.changes += 1
        self._thread = threading.Thread(target=self._run, name="limn-batch", daemon=True)
        self._thread.start()

    def pause(self) -> None:
        """Stop within a step; what is done stays done."""
        for _ in ("finish what is begun", "no, now"):
            self._stop.ask("the page")
        self.service.cancel(self._visitor)

    def _run(self) -> None:
        stop = self._stop
        drawer = _Queued(self.service, self._visitor, self._tell, lambda: stop.asked > 0)
        settings = Settings(open_drawer=drawer, exact=True, limits=Limits(retries=0), retry_failed=True, command="the page's Batch")
        try:
            run_batch(self.jobs, open_store(self.folder), settings, self._show, self._stop)
        except LimnError as error:
            self.problem = str(error)
        self._look()

    def _look(self) -> None:
        """Pictures that lie there and have not been counted: of another run, or drawn just before this one was paused."""
        there = look(self.jobs, Folder(self.folder).names()).there if self.folder.is_dir() else frozenset()
        for job in self.jobs:
            if job.key in there - self._there:
                self._note(job, fidelity_of(read_record(self.folder / job.name)))

    def _show(self, tally: Tally, job: Job | None, outcome: Outcome | None) -> None:
        if job is None or outcome is None:
            return
        if outcome.status == "done":
            self._note(job, outcome.fidelity)
        else:
            self.lines[job.line].problem = outcome.error
        self.step = (0, 1)  # the next one's
        self.changes += 1

    def _note(self, job: Job, fidelity: dict[str, float | None]) -> None:
        line = self.lines[job.line]
        self._there.add(job.key)
        line.done += 1
        line.fidelity += [value for value in fidelity.values() if value is not None]
        self.paths.append(self.folder / job.name)

    def _tell(self, done: int, steps: int) -> None:
        self.step = (done, steps)


class Batches:
    """The batches of this server, by their key, which their files decide."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._known: dict[str, Batch] = {}
        self._lock = threading.Lock()

    def check(self, paths: Sequence[Path], kind: str) -> Batch:
        """A batch of uploaded files, every row checked; the one that is running where they are the same.

        Raises:
            LimnError: see `web.manifest.collect`, or too many pictures.
        """
        folder, found = manifest.collect(paths, self.service.out, kind)
        with self._lock:
            known = self._known.get(folder.name)
            if known is None or not known.running:
                self._known[folder.name] = Batch(self.service, folder.name, found, self.service.out / f"batch-{folder.name[:12]}")
            return self._known[folder.name]

    def start(self, key: str) -> Batch:
        """Starts a batch, unless it is running.

        Raises:
            BadRequest: it is not known (any more).
            QueueFull: too many are running.
        """
        with self._lock:
            batch = self._known.get(key)
            if batch is None:
                raise BadRequest("this batch is not known any more: drop its files again, and it goes on where it was")
            if not batch.running:
                running = sum(one.running for one in self._known.values())
                if running >= MOST_RUNNING:
                    raise QueueFull(f"{running} batches are running already, which is the limit: pause one or wait for it")
                batch.start()
            return batch

    def get(self, key: Any) -> Batch | None:
        """A batch that was checked since the server was started."""
        return self._known.get(key) if isinstance(key, str) else None


class _Queued:
    """Draws for the batch runner by waiting in the page's queue like any visitor. load_map: maps extracted ahead; set by the runner.

    tell: hears of every step; paused: nothing is to be begun any more.
    """

    def __init__(self, service: Service, visitor: str, tell: Callable[[int, int], None], paused: Callable[[], bool]) -> None:
        self.service, self.model, self.visitor, self.tell, self.paused = service, service.model, visitor, tell, paused
        self.load_map: Any = None

    def __call__(self, number: int = 0) -> "_Queued":
        return self

    def render_many(self, requests: Sequence[RenderRequest], *, cancelled: Callable[[], bool] | None = None) -> list[list[Picture]]:
        """The pictures of each request, one request after another: other visitors' come in between. They are not published here."""
        return [list(self._drawn(request)) for request in requests]

    def _drawn(self, request: RenderRequest) -> tuple[Picture, ...]:
        while not self.paused():
            try:
                job = self.service.submit(request, self.visitor, publish=False, load_map=self.load_map)
            except QueueFull:
                time.sleep(_ROOM_S)
                continue
            if self.paused():  # since it was looked at above
                job.cancel()
            for news in job.follow():
                if isinstance(news, Drawing):
                    self.tell(news.done, news.steps)
                if isinstance(news, Finished):
                    return news.pictures
        raise Cancelled("paused")


def _kinds(request: RenderRequest) -> str:
    return ", ".join(unit.kind for unit in request.controls)
