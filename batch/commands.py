"""What `limn render SOURCE`, `limn status`, `limn report` and `limn verify` do, apart from reading their arguments."""

import json
import math
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from batch.devices import AUTO, cores, devices, size_bytes
from batch.doctor import Doctor
from batch.driver import Limits, Tally
from batch.folders import Canvas, read_folder
from batch.grids import parse_axis, vary
from batch.job import Gate, Job, Jobs, make_jobs
from batch.manifest import Manifest, Problem, read_defaults, read_manifest
from batch.planner import estimate, group_of
from batch.progress import shown, words
from batch.rows import given_over
from batch.runner import Found, Settings, failures, look, run_batch
from batch.store import open_store
from batch.times import counted, duration
from batch.work import OpenRenderer
from batch.workers import warm
from core.errors import BadRequest
from core.request import RenderRequest
from pipelines.opening import Opening

MOST_SHOWN = 20
FAILED, STOPPED, INTERRUPTED = 3, 4, 130  # exit codes: some jobs failed; a limit was reached; somebody asked to stop


@dataclass(frozen=True)
class Options:
    """How a batch is asked for on the command line. control: kinds without a file, for the pictures of a folder."""

    control: Sequence[str] = ()
    grid: Sequence[str] = ()
    prompt_from: str | None = None
    defaults: Path | None = None
    skip_bad: bool = False
    dry_run: bool = False
    best_of: int = 1
    min_fidelity: float = 0.0
    retries: int = 1
    retry_failed: bool = False
    max_hours: float | None = None
    min_free_gb: float = 0.0
    workers: str = AUTO
    exact: bool = False
    ray: str | None = None
    extractors: int | None = None
    opening: Opening = field(default_factory=Opening)


def render_source(source: Path, values: Mapping[str, Any], typed: Mapping[str, Any]) -> int:
    """`limn render SOURCE`; the exit code. values: the request's fields that were typed; typed: all options of the command by name."""
    bare = [text for text in typed["control"] or () if "=" not in text.partition(",")[0]]
    asked = {name: typed[name] for name in Options.__dataclass_fields__ if name not in ("control", "opening")}
    options = Options(**{**asked, "grid": typed["grid"] or (), "control": bare, "opening": Opening.asked(typed)})
    return render_batch(source, typed["out"], values, options, as_json=typed["as_json"])


def render_batch(source: Path, out: str, values: Mapping[str, Any], options: Options, *, as_json: bool) -> int:
    """Draws a manifest or a folder of control pictures; the exit code. values: fields of a request, for what rows leave out.

    Raises:
        LimnError: nothing was drawn, or nothing could be done any more.
    """
    if options.min_free_gb and "://" in out:
        raise BadRequest(f"--min-free-gb {options.min_free_gb:g}: how much room is left at {out!r} cannot be known; leave it out")
    values = {name: value for name, value in values.items() if value != []}
    given = given_over(read_defaults(options.defaults) if options.defaults else {}, values)
    model = str(given.pop("model", "toyland"))
    manifest = _read(source, given, options, _Drawn(model, out))
    manifest = vary(manifest, [parse_axis(text) for text in options.grid])
    gate = Gate(options.best_of, options.min_fidelity)
    forked = _warmed(manifest, options)
    doctor = Doctor(model, fetch=not options.dry_run, rounding=options.opening.rounding)
    found = make_jobs(manifest.rows, doctor, gate)
    problems = sorted([*manifest.problems, *found.problems], key=lambda problem: problem.line)
    _complain(problems, found, skip=options.skip_bad or options.dry_run)
    _check_gate(gate, found.jobs)
    if options.dry_run:
        before = look(found.jobs, open_store(out).names()) if _exists(out) else None
        settings = _settings(found.jobs, model, options)
        _rehearse(found, problems, before, settings, as_json=as_json)
        return 2 if problems and not options.skip_bad else 0
    settings = replace(_settings(found.jobs, model, options), command=f"limn render {source} --out {out}", forked=forked)
    store = open_store(out)
    with shown(as_json) as show:
        tally, before = run_batch(found.jobs, store, settings, show)
    _report(tally, before, failures(store, found.jobs), store.shown, as_json=as_json)
    if tally.reason.startswith("stopped by"):
        return INTERRUPTED
    if tally.failed or tally.failed_before:
        return FAILED
    return STOPPED if tally.left else 0


@dataclass(frozen=True)
class _Drawn:
    """With what a folder's pictures are drawn, and where they go."""

    model: str
    out: str

    def canvas(self, *, fetch: bool) -> Canvas:
        """What the model draws on, by its configuration."""
        from pipelines.engine import Engine, choose_place, resolve
        from pipelines.planning import with_defaults

        family = Engine(choose_place("cpu")).outline(resolve(self.model, fetch=fetch))
        own = with_defaults(RenderRequest(), family)
        return Canvas(math.lcm(8, family.side_px), own.width, own.height)


def _check_gate(gate: Gate, jobs: Sequence[Job]) -> None:
    """Says of which pictures `--best-of` and `--min-fidelity` can say nothing."""
    without = sum(not job.request.controls for job in jobs)
    if gate == Gate() or not without:
        return
    if without == len(jobs):
        raise BadRequest("--best-of and --min-fidelity choose by fidelity: give a control to measure")
    print(f"limn: {counted(without, 'picture')} without a control to measure: the first candidate is kept", file=sys.stderr)


def _warmed(manifest: Manifest, options: Options) -> bool:
    """Whether workers can be forked from a process that has begun to import what they need, while the manifest is still being checked."""
    pictures = sum(row.request.count for row in manifest.rows)
    several = cores() > 1 if options.workers == AUTO else int(options.workers) > 0
    if options.dry_run or options.ray is not None or pictures < 2 or not several:
        return False
    if threading.current_thread() is not threading.main_thread():
        return False
    warm()
    return True


def _settings(jobs: Sequence[Job], model: str, options: Options) -> Settings:
    """How the jobs are drawn on this machine. model: what draws rows that name none."""
    from pipelines.engine import resolve

    if options.ray is None:
        options.opening.engine()  # what cannot be had here is said before anything is made
    opened = _opened(jobs, model)
    found = devices(options.workers, size_bytes(resolve(opened)), options.opening.device)
    workers = 0 if options.ray is not None and options.workers == AUTO else found.workers  # Ray knows its devices itself
    ahead = 0 if cores() <= 2 else min(8, cores() // max(1, workers))
    return Settings(
        open_drawer=OpenRenderer(opened, threads=found.threads if workers else None, **options.opening.arguments),
        workers=workers,
        ray=options.ray,
        extractors=ahead if options.extractors is None else options.extractors,
        exact=options.exact,
        gpu=found.gpu or (options.ray not in (None, "local") and not options.opening.on_cpu),
        limits=Limits(options.retries, options.max_hours, options.min_free_gb),
        retry_failed=options.retry_failed,
    )


def _read(source: Path, given: dict[str, Any], options: Options, drawn: _Drawn) -> Manifest:
    """given: fields of a request, for what rows leave out."""
    if not source.is_dir():
        if options.control or options.prompt_from:
            raise BadRequest("--prompt-from, and --control without a file, go with a folder of control pictures, not with a manifest")
        return read_manifest(source, given)
    if len(options.control) != 1:
        raise BadRequest(f"folder {str(source)!r}: say what its pictures are with one --control, as in --control canny or depth,ready")
    if options.prompt_from is None and not given.get("prompt"):
        raise BadRequest(f"folder {str(source)!r}: give --prompt, or --prompt-from txt or name")
    out = None if "://" in drawn.out else Path(drawn.out)
    canvas = drawn.canvas(fetch=not options.dry_run)
    return read_folder(source, options.control[0], options.prompt_from, given, canvas=canvas, out=out)


def _complain(problems: Sequence[Problem], found: Jobs, *, skip: bool) -> None:
    """Lists bad rows and repeated ones on stderr; bad rows end it unless they are to be skipped."""
    for problem in problems[: MOST_SHOWN * 10]:
        print(f"limn: {problem}", file=sys.stderr)
    if len(problems) > MOST_SHOWN * 10:
        print(f"limn: and {len(problems) - MOST_SHOWN * 10} more", file=sys.stderr)
    for line, before in found.twice[:MOST_SHOWN]:
        print(f"limn: line {line} asks for the same picture as line {before}: drawn once", file=sys.stderr)
    if len(found.twice) > MOST_SHOWN:
        print(f"limn: and {len(found.twice) - MOST_SHOWN} more rows that repeat others", file=sys.stderr)
    if problems and not skip:
        raise BadRequest(f"{counted(len(problems), 'bad row')}, nothing was drawn: mend what is listed, or go on without with --skip-bad")
    if not found.jobs:
        raise BadRequest("there is nothing to draw: no row is good")


def _opened(jobs: Sequence[Job], model: str) -> str:
    """The model to open first: what draws the rows that name none, unless all of them name one."""
    return model if any("model" not in job.request.model_fields_set for job in jobs) else jobs[0].request.model


def _rehearse(found: Jobs, problems: Sequence[Problem], before: Found | None, settings: Settings, *, as_json: bool) -> None:
    """What would be done."""
    jobs, there = found.jobs, len(before.there) if before else 0
    left = [job for job in jobs if before is None or job.key not in before.there]
    opens = settings.open_drawer
    assert isinstance(opens, OpenRenderer)
    plan = estimate(_sized(left, opens))
    seconds = _seconds_a_picture(left, opens, max(1, settings.workers))
    findings = _findings(left, opens)
    values = {
        "jobs": len(jobs),
        "there": there,
        "bad_rows": len(problems),
        "repeated_rows": len(found.twice),
        "groups": plan.groups,
        "control_pictures": plan.pictures,
        "disk_mb": round(plan.disk_mb, 1),
        "seconds": None if seconds is None else round(seconds * len(left)),
        "orphans": len(before.orphans) if before else 0,
        "findings": findings,
        "first": [{"name": job.name, "line": job.line, **job.request.model_dump(mode="json", exclude_unset=True)} for job in jobs[:3]],
    }
    if as_json:
        print(json.dumps(values))
        return
    print(f"{counted(len(jobs), 'picture')}, {there} there already; {counted(len(problems), 'bad row')}, {len(found.twice)} repeated")
    sets = "1 set" if plan.groups == 1 else f"{plan.groups} sets"
    print(f"{sets} of models and settings, {counted(plan.pictures, 'control picture')} to extract, about {plan.disk_mb:.1f} MB")
    if seconds is not None:
        print(f"about {duration(seconds * len(left))} on this machine, by the first picture")
    for finding in findings:
        print(finding)
    for first in values["first"] if isinstance(values["first"], list) else ():
        print(json.dumps(first, indent=2, ensure_ascii=False))


def _sized(jobs: Sequence[Job], opens: OpenRenderer) -> list[Job]:
    """The jobs with what their models draw where they leave it out, such as a size."""
    from pipelines.engine import Engine, choose_place, resolve
    from pipelines.family import Family
    from pipelines.planning import with_defaults

    engine, families = Engine(choose_place("cpu")), dict[str, Family]()
    for model in {_model_of(job.request, opens) for job in jobs}:
        families[model] = engine.outline(resolve(model))
    return [replace(job, request=with_defaults(job.request, families[_model_of(job.request, opens)])) for job in jobs]


def _model_of(request: RenderRequest, opens: OpenRenderer) -> str:
    return request.model if "model" in request.model_fields_set else opens.model


def _findings(jobs: Sequence[Job], opens: OpenRenderer) -> list[str]:
    """What `limn doctor` says about the first job of every set of models and settings."""
    from pipelines.engine import Engine, choose_place
    from renderer import examine

    first = {group_of(job): job for job in reversed(jobs)}
    engine, found = Engine(choose_place(opens.device, opens.dtype), opens.memory), []
    for job in first.values():
        request = job.request.model_copy(update={"model": _model_of(job.request, opens)})
        found += [f"line {job.line}: {one.level}: {' '.join(one.text.split())}" for one in examine(request, engine)]
    return found


def _seconds_a_picture(jobs: Sequence[Job], opens: OpenRenderer, workers: int) -> float | None:
    """Measured: the first job drawn twice, the second time with everything loaded; nothing is kept."""
    if not jobs:
        return None
    drawer = opens(0)
    drawer.render_many([jobs[0].request])
    started = time.perf_counter()
    drawer.render_many([jobs[0].request])
    return (time.perf_counter() - started) / workers


def _report(tally: Tally, before: Found, failed: Sequence[str], shown_out: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"event": "end", "reason": tally.reason, "orphans": len(before.orphans), "out": shown_out, **tally.values()}))
        return
    for failure in failed[:MOST_SHOWN]:
        print(f"limn: {failure}", file=sys.stderr)
    for orphan in before.orphans[:MOST_SHOWN]:
        print(f"limn: {orphan} is asked for by no row any more", file=sys.stderr)
    done = f"{counted(tally.done, 'picture')} in {duration(tally.seconds)} ({words(tally)})" if tally.done else "no new pictures"
    there = f", {tally.there} there already" if tally.there else ""
    left = f", {tally.left} left: {tally.reason}; the same command goes on" if tally.left else ""
    print(f"{done}{there}{left}: {shown_out}/report.html")


def _exists(out: str) -> bool:
    return "://" in out or Path(out).is_dir()
