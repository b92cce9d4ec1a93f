"""One renderer for all visitors: order, news, cancellation within the step, places in the queue, and failures in plain words."""

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.errors import BadModel, Cancelled, LimnError, QueueFull
from core.provenance import read_record
from core.request import RenderRequest
from renderer import Picture, Renderer
from web import service as module
from web.service import Drawing, Finished, Job, News, Service, Waiting


def request(**values: Any) -> RenderRequest:
    return RenderRequest(**({"prompt": "a red sphere", "width": 64, "height": 64, "steps": 4, "seed": 7} | values))


@pytest.fixture
def idle(models: Path, tmp_path: Path) -> Iterator[Service]:
    """A service whose thread has not been started: everything waits."""
    service = Service(str(models / "base"), tmp_path / "out")
    yield service
    service.close()


def finished(job: Job) -> Finished:
    *_, last = job.follow()
    assert isinstance(last, Finished)
    return last


def at_step(service: Service, number: int, act: Any) -> list[int]:
    """Have `act` called in the middle of a step, while the network computes; the list counts the steps."""
    assert service.loaded.wait(100)
    assert service._renderer is not None
    family: Any = service._renderer.engine.base(Path(service.model))
    calls: list[int] = []

    def hook(*_: Any) -> None:
        calls.append(len(calls) + 1)
        if len(calls) == number:
            act()

    family.unet.register_forward_hook(hook)
    return calls


def heard(job: Job, at: threading.Event, *, preview: bool = False) -> list[News]:
    """All that a listener hears; `at` is set at the first word of a step, or with a preview, and a step may wait for it."""
    news = []
    for one in job.follow():
        news.append(one)
        if isinstance(one, Drawing) and (one.preview is not None or not preview):
            at.set()
    return news


def test_a_picture_is_what_the_renderer_draws_and_is_published(service: Service, models: Path) -> None:
    listened = threading.Event()
    at_step(service, 30, lambda: listened.wait(100))
    news = heard(service.submit(request(steps=60), "me"), listened)
    last = news[-1]
    assert isinstance(last, Finished)
    drawn = [item for item in news if isinstance(item, Drawing)]
    assert [item.done for item in drawn] == sorted(item.done for item in drawn)
    assert {item.steps for item in drawn} == {60}
    assert isinstance(news[0], Waiting)
    alone = Renderer.open(str(models / "base"), device="cpu").render(request(steps=60))[0]
    assert np.array_equal(np.asarray(last.pictures[0].image), np.asarray(alone.image))
    assert read_record(last.paths[0]) == last.pictures[0].record
    assert last.paths[0].parent == service.out


def test_previews_are_pictures_of_the_whole_size(service: Service) -> None:
    listened = threading.Event()
    at_step(service, 3, lambda: time.sleep(module.FIRST_PREVIEW_S))  # by the end of this step a preview is due
    at_step(service, 5, lambda: listened.wait(100))
    news = heard(service.submit(request(steps=8), "me"), listened, preview=True)
    found = [one.preview for one in news if isinstance(one, Drawing) and one.preview is not None]
    assert found
    assert {(preview.shape, preview.dtype) for preview in found} == {((64, 64, 3), np.dtype(np.uint8))}


def test_cancel_stops_within_the_step(service: Service) -> None:
    before = np.asarray(finished(service.submit(request(), "me")).pictures[0].image)
    calls = at_step(service, 5, lambda: service.cancel("me"))
    with pytest.raises(Cancelled, match="step 5 of 500"):
        list(service.submit(request(steps=500), "me").follow())
    after = finished(service.submit(request(), "me"))
    assert len(calls) == 5 + 4  # the step in which it was cancelled was the last
    assert np.array_equal(np.asarray(after.pictures[0].image), before)


def test_the_doctor_is_asked_while_a_picture_is_drawn_and_moves_no_weight(service: Service, idle: Service) -> None:
    assert idle.examine(request()) is None, "the model is still loading"
    found: list[Any] = []
    at_step(service, 2, lambda: found.append(service.examine(request(model="nobody/nothing"))))
    finished(service.submit(request(), "me"))
    assert [(one.about, one.level) for one in found[0]] == [("model", "error")]
    assert service._renderer is not None
    loaded = list(service._renderer.engine._bases)
    assert [one.text for one in service.examine(request()) or []] == []
    assert list(service._renderer.engine._bases) == loaded


def test_only_networks_that_fit_are_offered(
    service: Service, idle: Service, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMN_MODELS", str(tmp_path))  # what other tests have trained is offered too
    assert idle.networks("canny", "") == []
    assert service.loaded.wait(100)
    offered = [Path(name).name for name in service.networks("canny", "")]
    assert offered
    assert all((models / name).is_dir() for name in offered)
    assert service.networks("canny", "nobody/nothing") == []
    assert service.networks("no such kind", "") == []
    assert service.model in service.models()
    assert "toyland" in service.models()


def test_only_the_visitors_own_work_is_cancelled(service: Service) -> None:
    at_step(service, 3, lambda: service.cancel("somebody else"))
    assert finished(service.submit(request(steps=6), "me")).paths[0].is_file()


def test_who_stops_listening_stops_the_work(service: Service) -> None:
    drawing, gone = threading.Event(), threading.Event()

    def wait() -> None:
        drawing.set()
        gone.wait(100)

    calls = at_step(service, 3, wait)
    listening = service.submit(request(steps=50), "me").follow()
    while not drawing.is_set():
        next(listening)
    listening.close()  # type: ignore[attr-defined]  # as Gradio does when the page is closed
    gone.set()
    finished(service.submit(request(), "you"))
    assert len(calls) == 3 + 4  # the step in which it was closed was the last


def test_waiting_jobs_know_their_place(idle: Service) -> None:
    jobs = [idle.submit(request(seed=seed), f"visitor {seed}") for seed in range(3)]
    assert [next(job.follow()) for job in jobs[1:]] == [Waiting(1, loading=True), Waiting(1, loading=True)]
    # Nobody listens to the last two any more, which took them out of the queue.
    idle.start()
    assert finished(jobs[0]).pictures[0].record.seed == 0
    for job in jobs[1:]:
        with pytest.raises(Cancelled):
            list(job.follow())


def test_first_come_first_served(idle: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[int] = []
    save = Picture.save

    def saved(self: Picture, folder: Path) -> Path:
        order.append(self.record.seed)
        return save(self, folder)

    monkeypatch.setattr(Picture, "save", saved)
    jobs = [idle.submit(request(seed=seed), "me") for seed in (5, 3, 9)]
    idle.start()
    assert [finished(job).pictures[0].record.seed for job in jobs] == [5, 3, 9] == order


def test_a_full_queue_says_so(idle: Service) -> None:
    jobs = [idle.submit(request(), f"visitor {i}") for i in range(module.CAPACITY)]
    with pytest.raises(QueueFull, match=r"^32 pictures are waiting already"):
        idle.submit(request(), "me")
    jobs[0].cancel()
    for _ in range(2):
        jobs.pop().cancel()
    mine = [idle.submit(request(), "me") for _ in range(3)]
    with pytest.raises(QueueFull, match=r"^32 pictures"):
        idle.submit(request(), "me")
    mine[0].cancel()


def test_one_visitor_waits_for_four_at_most(idle: Service) -> None:
    jobs = [idle.submit(request(), "me") for _ in range(module.PER_VISITOR)]
    with pytest.raises(QueueFull, match=r"^4 of your pictures are waiting already"):
        idle.submit(request(), "me")
    idle.submit(request(), "another")
    jobs[0].cancel()
    idle.submit(request(), "me")


def test_a_missing_model_is_reported_and_tried_again(models: Path, tmp_path: Path) -> None:
    service = Service(str(tmp_path / "later"), tmp_path / "out")
    service.start()
    assert service.loaded.wait(100)
    assert service.problem is not None
    assert "later" in service.problem
    with pytest.raises(BadModel, match="later"):
        list(service.submit(request(), "me").follow())
    shutil.copytree(models / "base", tmp_path / "later")
    assert finished(service.submit(request(), "me")).paths[0].is_file()
    assert service.problem is None
    service.close()


def test_what_nobody_expected_ends_the_job_alone(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Picture, "save", lambda *_: 1 / 0)
        with pytest.raises(LimnError, match=r"^something went wrong inside Limn \(ZeroDivisionError\): the server's log says more$"):
            list(service.submit(request(), "me").follow())
    assert "Traceback" in caplog.text
    assert finished(service.submit(request(), "me")).paths[0].is_file()
