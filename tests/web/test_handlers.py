"""Create's and Compare's handlers with a real service, where the moment matters: what is pressed between two of its steps."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from core.images import decode
from core.provenance import Record, read_record, write_picture
from core.request import RenderRequest
from tests.web.test_service import finished, request
from web import create, form, grid
from web.compare import _Compare
from web.handlers import Changes, Handlers
from web.quick import building
from web.service import Service

SMALL = {"width": 64, "height": 64, "steps": 2}
VISITOR: Any = gr.Request(session_hash="me")


def made(service: Service) -> Handlers:
    async def build() -> Handlers:  # Blocks makes locks, and a loop for them where none runs, which nobody closes
        with building(), gr.Blocks() as page:
            return create.build(page, service, gr.HTML())[1]

    return asyncio.run(build())


@pytest.fixture
def handlers(service: Service) -> Handlers:
    return made(service)


def said(handlers: Handlers, news: list[Changes], part: Any = None) -> str:
    part = part or handlers.parts.status
    return str([changes[part] for changes in news if part in changes][-1])


def drawn(service: Service, **values: Any) -> list[Path]:
    return list(finished(service.submit(request(steps=2, **values), "me")).paths)


def test_a_cancel_counts_while_the_request_is_being_read(handlers: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    read_request = form.read_request

    def read_slowly(*given: Any) -> RenderRequest:
        handlers.cancel(VISITOR)  # a large picture takes longer than a visitor
        return read_request(*given)

    monkeypatch.setattr(form, "read_request", read_slowly)
    assert "Cancelled." in said(handlers, list(handlers.render(VISITOR, SMALL)))
    monkeypatch.setattr(form, "read_request", read_request)
    assert "Done in" in said(handlers, list(handlers.render(VISITOR, SMALL))), "a cancel is over with what it stopped"


def test_a_cancel_counts_between_two_pictures_of_a_comparison(handlers: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    parts: dict[str, Any] = {name: gr.HTML() for name in ("draw", "stop", "said", "grid", "plot", "download")}
    sheet = grid.sheet

    def sheet_slowly(*given: Any) -> Any:
        handlers.cancel(VISITOR)
        return sheet(*given)

    monkeypatch.setattr(grid, "sheet", sheet_slowly)
    news = list(_Compare(handlers, parts).draw(VISITOR, SMALL, "seed", "1-3"))
    assert "Cancelled after 1 pictures." in said(handlers, news, parts["said"])


def test_a_cancel_stops_nobody_else_s(service: Service) -> None:
    with service.asking("me") as mine, service.asking("you") as yours:
        service.cancel("me")
        assert mine.stopped.is_set()
        assert finished(yours.submit(request(steps=2)))


def test_of_a_run_the_shown_picture_alone_is_upscaled(handlers: Handlers, service: Service) -> None:
    inputs = handlers.parts.inputs
    third = drawn(service, seed=5, count=3)[2]
    assert handlers.upscale(str(third)) == {inputs["seed"]: 9 - 2, inputs["count"]: 1, inputs["hires.on"]: True}
    varied = drawn(service, seed=5, count=3, variation_strength=0.5, variation_seed=20)[2]
    seeds = {inputs["seed"]: 5, inputs["variation_seed"]: 22}
    assert handlers.upscale(str(varied)) == seeds | {inputs["count"]: 1, inputs["hires.on"]: True}
    assert handlers.reuse_seed(str(varied)) == seeds


@pytest.mark.parametrize("name", ["reuse_seed", "vary", "upscale", "start_from", "control_from", "show_overlay"])
def test_a_picture_that_has_gone_is_one_sentence(handlers: Handlers, service: Service, name: str) -> None:
    (path,) = drawn(service)
    path.unlink()
    with pytest.raises(gr.Error, match="no longer in the output folder: render it again") as refused:
        getattr(handlers, name)(str(path))
    assert not refused.value.print_exception, "no traceback in the log"


def test_a_seed_that_no_browser_can_hold_is_named(handlers: Handlers, service: Service, tmp_path: Path) -> None:
    record = read_record(drawn(service)[0])
    seed = 2**60 + 1
    other = Record.model_validate(record.model_dump() | {"seed": seed, "request": record.request.model_copy(update={"seed": seed})})
    write_picture(tmp_path / "large.png", decode(drawn(service)[0]), other)
    changes, text = handlers.restore(str(tmp_path / "large.png"))
    assert handlers.parts.inputs["seed"] not in changes
    assert f"but not the seed {seed}, for a browser's numbers are exact up to {2**53 - 1}" in text


def test_a_control_is_called_as_the_page_calls_it(handlers: Handlers) -> None:
    asked = handlers.opened | {"control.2.on": True, "control.2.kind": "depth", "control.2.image": "/uploads/x/a.png"}
    assert (
        handlers.plain("control 0 (depth): picture '/uploads/x/a.png' is not a file", asked) == "Control 3: picture 'a.png' is not a file."
    )
    assert handlers.plain("controls.2.weight = 3: too much", asked) == "Control 3: weight = 3: too much."


def test_a_model_that_is_there_at_last_is_said_to_be_ready(models: Path, tmp_path: Path) -> None:
    late = tmp_path / "late"
    service = Service(str(late / "base"), tmp_path / "out")
    page = made(service)
    service.start()
    assert "No model" in said(page, list(page.greet()), page.parts.state)
    shutil.copytree(models, late)
    *_, news = page.render(VISITOR, SMALL)
    assert "Done in" in str(news)
    assert "ready" in said(page, [page.show_run(news[page.parts.taken])], page.parts.state)
    service.close()
