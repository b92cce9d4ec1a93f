"""A batch from jobs to files, with the real writer and a fast fake engine: exactly once, kept, retried, gated, stopped, told."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from batch.driver import Limits, Stop, Tally
from batch.job import Gate, Job, make_jobs
from batch.journal import read_journal, rebuild, write_rebuilt
from batch.lock import holder, locked
from batch.manifest import Row
from batch.planner import Bundle, ordered
from batch.report import _throughput, summarise
from batch.runner import Settings, failures, run_batch
from batch.store import Folder, failure_name, open_store, pictures, read_failures
from batch.work import Begun, Event, Outcome, Worker
from core.errors import BadRequest, LimnError
from core.provenance import read_record
from core.request import ControlUnit, RenderRequest
from tests.batch.fake import Fake, NothingToKnow, OpenFake


def requests(count: int, prompt: str = "p") -> list[RenderRequest]:
    return [RenderRequest(prompt=f"{prompt} {i}", seed=i, width=64, height=64) for i in range(count)]


def jobs_of(some: list[RenderRequest], gate: Gate | None = None) -> list[Job]:
    return make_jobs([Row(i, request) for i, request in enumerate(some, 1)], NothingToKnow(), gate).jobs


def silent(tally: Tally, job: Job | None, outcome: Outcome | None) -> None: ...


def run(out: Path, jobs: list[Job], stop: Stop | None = None, **more: object) -> Tally:
    settings = Settings(**{"open_drawer": OpenFake(), **more})  # type: ignore[arg-type]
    return run_batch(jobs, open_store(out), settings, silent, stop)[0]


def files(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in sorted(pictures(Folder(out).names()))}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    PIL.Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "control.png")
    return tmp_path / "control.png"


def test_every_job_gives_one_file_with_its_record(tmp_path: Path) -> None:
    jobs = jobs_of(requests(20))
    tally = run(tmp_path, jobs)
    assert (tally.done, tally.left, tally.failed) == (20, 0, 0)
    assert set(files(tmp_path)) == {job.name for job in jobs}
    assert {read_record(tmp_path / job.name).request for job in jobs} == {job.request for job in jobs}
    events = [event["event"] for event in read_journal(Folder(tmp_path))]
    assert (events[0], events[-1], events.count("started"), events.count("done")) == ("run", "end", 20, 20)
    assert "limn-" in (tmp_path / "report.html").read_text()


def test_what_is_there_is_kept_and_what_changed_is_drawn(tmp_path: Path) -> None:
    run(tmp_path, jobs_of(requests(10)))
    before = files(tmp_path)
    edited = jobs_of([*requests(8), *requests(2, "new")])
    _, found = run_batch(edited, open_store(tmp_path), Settings(open_drawer=OpenFake()), silent)
    assert len(found.there) == 8
    assert len(found.orphans) == 2, "pictures of rows that are gone stay, and are named"
    assert all(files(tmp_path)[name] == data for name, data in before.items())
    assert len(files(tmp_path)) == 12


def test_workers_write_the_same_bytes(tmp_path: Path) -> None:
    jobs = jobs_of(requests(30))
    run(tmp_path / "one", jobs)
    run(tmp_path / "two", jobs, workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_a_row_of_several_pictures_is_several_jobs_and_rows_that_repeat_are_drawn_once() -> None:
    rows = [Row(1, RenderRequest(seed=3, count=3)), Row(2, RenderRequest(seed=4)), Row(3, RenderRequest(seed=9, count=1))]
    found = make_jobs(rows, NothingToKnow())
    assert [(job.line, job.request.seed, job.request.count) for job in found.jobs] == [(1, 3, 1), (1, 4, 1), (1, 5, 1), (3, 9, 1)]
    assert found.twice == [(2, 1)]


def test_the_key_is_the_content_not_the_place(tmp_path: Path, picture: Path) -> None:
    def key(path: Path, weight: float = 1.0) -> str:
        unit = ControlUnit(kind="canny", image=path, weight=weight)
        return jobs_of([RenderRequest(controls=(unit,))])[0].key

    elsewhere = tmp_path / "elsewhere.png"
    elsewhere.write_bytes(picture.read_bytes())
    first = key(picture)
    assert key(elsewhere) == first
    assert key(picture, weight=0.5) != first
    PIL.Image.fromarray(np.full((64, 64, 3), 91, np.uint8)).save(elsewhere)
    assert key(elsewhere) != first


def test_a_missing_control_in_row_700_is_found_before_anything_is_drawn(picture: Path) -> None:
    def row(line: int) -> Row:
        image = picture if line != 700 else picture.with_name("missing.png")
        return Row(line, RenderRequest(seed=line, controls=(ControlUnit(kind="canny", image=image),)))

    found = make_jobs([row(line) for line in range(1, 1001)], NothingToKnow())
    assert len(found.jobs) == 999
    assert [problem.line for problem in found.problems] == [700]
    assert "missing.png' cannot be read" in str(found.problems[0])


@pytest.mark.parametrize(
    ("name", "words"), [("folder", "is a folder"), ("pipe", "is a device or a pipe"), ("/dev/zero", "is a device or a pipe")]
)
def test_what_is_no_file_is_not_read_for_ever(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    unit = ControlUnit(kind="canny", image=tmp_path / name)
    (problem,) = make_jobs([Row(1, RenderRequest(controls=(unit,)))], NothingToKnow()).problems
    assert words in str(problem)


def test_failures_are_recorded_and_tried_again_when_told(tmp_path: Path) -> None:
    some = [*requests(4), RenderRequest(prompt="fail", width=64, height=64)]
    tally = run(tmp_path, jobs_of(some), limits=Limits(retries=2))
    assert (tally.done, tally.failed, tally.retried) == (4, 1, 2)
    failure = next(iter(read_failures(Folder(tmp_path), Folder(tmp_path).names()).values()))
    assert (failure["line"], failure["attempts"]) == (5, 3)
    assert failure["error"] == "RuntimeError: [the engine] said no to fail"
    again = run(tmp_path, jobs_of(some))
    assert (again.done, again.failed_before, again.left) == (0, 1, 0), "a recorded failure waits to be told"
    once_more = run(tmp_path, jobs_of(some), retry_failed=True, limits=Limits(retries=0))
    assert once_more.failed == 1
    page = (tmp_path / "report.html").read_text()
    assert "said no to fail" in page


def test_a_failure_that_passes_is_tried_again_and_leaves_nothing(tmp_path: Path) -> None:
    jobs = jobs_of([RenderRequest(prompt="fail once", width=64, height=64)])
    assert run(tmp_path, jobs, limits=Limits(retries=0)).failed == 1
    tally = run(tmp_path, jobs, retry_failed=True, limits=Limits(retries=1))
    assert (tally.done, tally.retried, tally.left) == (1, 1, 0)
    assert read_failures(Folder(tmp_path), Folder(tmp_path).names()) == {}


def test_the_best_of_several_is_kept_and_the_others_lie_apart(tmp_path: Path, picture: Path) -> None:
    request = RenderRequest(seed=5, width=64, height=64, controls=(ControlUnit(kind="canny", image=picture),))
    (job,) = jobs_of([request], Gate(best_of=4))
    run(tmp_path, [job])
    kept = read_record(tmp_path / job.name).controls[0].fidelity
    rejected = [read_record(path).controls[0].fidelity for path in (tmp_path / "rejected").iterdir()]
    assert kept is not None
    assert len(rejected) == 3
    assert all(one is not None and one.value <= kept.value for one in rejected)


def test_a_gate_that_nothing_passes_is_a_failure(tmp_path: Path, picture: Path) -> None:
    some = [RenderRequest(seed=i, width=64, height=64, controls=(ControlUnit(kind="canny", image=picture),)) for i in range(30)]
    jobs = jobs_of(some, Gate(min_fidelity=0.5))
    tally = run(tmp_path, jobs, limits=Limits(retries=3))
    assert tally.failed == len(list((tmp_path / "rejected").iterdir())) > 0
    assert tally.done == len(files(tmp_path)) == 30 - tally.failed
    assert tally.retried == 0, "drawing the same again would change nothing"
    assert min(tally.fidelity) >= 0.5


def test_a_second_writer_is_told_who_the_first_is(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with locked(store):
        assert holder(store) is not None
        with pytest.raises(BadRequest, match=f"process {os.getpid()} on .* since"):
            run(tmp_path, jobs_of(requests(1)))
    assert holder(store) is None
    assert run(tmp_path, jobs_of(requests(1))).done == 1


def test_the_journal_and_the_report_can_be_made_again_from_the_files(tmp_path: Path) -> None:
    run(tmp_path, jobs_of([*requests(5), RenderRequest(prompt="fail", width=64, height=64)]), limits=Limits(retries=0))
    before = summarise(Folder(tmp_path))
    (tmp_path / "journal.jsonl").unlink()
    assert write_rebuilt(tmp_path) == 6
    after = summarise(Folder(tmp_path))
    # pictures that were published within the same tick of the disk's clock may change places
    assert {event["name"] for event in after.done} == {event["name"] for event in before.done}
    assert len(after.done) == len(before.done) == 5
    assert after.failed == before.failed
    assert {event["event"] for event in rebuild(tmp_path)} == {"done", "failed"}


def test_a_journal_made_again_knows_still_how_much_was_asked_for(tmp_path: Path) -> None:
    run(tmp_path, jobs_of(requests(5)), limits=Limits(max_hours=0.0))
    run(tmp_path, jobs_of(requests(7)), limits=Limits(max_hours=0.0))
    write_rebuilt(tmp_path)
    assert (summarise(Folder(tmp_path)).total, summarise(Folder(tmp_path)).left) == (7, 7)


def test_a_torn_journal_line_is_passed_over(tmp_path: Path) -> None:
    run(tmp_path, jobs_of(requests(3)))
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(b'{"event": "done", "na')
    assert run(tmp_path, jobs_of(requests(4))).done == 1
    lines = (tmp_path / "journal.jsonl").read_bytes().splitlines()
    assert sum(b'"event": "run"' in line for line in lines) == 2
    assert len(lines) - len(list(read_journal(Folder(tmp_path)))) == 1


def test_pictures_that_the_journal_has_not_heard_of_are_noted(tmp_path: Path) -> None:
    """Killed between the rename and the line."""
    run(tmp_path, jobs_of(requests(3)))
    lines = [line for line in (tmp_path / "journal.jsonl").read_text().splitlines(keepends=True) if '"done"' not in line]
    (tmp_path / "journal.jsonl").write_text("".join(lines))
    assert run(tmp_path, jobs_of(requests(3))).done == 0
    assert sum(event["event"] == "done" for event in read_journal(Folder(tmp_path))) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_finishes_what_is_begun_and_the_next_run_goes_on(tmp_path: Path, number: signal.Signals, workers: int) -> None:
    jobs, stop = jobs_of(requests(200)), Stop()

    def show(tally: Tally, job: Job | None, outcome: Outcome | None) -> None:
        if tally.done == 5 and outcome is not None:
            os.kill(os.getpid(), number)

    settings = Settings(open_drawer=OpenFake(0.005), workers=workers)
    tally, _ = run_batch(jobs, open_store(tmp_path), settings, show, stop)
    assert tally.reason == {signal.SIGINT: "stopped by Ctrl-C", signal.SIGTERM: "stopped by SIGTERM"}[number]
    assert 5 <= tally.done < 120
    assert tally.done == len(files(tmp_path)), "what was begun was finished"
    assert run(tmp_path, jobs).left == 0
    assert len(files(tmp_path)) == 200


def test_a_stop_as_a_bundle_begins_leaves_no_job_without_an_end(tmp_path: Path) -> None:
    """Said to have begun, and then neither drawn nor handed back: whoever waited for it would wait for ever."""
    jobs = jobs_of(requests(6))
    events: list[Event] = []

    def tell(event: Event) -> None:
        events.append(event)
        if isinstance(event, Begun):
            worker.drop()

    worker = Worker(OpenFake(), open_store(tmp_path), tell)
    for bundle in (jobs[:3], jobs[3:]):
        worker.give(Bundle(tuple(bundle), frozenset(job.key for job in bundle)))
    worker.close()
    ends = {event.key: event.status for event in events if isinstance(event, Outcome)}
    assert ends == {job.key: "done" if i < 3 else "returned" for i, job in enumerate(jobs)}


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)])
def test_a_second_signal_stops_at_once(tmp_path: Path, numbers: tuple[signal.Signals, ...]) -> None:
    asked = list(numbers)

    def show(tally: Tally, job: Job | None, outcome: Outcome | None) -> None:
        while asked:
            os.kill(os.getpid(), asked.pop(0))

    tally, _ = run_batch(jobs_of(requests(3)), open_store(tmp_path), Settings(open_drawer=OpenFake(1.0)), show)
    assert tally.done < 3
    assert tally.reason == "stopped by Ctrl-C"
    assert not list(tmp_path.glob(".limn-*"))
    assert run(tmp_path, jobs_of(requests(3))).left == 0


class OpensNothing:
    """An engine that cannot be opened, for a reason that is nobody's on purpose."""

    def __call__(self, number: int = 0) -> Fake:
        raise TypeError("no engine")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_engine_that_cannot_be_opened_ends_the_run(tmp_path: Path, workers: int) -> None:
    with pytest.raises(LimnError, match="TypeError: no engine"):
        run(tmp_path, jobs_of(requests(3)), open_drawer=OpensNothing(), workers=workers)
    assert holder(Folder(tmp_path)) is None


def test_limits_stop_in_order(tmp_path: Path) -> None:
    jobs = jobs_of(requests(50))
    tally = run(tmp_path, jobs, limits=Limits(max_hours=1e-9))
    assert tally.reason.startswith("stopped after --max-hours")
    assert tally.left > 0
    tally = run(tmp_path, jobs, limits=Limits(min_free_gb=1e9))
    assert tally.reason.endswith("under --min-free-gb 1e+09")


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadRequest, match="not a directory"):
        open_store(tmp_path / "file" / "out")


def test_jobs_that_share_models_and_controls_come_together() -> None:
    def request(model: str, image: str) -> RenderRequest:
        return RenderRequest(model=model, controls=(ControlUnit(kind="canny", image=Path(image)),))

    some = [Job(str(i), request(*names), i) for i, names in enumerate([("a", "x"), ("b", "x"), ("a", "y"), ("a", "x"), ("b", "x")])]
    assert [job.key for job in ordered(some)] == ["0", "3", "2", "1", "4"]


def test_hostile_text_stays_text_in_the_report(tmp_path: Path) -> None:
    run(tmp_path, jobs_of([RenderRequest(prompt="fail <script>alert(1)</script>", width=64, height=64)]), limits=Limits(retries=0))
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert json.loads(next((tmp_path / "failed").iterdir()).read_text())["line"] == 1


@pytest.mark.parametrize(
    ("times", "bars", "said"),
    [
        ([5.0], 1, "from 0.0 s to 1.0 s; the highest bar is 1 picture in 1.0 s"),
        ([5.0, 5.1, 6.7], 2, "from 0.0 s to 2.0 s; the highest bar is 2 pictures in 1.0 s"),
        ([5.0 + 10.0 * i for i in range(61)], 60, "from 0.0 s to 10 min; the highest bar is 2 pictures in 10 s"),
    ],
)
def test_throughput_is_counted_in_spans_of_a_second_or_more(times: list[float], bars: int, said: str) -> None:
    shown = _throughput([{"time": time} for time in times])
    assert (shown.count("<rect"), said in shown) == (bars, True), shown


def test_failures_of_rows_that_are_gone_or_drawn_are_no_failures_any_more(tmp_path: Path) -> None:
    bad, mended = RenderRequest(prompt="fail", width=64, height=64), RenderRequest(prompt="mended", width=64, height=64)
    run(tmp_path, jobs_of([*requests(3), bad]))
    run(tmp_path, jobs_of([*requests(3), mended]))
    summary = summarise(open_store(tmp_path))
    assert (summary.total, len(summary.done), len(summary.failed), summary.left) == (4, 4, 0, 0)
    assert failures(open_store(tmp_path), jobs_of([mended])) == []
    assert len(failures(open_store(tmp_path), jobs_of([bad]))) == 1, "what another manifest has tried is not forgotten"
    run(tmp_path, jobs_of([bad]))
    assert len(summarise(open_store(tmp_path)).failed) == 1
    (job,) = jobs_of([mended])
    Folder(tmp_path).publish(failure_name(job.name), json.dumps({"key": job.key, "line": 1, "error": "x"}).encode())
    run(tmp_path, [job])
    assert not (tmp_path / failure_name(job.name)).exists(), "a run was killed between the picture and taking this away"


def test_every_orphan_is_counted(tmp_path: Path) -> None:
    (job,) = jobs_of(requests(1))
    for number in range(1200):
        (tmp_path / f"limn-{number:012x}-0.png").write_bytes(b"")
    run(tmp_path, [job])
    summary = summarise(open_store(tmp_path))
    assert (summary.orphans, summary.left, len(summary.done) - summary.orphans) == (1200, 0, 1)
    for number in range(1100):
        (tmp_path / f"limn-{number:012x}-0.png").unlink()
    assert summarise(open_store(tmp_path)).orphans == 100, "those that were taken away since count no more"
