"""What happens when something on the page is used: values in, one call into the house, components out."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from core.errors import Cancelled, LimnError
from web import form, words
from web.service import Drawing, Finished, Service

Changes = dict[Any, Any]  # component → its new value or properties


@dataclass(frozen=True, eq=False)
class Parts:
    """The page's components. inputs: by the names that `web.form` reads; settings: the part of the page with each kind's own settings."""

    inputs: dict[str, Any]
    settings: dict[str, Any]
    model: Any
    map: Any
    map_note: Any
    render: Any
    cancel: Any
    picture: Any
    status: Any
    result: Any
    download: Any


class Handlers:
    """The page's behaviour. `values` are those of `Parts.inputs`, in order; outputs are named by component."""

    def __init__(self, service: Service, parts: Parts) -> None:
        self.service, self.parts = service, parts

    def greet(self) -> Iterator[Changes]:
        """On opening: the choices that need the libraries loaded, and how far the model is."""
        from pipelines.samplers import SAMPLERS
        from pipelines.schedules import SCHEDULES

        inputs = self.parts.inputs
        yield {inputs["sampler"]: gr.update(choices=list(SAMPLERS)), inputs["schedule"]: gr.update(choices=list(SCHEDULES))}
        while not self.service.loaded.wait(1):
            yield {self.parts.model: gr.skip()}
        problem = self.service.problem
        yield {
            self.parts.model: words.note(words.plain(problem, {}), problem=True) if problem else words.note(f"{self.service.model}, ready")
        }

    def show_settings(self, kind: str) -> list[Any]:
        """The chosen kind's own settings, and no other's."""
        return [gr.update(visible=name == kind) for name in self.parts.settings]

    def notice_map(self, kind: str, image: str | None) -> Any:
        """The *ready* switch, set when the uploaded picture is a finished map already."""
        try:
            finished = form.looks_finished(kind, Path(image)) if image else None
        except LimnError:  # show_map says what is wrong
            finished = None
        return gr.skip() if finished is None else finished

    def show_map(self, *values: Any) -> Changes:
        """The map as the network will see it."""
        asked = self._named(values)
        try:
            prepared = form.read_map(asked)
        except LimnError as error:
            return {self.parts.map: None, self.parts.map_note: words.note(self._plain(error, asked), problem=True)}
        warnings = " ".join(words.plain(warning, {}) for warning in prepared.warnings) if prepared else ""
        return {self.parts.map: prepared.map_HWC if prepared else None, self.parts.map_note: words.note(warnings)}

    def render(self, visitor: gr.Request, *values: Any) -> Iterator[Changes]:
        """The request drawn: waiting, step after step with previews, then the picture, or one sentence that says why not."""
        asked = self._named(values)
        shown = None
        try:
            job = self.service.submit(form.read_request(asked, self.service.out), str(visitor.session_hash))
            yield self._busy() | {self.parts.result: "", self.parts.download: gr.update(visible=False)}
            for news in job.follow():
                changes: Changes = {self.parts.status: words.bar(news)}
                if isinstance(news, Drawing) and news.preview is not None and news.preview is not shown:
                    shown = changes[self.parts.picture] = news.preview
                if isinstance(news, Finished):
                    changes |= self._finished(news)
                yield changes
        except Cancelled:
            yield self._idle() | {self.parts.status: words.note("Cancelled.")}
        except LimnError as error:
            yield self._idle() | {self.parts.status: words.note(self._plain(error, asked), problem=True)}

    def cancel(self, visitor: gr.Request) -> None:
        """Stops what this visitor has asked for; `render` says so on the page."""
        self.service.cancel(str(visitor.session_hash))

    def _finished(self, news: Finished) -> Changes:
        picture, path = news.pictures[-1], news.paths[-1]
        kinds = [unit.kind for unit in picture.record.request.controls]
        sentences = [words.fidelity(kind, score) for kind, score in zip(kinds, picture.fidelity, strict=True)]
        # A copy that may be served: nothing else in the output folder can be reached.
        copy = self.parts.download.move_resource_to_block_cache(str(path))
        return self._idle() | {
            self.parts.picture: copy,
            self.parts.result: "".join(words.note(sentence) for sentence in sentences),
            self.parts.download: gr.update(value=copy, visible=True),
        }

    def _busy(self) -> Changes:
        return {self.parts.render: gr.update(interactive=False), self.parts.cancel: gr.update(interactive=True)}

    def _idle(self) -> Changes:
        return {self.parts.render: gr.update(interactive=True), self.parts.cancel: gr.update(interactive=False)}

    def _named(self, values: tuple[Any, ...]) -> dict[str, Any]:
        return dict(zip(self.parts.inputs, values, strict=True))

    def _plain(self, error: LimnError, asked: dict[str, Any]) -> str:
        """The error in the visitor's terms: there is one control, and its upload is known by its own name, not by where it lies here."""
        kind, image = asked["control.kind"], asked["control.image"]
        names = {"controls.0.": "", "control 0: ": "", f"control 0 ({kind}): ": ""}
        return words.plain(str(error), names | ({f"{Path(image).parent}/": ""} if image else {}))
