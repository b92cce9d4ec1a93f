"""A batch on Ray: the same files, whoever dies. `make ray` installs what it needs."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from batch.driver import Limits, Stop, Tally
from batch.job import Job
from batch.runner import Settings, run_batch
from batch.store import open_store
from batch.work import Outcome
from core.request import RenderRequest
from renderer import Picture
from tests.batch.fake import Fake, OpenFake
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


@dataclass
class Reader(Fake):
    """Reads a file by a path that begins where the driver works."""

    def render_many(self, requests: Sequence[RenderRequest], *, cancelled: Callable[[], bool] | None = None) -> list[list[Picture]]:
        assert Path("driver.txt").read_text() == "here"
        return super().render_many(requests, cancelled=cancelled)


@dataclass(frozen=True)
class OpenReader(OpenFake):
    """Opens it."""

    def __call__(self, number: int = 0) -> Fake:
        return Reader()


@pytest.fixture
def small_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster with one CPU, started in another folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=1", f"--port={port}"]
    elsewhere, own = tmp_path_factory.mktemp("head"), tempfile.mkdtemp(prefix="ray", dir="/tmp")  # a socket's path must be short
    environment = os.environ | {"RAY_worker_niceness": "0", "RAY_TMPDIR": own}  # or "auto" elsewhere would find this one
    head = subprocess.Popen([*command, "--include-dashboard=false"], cwd=elsewhere, env=environment, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        head.terminate()
        head.wait(60)
        shutil.rmtree(own, ignore_errors=True)


def test_an_actor_that_waits_for_a_device_is_given_nothing(tmp_path: Path, small_cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two are asked for where one fits: the other would sit on its bundles for ever. Relative paths are the driver's."""
    monkeypatch.chdir(tmp_path)
    Path("driver.txt").write_text("here")
    began, stop = time.monotonic(), Stop()

    def show(tally: Tally, job: Job | None, outcome: Outcome | None) -> None:
        if time.monotonic() - began > 200 and not stop.asked:
            stop.ask("the test, which has waited long enough")

    settings = Settings(open_drawer=OpenReader(), workers=2, ray=small_cluster)
    tally, _ = run_batch(jobs_of(requests(40)), open_store("out"), settings, show, stop)
    assert (tally.done, tally.failed, tally.left, tally.reason) == (40, 0, 0, "finished")


def test_a_ray_of_its_own_joins_no_other(tmp_path: Path, small_cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", small_cluster)
    settings = Settings(open_drawer=OpenFake(), workers=2, ray="local")
    tally, _ = run_batch(jobs_of(requests(4)), open_store(tmp_path), settings, lambda tally, job, outcome: None)
    assert (tally.done, tally.left) == (4, 0)
