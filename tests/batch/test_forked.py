"""Workers that are forked from a process which has imported the libraries: as those that begin from nothing, only sooner."""

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from batch.driver import Limits, Tally
from batch.job import Job, make_jobs
from batch.manifest import Row
from batch.runner import Settings, run_batch
from batch.store import open_store
from batch.work import Outcome
from batch.workers import FORKS, Processes, warm
from core.request import RenderRequest
from tests.batch.fake import Fake, NothingToKnow, OpenFake

pytestmark = pytest.mark.skipif(not FORKS, reason="this system cannot fork")

HEARD = signal.getsignal(signal.SIGINT)  # by this process as it begins; a background job's ignores Ctrl-C


@dataclass(frozen=True)
class OpenTeller(OpenFake):
    """Opens an engine that fails unless the worker's environment is that of the run."""

    def __call__(self, number: int = 0) -> Fake:
        assert os.environ["LIMN_TEST_OF_FORKS"] == "now"
        return Fake(self.seconds)


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    warm()
    warm()  # once is enough, twice does no harm


def jobs(count: int) -> list[Job]:
    rows = [Row(i + 1, RenderRequest(prompt=f"number {i}", seed=i, width=64, height=64)) for i in range(count)]
    return make_jobs(rows, NothingToKnow()).jobs


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def silent(tally: Tally, job: Job | None, outcome: Outcome | None) -> None: ...


def test_forked_workers_write_the_same_bytes_though_one_is_killed(tmp_path: Path) -> None:
    run_batch(jobs(40), open_store(tmp_path / "alone"), Settings(open_drawer=OpenFake()), silent)
    killed: list[int] = []

    def show(tally: Tally, job: Job | None, outcome: Outcome | None) -> None:
        if tally.done >= 10 and not killed:
            worker = next(one for one in multiprocessing.active_children() if one.name == "limn-worker-0")
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            killed.append(worker.pid)

    settings = Settings(open_drawer=OpenFake(0.01), workers=2, forked=True, limits=Limits(retries=1))
    tally, _ = run_batch(jobs(40), open_store(tmp_path / "forked"), settings, show)
    assert killed
    assert (tally.done, tally.failed) == (40, 0)
    assert written(tmp_path / "forked") == written(tmp_path / "alone")


def test_a_forked_worker_has_the_environment_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMN_TEST_OF_FORKS", "now")
    tally, _ = run_batch(jobs(2), open_store(tmp_path), Settings(open_drawer=OpenTeller(), workers=2, forked=True), silent)
    assert tally.done == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_workers_are_coming_stops_at_once(tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting one waits for the process that it is forked from, which may still be importing."""

    waited: list[int] = []

    def slow(crew: Processes, place: int) -> None:
        os.kill(os.getpid(), number)
        time.sleep(30.0)
        waited.append(place)

    monkeypatch.setattr(Processes, "_start", slow)
    tally, _ = run_batch(jobs(3), open_store(tmp_path), Settings(open_drawer=OpenFake(), workers=2, forked=True), silent)
    assert not waited
    assert (tally.done, tally.left) == (0, 3)
    assert tally.reason == {signal.SIGINT: "stopped by Ctrl-C", signal.SIGTERM: "stopped by SIGTERM"}[number]


def test_ctrl_c_is_heard_again_after_warming() -> None:
    assert signal.getsignal(signal.SIGINT) is HEARD
