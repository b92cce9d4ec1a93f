"""What one worker does, in whatever process: maps ahead, bundles drawn one after the other, and files written behind, side by side.

The file that appears under the job's name is the commit; whoever is told afterwards only hears of it.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np

from batch.choice import choose, load_measures
from batch.extraction import Extraction
from batch.job import Job
from batch.journal import fidelity_of
from batch.planner import Bundle
from batch.store import REJECTED, Store
from core.errors import Cancelled, LimnError, UserError
from core.provenance import picture_bytes
from core.request import RenderRequest
from renderer import Picture

if TYPE_CHECKING:  # torch is heavy
    from pipelines.residency import Memory

log = logging.getLogger("limn.batch")

WRITTEN_BEHIND = 16  # finished pictures that may wait for the disk


class Drawer(Protocol):
    """What draws: `renderer.Renderer`."""

    def render_many(self, requests: Sequence[RenderRequest], *, cancelled: Callable[[], bool] | None = None) -> list[list[Picture]]:
        """The pictures of each request."""
        ...


@dataclass(frozen=True)
class OpenRenderer:
    """Opens a renderer in the process that will draw. threads: of the CPU; None for as many as the library takes; memory: how it lies."""

    model: str = "toyland"
    device: str | None = None
    dtype: str | None = None
    threads: int | None = None
    memory: "Memory | None" = None

    def __call__(self, number: int = 0) -> Drawer:
        """The renderer of worker `number`, on a device of its own where there are several."""
        import torch

        from renderer import Renderer

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return Renderer.open(self.model, self.device_of(number), self.dtype, memory=self.memory)

    def device_of(self, number: int) -> str | None:
        """Where worker `number` computes: of several GPUs on one of its own, unless one was named."""
        import torch

        if self.device in (None, "cuda") and torch.cuda.device_count() > 1:
            return f"cuda:{number % torch.cuda.device_count()}"
        return self.device


Open: TypeAlias = Callable[[int], Drawer]


@dataclass(frozen=True)
class Begun:
    """A worker has begun to draw a job."""

    key: str


@dataclass(frozen=True)
class Outcome:
    """What became of a job. lasting: trying again would change nothing."""

    key: str
    status: Literal["done", "failed", "returned"]
    seconds: float = 0.0
    fidelity: dict[str, float | None] = field(default_factory=dict)
    error: str = ""
    lasting: bool = False


@dataclass(frozen=True)
class Broken:
    """Nothing can be done any more: the model cannot be opened, or the output not written to."""

    error: LimnError


@dataclass(frozen=True)
class Lost:
    """A worker has died. keys: what had been given to it; begun: what it was drawing."""

    keys: tuple[str, ...]
    begun: tuple[str, ...]
    reason: str


Event: TypeAlias = Begun | Outcome | Broken | Lost


class Worker:
    """Draws jobs that it is given, and tells what became of them; `tell` is called from its threads."""

    def __init__(self, open_drawer: Open, store: Store, tell: Callable[[Event], None], *, number: int = 0, processes: int = 0) -> None:
        self._open, self._store, self._tell, self._number = open_drawer, store, tell, number
        self._model = getattr(open_drawer, "model", "toyland")
        self._extraction = Extraction(processes)
        self._waiting: queue.SimpleQueue[Bundle | None] = queue.SimpleQueue()
        self._drawn: queue.Queue[tuple[Job, list[Picture], float] | None] = queue.Queue(WRITTEN_BEHIND)
        self._dropping, self._cancelled = threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=self._draw_all, name="limn-draw", daemon=True),
            threading.Thread(target=self._write_all, name="limn-write", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def give(self, bundle: Bundle) -> None:
        """Jobs to be drawn after those that were given before."""
        for job in bundle.jobs:
            self._extraction.announce(job.request, self._model)
        self._waiting.put(bundle)

    def drop(self) -> None:
        """Finish what has been begun and hand back the rest."""
        self._dropping.set()

    def close(self, *, now: bool = False) -> None:
        """End when all is done that was given; now: leave even what is being drawn."""
        if now:
            self._cancelled.set()
            self._dropping.set()
        self._waiting.put(None)
        for thread in self._threads:
            thread.join(10.0 if now else None)
        self._extraction.close()

    def _draw_all(self) -> None:
        try:
            drawer = self._open(self._number)
            if hasattr(drawer, "load_map"):
                drawer.load_map = self._extraction
        except Exception as error:  # noqa: BLE001 (whoever waits must hear of it, whatever it is)
            self._tell(Broken(_explained(error)))
            self._drawn.put(None)
            return
        while (bundle := self._waiting.get()) is not None:
            wanted = [job for job in bundle.jobs if job.key in bundle.wanted]
            dropped = self._dropping.is_set()  # once: it may be set at any moment, and what is said to have begun must end
            for job in wanted:
                self._tell(Outcome(job.key, "returned") if dropped else Begun(job.key))
            if not dropped:
                self._draw(drawer, bundle.jobs, wanted)
        self._drawn.put(None)

    def _draw(self, drawer: Drawer, jobs: Sequence[Job], wanted: Sequence[Job]) -> None:
        """Draws jobs together, or where that cannot be, those that are wanted each by itself."""
        started = time.perf_counter()
        try:
            for job in jobs:
                if job.chosen:
                    load_measures(job.request, job.request.model if "model" in job.request.model_fields_set else self._model)
            drawn = drawer.render_many([job.request for job in jobs], cancelled=self._cancelled.is_set)
        except Cancelled:
            for job in wanted:
                self._tell(Outcome(job.key, "returned"))
        except Exception as error:  # noqa: BLE001 (one job's failure is not another's)
            if len(jobs) == 1:
                self._tell(_failed(jobs[0], error))
            else:
                log.warning("%d pictures are drawn one by one, for together they failed: %s", len(jobs), _explained(error))
                for job in wanted:
                    self._draw(drawer, [job], [job])
        else:
            seconds = (time.perf_counter() - started) / len(jobs)
            for job, pictures in zip(jobs, drawn, strict=True):
                if job in wanted:
                    self._drawn.put((job, pictures, seconds))

    def _write_all(self) -> None:
        while (item := self._drawn.get()) is not None:
            job, pictures, seconds = item
            try:
                outcome = publish_job(self._store, job, pictures)
            except LimnError as error:
                self._tell(Broken(error))
            except Exception as error:  # noqa: BLE001 (as above)
                self._tell(_failed(job, error))
            else:
                self._tell(Outcome(job.key, seconds=round(seconds, 4), **outcome))


def publish_job(store: Store, job: Job, pictures: list[Picture]) -> dict[str, Any]:
    """Puts a job's candidates where they belong, the one that is kept last; what there is to tell of it.

    Raises:
        DiskFull, BadRequest: the store cannot be written to.
    """
    choice = choose(pictures, job.min_fidelity)
    for i, picture in enumerate(pictures):
        if i != choice.best or not choice.passed:
            store.publish(f"{REJECTED}/{job.file_name(i)}", _bytes(picture))
    found = fidelity_of(pictures[choice.best].record)
    if not choice.passed:
        return {"status": "failed", "fidelity": found, "error": choice.complaint(job.min_fidelity), "lasting": True}
    store.publish(job.name, _bytes(pictures[choice.best]))
    return {"status": "done", "fidelity": found}


def _bytes(picture: Picture) -> bytes:
    return picture_bytes(np.asarray(picture.image), picture.record)


def _failed(job: Job, error: Exception) -> Outcome:
    return Outcome(job.key, "failed", error=str(_explained(error))[:1000], lasting=isinstance(error, UserError))


def _explained(error: Exception) -> LimnError:
    """An error in one line; one that is not ours says its type, and where it came from in the log."""
    if isinstance(error, LimnError):
        return error
    log.error("something went wrong inside Limn", exc_info=error)
    return LimnError(f"{type(error).__name__}: {' '.join(str(error).split())}")
