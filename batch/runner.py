"""A batch from jobs to pictures: lock, look at what is there, draw the rest, and leave a report.

run_batch(jobs, open_store("out"), Settings(open_drawer=OpenRenderer("toyland")))
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from batch.crew import Alone, Crew
from batch.driver import Drive, Limits, Show, Stop, Tally, signals
from batch.job import Job
from batch.journal import Journal, fidelity_of, open_journal, read_journal
from batch.lock import locked
from batch.planner import Bundle, bundled
from batch.report import write_report
from batch.store import FAILED, Folder, Store, failure_name, pictures, read_failures
from batch.work import Open, OpenRenderer
from core.errors import BadImage, BadRequest
from core.provenance import read_record
from renderer import together


@dataclass(frozen=True)
class Settings:
    """How a batch is drawn.

    workers: processes; 0, and several for a single bundle, draw in this one. ray: "local" or a cluster's address. extractors: processes
    that extract maps, for each worker. exact: every picture is drawn by itself, so that no other one decides how its sums are rounded.
    gpu: whether a GPU will draw, which gains by larger bundles. retry_failed: draw again what has failed in an earlier run. command: what
    to write into the journal about how it was called. forked: workers are forked from the process that `batch.workers.warm` starts.
    """

    open_drawer: Open = field(default_factory=OpenRenderer)
    workers: int = 0
    ray: str | None = None
    extractors: int = 0
    exact: bool = False
    gpu: bool = False
    limits: Limits = field(default_factory=Limits)
    retry_failed: bool = False
    command: str = ""
    forked: bool = False


@dataclass(frozen=True)
class Found:
    """What a store holds of the jobs. there: done; failed: recorded as failed; orphans: pictures that no job asks for.

    old_failures: records of jobs that nobody asks for; overcome: of jobs whose pictures are there all the same.
    """

    there: frozenset[str]
    failed: frozenset[str]
    orphans: tuple[str, ...]
    old_failures: tuple[str, ...] = ()
    overcome: tuple[str, ...] = ()


def look(jobs: Sequence[Job], names: Set[str]) -> Found:
    """Which jobs are done, by the files there are."""
    there = frozenset(job.key for job in jobs if job.name in names)
    failed = frozenset(job.key for job in jobs if job.key not in there and failure_name(job.name) in names)
    asked = {job.name for job in jobs}
    recorded = {name for name in names if name.startswith(f"{FAILED}/")}
    overcome = {failure_name(job.name) for job in jobs if job.key in there} & recorded
    old = recorded - {failure_name(name) for name in asked}
    return Found(there, failed, tuple(sorted(pictures(set(names)) - asked)), tuple(sorted(old)), tuple(sorted(overcome)))


def run_batch(jobs: Sequence[Job], store: Store, settings: Settings, show: Show, stop: Stop | None = None) -> tuple[Tally, Found]:
    """Draws every job whose picture is not there yet; whatever ends it, what is there is whole, and the next run goes on.

    Raises:
        BadRequest: another process is writing there.
        LimnError: nothing could be done any more (the disk is full, the model cannot be opened).
    """
    stop = stop or Stop()
    with locked(store):
        if isinstance(store, Folder):
            store.sweep()
        names = store.names()
        found = look(jobs, names)
        for name in found.overcome:  # a run was killed between the picture and this
            store.remove(name)
        skipped = found.there if settings.retry_failed else found.there | found.failed
        waiting = [bundle for bundle in plan(jobs, settings, skipped) if bundle.wanted]
        tally = Tally(len(jobs), there=len(found.there), failed_before=0 if settings.retry_failed else len(found.failed))
        journal = open_journal(store)
        try:
            _note_start(journal, store, jobs, found, settings)
            journal.commit()
            if waiting:
                with signals(stop):
                    crew = _gathered(settings, store, len(waiting), stop)
                    if crew is None:
                        tally.reason = f"stopped by {stop.by}"
                    else:
                        recorded = {name for name in names if name.startswith("failed/")}
                        drive = Drive(waiting, crew, store, journal, tally=tally, recorded=recorded)
                        drive.run(settings.limits, stop, show)
            journal.write("end", reason=tally.reason, **tally.values())
        except BaseException as error:
            journal.write("end", reason=" ".join(str(error).split())[:300] or type(error).__name__, **tally.values())
            raise
        finally:
            journal.close()
        write_report(store)
    return tally, found


def plan(jobs: Sequence[Job], settings: Settings, skipped: Set[str] = frozenset()) -> list[Bundle]:
    """What is drawn together, and which of it is still wanted."""

    def most(job: Job) -> int:
        return 1 if settings.exact else together(job.request.width * job.request.height, "cuda" if settings.gpu else "cpu")

    bundles = bundled(jobs, most, max(1, settings.workers))
    return [Bundle(some, frozenset(job.key for job in some if job.key not in skipped)) for some in bundles]


def failures(store: Store, jobs: Sequence[Job]) -> list[str]:
    """A line for each of the jobs that failed."""
    found = read_failures(store, store.names() & {failure_name(job.name) for job in jobs})
    return [f"line {values.get('line', '?')}: {values.get('error', '')}" for values in found.values()]


def _gathered(settings: Settings, store: Store, bundles: int, stop: Stop) -> Crew | None:
    """Who will draw; None where somebody asked to stop before they were there, which can take seconds."""
    stop.at_once = True
    try:
        return _crew(settings, store, bundles)
    except KeyboardInterrupt:
        if not stop.asked:
            raise
        return None
    finally:
        stop.at_once = False


def _crew(settings: Settings, store: Store, bundles: int) -> Crew:
    if settings.ray is not None:
        from batch.cluster import Cluster

        return Cluster(settings.open_drawer, store, settings.ray, actors=settings.workers or None)
    if settings.workers > 1 < bundles or settings.workers == 1:
        from batch.workers import Processes

        count = min(settings.workers, bundles)
        return Processes(settings.open_drawer, store, count, extractors=settings.extractors, forked=settings.forked and not settings.gpu)
    return Alone(settings.open_drawer, store, processes=settings.extractors)


def _note_start(journal: Journal, store: Store, jobs: Sequence[Job], found: Found, settings: Settings) -> None:
    """The run's own line, and a line for every picture of which the journal has not heard: it was killed between the two."""
    heard = {event.get("name") for event in read_journal(store) if event["event"] == "done"}
    values = {"total": len(jobs), "there": len(found.there), "failed": len(found.failed), "command": settings.command}
    journal.write("run", **values, orphans=list(found.orphans), old_failures=list(found.old_failures))
    for job in jobs:
        if job.key in found.there and job.name not in heard:
            journal.write("done", key=job.key, name=job.name, line=job.line, seconds=None, fidelity=_fidelity(store, job))


def _fidelity(store: Store, job: Job) -> dict[str, float | None]:
    if not isinstance(store, Folder):
        return {}
    try:
        return fidelity_of(read_record(store.path / job.name))
    except (BadImage, BadRequest):  # somebody's own file under our name
        return {}
