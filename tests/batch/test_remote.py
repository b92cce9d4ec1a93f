"""Outputs that fsspec knows: its own memory for the logic, and a local server that speaks S3."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from batch.lock import holder, locked
from batch.report import summarise
from batch.runner import Settings, run_batch
from batch.store import Remote, open_store, pictures
from core.errors import BadRequest
from core.request import RenderRequest
from tests.batch.fake import OpenFake
from tests.batch.test_runner import files, jobs_of, requests, run, silent


def draw(url: str, some: list[RenderRequest], **more: object) -> tuple[int, int]:
    settings = Settings(**{"open_drawer": OpenFake(), **more})  # type: ignore[arg-type]
    tally, _ = run_batch(jobs_of(some), open_store(url), settings, silent)
    return tally.there, tally.done


@pytest.fixture
def memory() -> Iterator[str]:
    import fsspec

    yield "memory://batch/run"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("s3fs", reason="s3fs is not installed: make ray")
    server = pytest.importorskip("moto.server", reason="moto is not installed: make ray")
    import s3fs

    running = server.ThreadedMotoServer(port=0)
    running.start()
    host, port = running.get_host_and_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    s3fs.S3FileSystem(endpoint_url=f"http://{host}:{port}").mkdir("studio")
    yield "s3://studio/run"
    running.stop()


def same_as_a_folder(url: str, folder: Path) -> None:
    some = requests(12)
    assert draw(url, some[:7]) == (0, 7)
    assert draw(url, some) == (7, 5)
    run(folder, jobs_of(some))
    store = open_store(url)
    assert {name: store.read(name) for name in pictures(store.names())} == files(folder)
    summary = summarise(store)
    assert (summary.total, len(summary.done), summary.left) == (12, 12, 0)
    assert b"<html" in (store.read("report.html") or b"")
    assert holder(store) is None


def test_an_address_holds_what_a_folder_would(memory: str, tmp_path: Path) -> None:
    same_as_a_folder(memory, tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_s3_holds_what_a_folder_would(s3: str, tmp_path: Path) -> None:
    same_as_a_folder(s3, tmp_path)


def test_a_failure_is_recorded_there_too(memory: str) -> None:
    some = [*requests(2), RenderRequest(prompt="fail", width=64, height=64)]
    draw(memory, some)
    assert len(summarise(open_store(memory)).failed) == 1
    assert draw(memory, some) == (2, 0)


def test_an_address_has_one_writer(memory: str) -> None:
    with locked(open_store(memory)), pytest.raises(BadRequest, match="is being written by process"):
        draw(memory, requests(1))
    assert draw(memory, requests(1)) == (0, 1)


def test_an_address_that_cannot_be_opened_says_so() -> None:
    with pytest.raises(BadRequest, match="cannot be opened"):
        Remote("nowhere://x").names()
