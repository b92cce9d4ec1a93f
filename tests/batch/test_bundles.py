"""Jobs drawn together: settled by the whole batch, equal to rounding to those drawn alone, and none a reason for another to fail."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from batch.devices import AUTO, Devices, cores, devices
from batch.doctor import Doctor
from batch.driver import Drive, Limits, Stop, Tally
from batch.job import Job, make_jobs
from batch.journal import FileJournal
from batch.manifest import Row
from batch.planner import Bundle, bundled
from batch.runner import Settings, run_batch
from batch.store import Folder, open_store
from batch.verify import judge
from batch.work import Begun, Event, Lost, OpenRenderer, Outcome
from core.errors import OutOfMemory
from core.images import decode
from core.provenance import read_record
from core.request import ControlUnit, RenderRequest
from renderer import Renderer
from tests import tinymodels
from tests.batch.fake import Fake
from tests.batch.test_runner import files, jobs_of, requests, run, silent

PROMPTS = ("a red sphere", "", "a person in a long green coat on snow at night")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodels.build_pictures(tinymodels.build_models(tmp_path_factory.mktemp("models")))


@pytest.fixture(scope="module")
def jobs(models: Path) -> list[Job]:
    """Ten jobs with prompts, seeds, maps and weights of their own, of two sizes."""
    rows = []
    for i in range(10):
        image, weight = models / ("depth.png", "photo.png")[i % 2], (1.0, 0.4)[i // 2 % 2]
        unit = ControlUnit(kind="canny", image=image, ready=True, weight=weight)
        size = {"width": 64, "height": 96 if i in (3, 7) else 64}
        request = RenderRequest(prompt=PROMPTS[i % 3], seed=i, steps=2, model=str(models / "base"), controls=(unit,), **size)
        rows.append(Row(i + 1, request))
    return make_jobs(rows, Doctor()).jobs


def draw(jobs: Sequence[Job], out: Path, **more: object) -> Tally:
    settings = Settings(**{"open_drawer": OpenRenderer(jobs[0].request.model, device="cpu"), **more})  # type: ignore[arg-type]
    return run_batch(jobs, open_store(out), settings, silent)[0]


@pytest.fixture(scope="module")
def whole(jobs: list[Job], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    assert draw(jobs, out).done == 10
    return out


def test_a_picture_of_a_bundle_is_the_picture_alone_to_rounding(jobs: list[Job], whole: Path) -> None:
    """A level of 255 may tip over."""
    renderer, sizes = Renderer.open(jobs[0].request.model, device="cpu"), set()
    for job in jobs:
        record, image_HWC = read_record(whole / job.name), decode(whole / job.name)
        alone_HWC = np.asarray(renderer.render(job.request)[0].image)
        assert np.abs(image_HWC.astype(int) - alone_HWC).max() <= 1
        sizes.add((record.request.height, record.batch_rows))
    assert sizes == {(64, 8), (96, 2)}


def test_exactly_the_bits_of_the_picture_alone(jobs: list[Job], tmp_path: Path) -> None:
    draw(jobs[:4], tmp_path, exact=True)
    renderer = Renderer.open(jobs[0].request.model, device="cpu")
    for job in jobs[:4]:
        assert read_record(tmp_path / job.name).batch_rows == 1
        assert np.array_equal(decode(tmp_path / job.name), np.asarray(renderer.render(job.request)[0].image))


def test_a_run_that_goes_on_gives_the_bytes_of_one_that_was_not_stopped(jobs: list[Job], whole: Path, tmp_path: Path) -> None:
    """However many of a bundle are there already."""
    for name in sorted(files(whole))[:7]:
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    tally = draw(jobs, tmp_path)
    assert (tally.there, tally.done) == (7, 3)
    assert files(tmp_path) == files(whole)


def test_verify_draws_in_the_row_that_a_picture_had(jobs: list[Job], whole: Path) -> None:
    """All of a folder together, and one by itself, without those it was drawn with."""
    paths = [whole / job.name for job in jobs]
    assert all(verdict.equal and not verdict.differs for verdict in judge(paths))
    (verdict,) = judge(paths[5:6])
    assert verdict.equal
    assert not verdict.differs


def test_where_memory_runs_out_the_bundle_is_halved(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = Renderer.open(jobs[0].request.model, device="cpu")
    family = renderer.base(renderer.model)
    predict, rows = family.predict, list[int]()

    def narrow(x_BCHW: Any, *others: Any) -> Any:
        count = x_BCHW.shape[0]
        if count > 4:
            raise MemoryError
        rows.append(count)
        return predict(x_BCHW, *others)

    some = [job.request for job in jobs if job.request.height == 64][:4]
    monkeypatch.setattr(family, "predict", narrow)
    drawn = [pictures[0] for pictures in renderer.render_many(some)]
    monkeypatch.undo()
    assert set(rows) == {4}  # two pictures with both halves of guidance
    assert all("the batch was halved to 2" in picture.record.notes[-1] for picture in drawn)
    for request, picture in zip(some, drawn, strict=True):
        alone_HWC = np.asarray(renderer.render(request)[0].image).astype(int)
        assert np.abs(alone_HWC - np.asarray(picture.image)).max() <= 1


def test_one_of_a_bundle_that_cannot_be_drawn_leaves_the_others_alone(jobs: list[Job], models: Path, tmp_path: Path) -> None:
    broken = models / "broken.png"
    PIL.Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(broken)
    request = jobs[0].request.model_copy(update={"controls": (ControlUnit(kind="canny", image=broken, ready=True),)})
    some = [*jobs[:3], *make_jobs([Row(4, request)], Doctor()).jobs]
    broken.write_bytes(b"no picture")
    tally = draw(some, tmp_path, limits=Limits(retries=0))
    assert (tally.done, tally.failed) == (3, 1)
    assert set(files(tmp_path)) == {job.name for job in jobs[:3]}


def test_bundles_are_settled_by_all_jobs_and_shared_out() -> None:
    jobs = jobs_of(requests(10))
    sizes = [len(bundle) for bundle in bundled(jobs, lambda job: 4)]
    assert sizes == [4, 4, 2]
    assert [len(bundle) for bundle in bundled(jobs, lambda job: 8, workers=3)] == [4, 4, 2], "nobody is idle"
    assert [len(bundle) for bundle in bundled(jobs, lambda job: 1)] == [1] * 10
    several = jobs_of([RenderRequest(seed=i, init_image=Path(__file__)) for i in range(3)])
    assert [len(bundle) for bundle in bundled(several, lambda job: 8)] == [1, 1, 1], "what cannot be mixed"


class Mortal:
    """A crew whose one worker dies over a job, and over whatever it lies with."""

    def __init__(self, poison: str) -> None:
        self.poison, self.given, self._events = poison, list[list[str]](), deque[list[Event]]()

    @property
    def room(self) -> int:
        return 1 - len(self._events)

    def give(self, bundle: Bundle) -> None:
        keys = [job.key for job in bundle.jobs if job.key in bundle.wanted]
        self.given.append(keys)
        begun: list[Event] = [Begun(key) for key in keys]
        dead = self.poison in [job.key for job in bundle.jobs]
        self._events.append(
            [*begun, Lost(tuple(keys), tuple(keys), "it died")] if dead else [*begun, *(Outcome(key, "done") for key in keys)]
        )

    def events(self, timeout_s: float) -> list[Event]:
        return self._events.popleft()

    def drop(self) -> None: ...

    def close(self, *, now: bool = False) -> None: ...


def test_a_job_that_kills_its_worker_is_found_among_those_it_lies_with(tmp_path: Path) -> None:
    jobs = jobs_of(requests(4))
    crew, journal = Mortal(jobs[2].key), FileJournal(tmp_path)
    bundle = Bundle(tuple(jobs), frozenset(job.key for job in jobs))
    drive = Drive([bundle], crew, Folder(tmp_path), journal, tally=Tally(4), recorded=frozenset())
    tally = drive.run(Limits(retries=1), Stop(), silent)
    journal.close()
    assert (tally.done, tally.failed, tally.left) == (3, 1, 0)
    assert [len(keys) for keys in crew.given[:3]] == [4, 4, 1], "together once more, for it may have been somebody's kill; then each alone"


class Narrow(Fake):
    """An engine that draws one request at a time and no more."""

    def render_many(self, requests: Sequence[RenderRequest], **options: object) -> list[list[object]]:  # type: ignore[override]
        if len(requests) > 1:
            raise OutOfMemory("no memory for so many")
        return super().render_many(requests)  # type: ignore[return-value]


def test_an_engine_that_refuses_the_bundle_is_asked_for_each_job(tmp_path: Path) -> None:
    tally = run(tmp_path, jobs_of(requests(5)), open_drawer=lambda number: Narrow())
    assert (tally.done, tally.failed, tally.retried) == (5, 0, 0)


def test_workers_by_the_machine() -> None:
    assert devices("3").workers == 3
    assert devices("0") == devices(0)
    auto = devices(AUTO)
    assert auto.gpu or auto.workers in (0, *range(2, cores() + 1))
    huge = devices(AUTO, weights_bytes=10**15)
    assert huge.gpu or huge.workers == 0, "models of which memory holds one are drawn with in this process"
    assert not devices(AUTO, device="cpu").gpu
    assert devices(AUTO, device="cpu:0") == devices(AUTO, device="cpu")
    assert devices(AUTO, device="cuda:1") == Devices(workers=0, threads=None, gpu=True)
