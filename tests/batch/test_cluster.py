"""A batch on Ray: the same files, whoever dies. `make ray` installs what it needs."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from batch.driver import Limits, Tally
from batch.job import Job
from batch.runner import Settings, run_batch
from batch.store import open_store
from batch.work import Outcome
from tests.batch.fake import OpenFake
from tests.batch.test_runner import files, jobs_of, requests, run

pytest.importorskip("ray", reason="Ray is not installed: make ray")
# Ray leaves sockets and files to the collector, and forks.
pytestmark = [pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def own_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)  # the fake engine is no installed package


def actors() -> list[int]:
    """The processes of this test's own actors."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
                if b"ray::Actor" in words and os.getsid(int(entry.name)) == os.getsid(0):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_ray_writes_the_same_bytes_though_an_actor_is_killed(tmp_path: Path) -> None:
    jobs = jobs_of(requests(60))
    run(tmp_path / "alone", jobs)
    killed = threading.Event()

    def show(tally: Tally, job: Job | None, outcome: Outcome | None) -> None:
        if tally.done >= 10 and not killed.is_set():
            killed.set()
            os.kill(actors()[0], signal.SIGKILL)

    began = time.monotonic()
    settings = Settings(open_drawer=OpenFake(0.01), workers=2, ray="local", limits=Limits(retries=1))
    tally, _ = run_batch(jobs, open_store(tmp_path / "ray"), settings, show)
    assert killed.is_set()
    assert (tally.done, tally.failed, tally.left) == (60, 0, 0)
    assert files(tmp_path / "ray") == files(tmp_path / "alone")
    assert time.monotonic() - began < 500
