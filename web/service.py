"""One renderer for all visitors: a bounded queue, one thread that draws, and live news of every job. No web framework in here.

The thread loads the model first, so that a page can be up before; whoever asks in the meantime waits in the queue.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from controls.prepare import load_map
from core.control import Image
from core.errors import Cancelled, LimnError, QueueFull
from core.request import RenderRequest
from pipelines.opening import Opening
from renderer import Picture, Renderer, Step
from web.doctor import Doctor

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipelines.doctor import Finding
    from renderer.renderer import LoadMap

CAPACITY = 32
PER_VISITOR = 4
PREVIEW_SHARE = 0.04  # of the time, at most, goes into previews
FIRST_PREVIEW_S = 0.6  # what is done by then needs none
NEWS_INTERVAL_S = 0.4  # a visitor hears no more often than that
HEARTBEAT_S = 0.5  # and no less often, so that one who has gone is noticed

log = logging.getLogger("limn")


@dataclass(frozen=True)
class Waiting:
    """Not begun: `ahead` jobs come first, or the model is still loading."""

    ahead: int
    loading: bool = False


@dataclass(frozen=True, eq=False)
class Drawing:
    """`done` of `steps` are behind us; preview: the last denoised estimate that was decoded, RGB uint8 HWC."""

    done: int
    steps: int
    seconds_left: float | None = None
    preview: Image | None = None


@dataclass(frozen=True, eq=False)
class Finished:
    """The pictures, and the files they were published as."""

    pictures: tuple[Picture, ...]
    paths: tuple[Path, ...]
    seconds: float


News = Waiting | Drawing | Finished


class Job:
    """One visitor's request on its way. publish: whether its pictures are; load_map: as `Renderer.load_map`, if another."""

    publish = True
    load_map: "LoadMap | None" = None

    def __init__(self, request: RenderRequest, visitor: str, withdraw: "Callable[[Job], None]") -> None:
        self.request, self.visitor = request, visitor
        self.stopped = threading.Event()
        self._withdraw = withdraw
        self._changed = threading.Condition()
        self._news: News | Exception = Waiting(0)
        self._unheard = True

    def tell(self, news: News | Exception) -> None:
        """Replace the last news; what nobody has heard yet is forgotten, but the last preview is kept."""
        with self._changed:
            if isinstance(news, Drawing) and news.preview is None and isinstance(self._news, Drawing):
                news = Drawing(news.done, news.steps, news.seconds_left, self._news.preview)
            self._news = news
            self._unheard = True
            self._changed.notify_all()

    def cancel(self) -> None:
        """Stop within a step, or before the first if it has not begun; may be called more than once."""
        self.stopped.set()
        self._withdraw(self)

    def follow(self) -> Iterator[News]:
        """The newest news, again and again until the job is finished; who stops listening cancels it.

        Raises:
            Cancelled: somebody stopped it.
            LimnError: it failed; the message is for the visitor.
        """
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._unheard, HEARTBEAT_S)
                    self._unheard, news = False, self._news
                if isinstance(news, Exception):
                    raise news
                yield news
                if isinstance(news, Finished):
                    return
                with self._changed:
                    self._changed.wait_for(lambda: isinstance(self._news, Finished | Exception), NEWS_INTERVAL_S)
        finally:
            self.cancel()


class Asking:
    """What a visitor has begun to ask for, request after request: a cancel counts between them too, and while one is still being read."""

    def __init__(self, service: "Service", visitor: str) -> None:
        self.service, self.visitor = service, visitor
        self.stopped = threading.Event()

    def submit(self, request: RenderRequest) -> Job:
        """As `Service.submit`.

        Raises:
            Cancelled: the visitor has stopped it already.
            QueueFull: see there.
        """
        if self.stopped.is_set():
            raise Cancelled("cancelled before the first step")
        job = self.service.submit(request, self.visitor)
        if self.stopped.is_set():  # since it was looked at above
            job.cancel()
        return job


class Service:
    """Draws one request at a time, first come, first served."""

    def __init__(self, model: str, out: Path, opening: Opening | None = None) -> None:
        self.model, self.out, self.opening = model, out, opening or Opening()
        self.trained: Callable[[], list[str]] = list  # ControlNets that were trained here
        self.asked = threading.Event()  # somebody has opened the page, or asked for a picture
        self.loaded = threading.Event()  # the first attempt at loading is over
        self.problem: str | None = None  # why the last attempt failed
        self._renderer: Renderer | None = None
        self._doctor: Doctor | None = None
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._drawing: Job | None = None
        self._asking: list[Asking] = []
        self._closed = False

    def start(self) -> None:
        """Begin to load the model, then to draw, in a thread of its own."""
        threading.Thread(target=self._run, name="limn-renderer", daemon=True).start()

    def submit(self, request: RenderRequest, visitor: str, *, publish: bool = True, load_map: "LoadMap | None" = None) -> Job:
        """Put a request into the queue. publish, load_map: see `Job`.

        Raises:
            QueueFull: too many are waiting, of all visitors or of this one.
        """
        self.asked.set()
        job = Job(request, visitor, self._withdraw)
        job.publish, job.load_map = publish, load_map
        with self._changed:
            mine = sum(one.visitor == visitor for one in (self._drawing, *self._waiting) if one is not None)
            if mine >= PER_VISITOR:
                raise QueueFull(f"{mine} of your pictures are waiting already, which is the limit for one visitor: wait for one of them")
            if len(self._waiting) >= CAPACITY:
                raise QueueFull(f"{len(self._waiting)} pictures are waiting already, which is the limit: try again in a moment")
            self._waiting.append(job)
            self._tell_places()
            self._changed.notify_all()
        return job

    @contextlib.contextmanager
    def asking(self, visitor: str) -> Iterator[Asking]:
        """What a visitor asks for until the block is left, which `cancel` stops as a whole."""
        asking = Asking(self, visitor)
        with self._changed:
            self._asking.append(asking)
        try:
            yield asking
        finally:
            with self._changed:
                self._asking.remove(asking)

    def models(self) -> list[str]:
        """Models to choose from: the one that is loaded, and all that are installed."""
        from pipelines.catalogue import installed

        return list(dict.fromkeys([self.model, *(one.name for one in installed() if one.kind == "model" and not one.problem)]))

    def networks(self, kind: str, model: str) -> list[str]:
        """The ControlNets of this machine that fit a kind and a model; none while the model is loading."""
        return [] if self._doctor is None else self._doctor.networks(kind, model, self.trained())

    def count_tokens(self, prompt: str, model: str = "") -> tuple[int, int] | None:
        """(tokens of the prompt, room for them) for a model, by default the page's own; None where they are not counted, or not yet.

        Raises:
            BadRequest: the prompt's syntax is wrong.
        """
        doctor = self._doctor
        return None if doctor is None else doctor.count_tokens(prompt, model)

    def examine(self, request: RenderRequest) -> "list[Finding] | None":
        """What will be wrong with a request, errors and warnings; None while the model is loading."""
        doctor = self._doctor
        return None if doctor is None else doctor.examine(request)

    def cancel(self, visitor: str) -> None:
        """Stop everything that a visitor has asked for."""
        with self._changed:
            for asking in self._asking:
                if asking.visitor == visitor:
                    asking.stopped.set()
            jobs = [job for job in (self._drawing, *self._waiting) if job is not None and job.visitor == visitor]
        for job in jobs:
            job.cancel()

    def close(self) -> None:
        """Stop drawing; the thread ends within a step."""
        with self._changed:
            self._closed = True
            jobs = [job for job in (self._drawing, *self._waiting) if job is not None]
            self._changed.notify_all()
        for job in jobs:
            job.cancel()

    def _withdraw(self, job: Job) -> None:
        """Take a job out of the queue, if it is there."""
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                job.tell(Cancelled("cancelled before the first step"))
                self._tell_places()

    def _tell_places(self) -> None:
        before = 1 if self._drawing is not None else 0
        for place, job in enumerate(self._waiting):
            job.tell(Waiting(before + place, loading=not self.loaded.is_set()))

    def _run(self) -> None:
        try:
            self._open()
        except Exception as error:  # noqa: BLE001  # the job boundary, as below: the thread goes on
            log.error("the model cannot be loaded: %s", _explained(error))
        while (job := self._next()) is not None:
            try:
                job.tell(self._draw(job))
            except Exception as error:  # noqa: BLE001
                job.tell(_explained(error))

    def _next(self) -> Job | None:
        with self._changed:
            self._drawing = None
            self._tell_places()
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            self._drawing = self._waiting.popleft()
            self._tell_places()
            return self._drawing

    def _open(self) -> Renderer:
        """The renderer; loading is tried again after a failure, for the reason may be gone."""
        try:
            if self._renderer is None:
                self._renderer = Renderer.open(self.model, **self.opening.arguments)
                self._doctor = Doctor(self._renderer)
            self.problem = None
            return self._renderer
        except Exception as error:
            self.problem = str(_explained(error))
            raise
        finally:
            self.loaded.set()

    def _draw(self, job: Job) -> Finished:
        job.tell(Waiting(0))
        renderer = self._open()
        reporter = _Reporter(job)
        pictures, paths = [], []
        renderer.load_map = job.load_map or load_map
        for picture in renderer.stream(job.request, reporter):
            pictures.append(picture)
            if job.publish:
                paths.append(picture.save(self.out))
        return Finished(tuple(pictures), tuple(paths), time.perf_counter() - reporter.began)


class _Reporter:
    """Tells a job's visitor about every step, and decodes a preview as often as it may."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.began = time.perf_counter()
        self._first_step: float | None = None
        self._next_preview = self.began + FIRST_PREVIEW_S

    def __call__(self, step: Step) -> None:
        if self.job.stopped.is_set():
            raise Cancelled(f"cancelled at step {step.index + 1} of {step.steps}")
        now = time.perf_counter()
        done = step.pictures.start * step.steps + (step.index + 1) * len(step.pictures)
        total = self.job.request.count * step.steps
        preview = None
        if now >= self._next_preview and done < total:
            preview = step.preview()[-1]
            took = time.perf_counter() - now
            self._next_preview = now + took / PREVIEW_SHARE
        self.job.tell(Drawing(done, total, self._left(now, done, total), preview))

    def _left(self, now: float, done: int, total: int) -> float | None:
        """Seconds, from the steps' mean so far; the first step, which warms everything up, does not count."""
        if self._first_step is None:
            self._first_step, self._first_done = now, done
            return None
        return (now - self._first_step) / (done - self._first_done) * (total - done)


def _explained(error: Exception) -> LimnError:
    """The error as something a visitor may read; what is not ours goes to the log with its traceback."""
    if isinstance(error, LimnError):
        return error
    log.error("unexpected %s", type(error).__name__, exc_info=error)
    return LimnError(f"something went wrong inside Limn ({type(error).__name__}): the server's log says more")
