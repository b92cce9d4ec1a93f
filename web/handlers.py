"""What happens when something in Create is used: values in, one call into the house, components out."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

import controls
from core.errors import Cancelled, LimnError
from core.provenance import Record, read_record
from core.request import MAX_CONTROLS
from web import form, held, pictures, remembered, words
from web.fields import settings_of
from web.service import Drawing, Finished, Service
from web.settings import pool

Changes = dict[Any, Any]  # component → its new value or properties
NOTHING: Changes = gr.skip()  # an empty dictionary would be taken for a value


@dataclass(frozen=True, eq=False)
class Parts:
    """Create's components. inputs: by the names that `web.form` reads; sent: what carries all their values; columns: each unit's part."""

    inputs: dict[str, Any]
    sent: Any
    columns: list[Any]
    state: Any
    tokens: Any
    doctor: Any
    model_doctor: Any
    render: Any
    cancel: Any
    picture: Any
    status: Any
    result: Any
    after: Any
    download: Any
    run: Any
    taken: Any
    chosen: Any
    overlay: Any
    command: Any
    python: Any


class Handlers:
    """Create's behaviour. `sent` are the values of `Parts.inputs`, by name (see `web.held`); outputs are named by component.

    `taken` are the files of this run's pictures and `chosen` is the one that is shown: both stay on the server.
    """

    def __init__(self, service: Service, parts: Parts) -> None:
        self.service, self.parts = service, parts
        self.opened = held.opened(parts.inputs)

    def greet(self) -> Iterator[Changes]:
        """On opening: how far the model is, and those that are installed."""
        while not self.service.loaded.wait(1):
            yield {self.parts.state: gr.skip()}
        yield self._state() | {self.parts.inputs["model"]: gr.update(choices=self.service.models())}

    def _state(self) -> Changes:
        problem = self.service.problem
        ready = words.note(f"{self.service.model}, ready")
        return {self.parts.state: words.note(words.plain(problem, {}), problem=True) if problem else ready}

    def offer_networks(self, model: str, *kinds: str) -> list[Any]:
        """For every unit the ControlNets that fit the model and the unit's kind."""
        found = {kind: self.service.networks(kind, str(model or "")) for kind in {*kinds} & {*controls.names()}}
        return [gr.update(choices=["", *found.get(kind, [])]) for kind in kinds]

    def count_tokens(self, prompt: str, model: str) -> str:
        """How long the prompt is for the model."""
        try:
            counted = self.service.count_tokens(prompt, str(model or ""))
        except LimnError as error:
            return words.note(words.plain(str(error), {}), problem=True)
        return words.note(words.tokens(*counted)) if counted and prompt else ""

    def remember(self, stored: Any) -> Changes:
        """The settings that this browser had when the page was left."""
        self.service.asked.set()
        values = remembered.read(stored)
        if not values:
            return NOTHING
        return self._filled(values)

    def examine(self, sent: Any) -> tuple[Any, str]:
        """What will be wrong with the request: about the model, and about everything else."""
        asked = self.opened
        try:
            asked = self.asked(sent)
            found = self.service.examine(form.sketch_request(asked, self.service.model)) or []
        except LimnError as error:
            return NOTHING, words.findings([(self.plain(error, asked), True)])
        sentences = [(one.about == "model", self.plain(one.text, asked), one.level == "error") for one in found]
        about_model = dict.fromkeys((text, error) for of_model, text, error in sentences if of_model)
        about_rest = dict.fromkeys((text, error) for of_model, text, error in sentences if not of_model)
        return words.findings(list(about_model)), words.findings(list(about_rest))

    def render(self, visitor: gr.Request, sent: Any) -> Iterator[Changes]:
        """The request drawn: waiting, step after step with previews, then the pictures, or one sentence that says why not."""
        asked, shown = self.opened, None
        try:
            with self.service.asking(str(visitor.session_hash)) as asking:
                asked = self.asked(sent)
                request = form.read_request(asked, self.service.out, self.service.model)
                job = asking.submit(request)
                yield {self.parts.taken: []}
                for news in job.follow():
                    changes: Changes = {self.parts.status: words.bar(news)}
                    if isinstance(news, Drawing) and news.preview is not None and news.preview is not shown:
                        shown = changes[self.parts.picture] = news.preview
                    if isinstance(news, Finished):
                        taken = [str(path) for path in news.paths]
                        changes |= {self.parts.picture: self.copy(taken[-1]), self.parts.taken: taken}
                    yield changes
        except Cancelled:
            yield {self.parts.status: words.note("Cancelled.")}
        except LimnError as error:
            yield {self.parts.status: words.note(self.plain(error, asked), problem=True)}

    def show_run(self, taken: list[str]) -> Changes:
        """What can be done with the pictures that `render` has drawn; nothing where it has drawn none."""
        parts = self.parts
        idle = {parts.render: gr.update(interactive=True), parts.cancel: gr.update(interactive=False)}
        idle |= self._state()  # a model that could not be loaded may have been meanwhile
        if not taken:
            return idle | {parts.run: gr.update(value=[], visible=False)}
        thumbnails = [self.copy(path) for path in taken] if len(taken) > 1 else []
        run = gr.update(value=thumbnails, visible=bool(thumbnails), selected_index=None)
        shown = {parts.run: run, parts.after: gr.update(visible=True)}
        return idle | shown | self._about(taken[-1])

    def cancel(self, visitor: gr.Request) -> None:
        """Stops what this visitor has asked for; `render` says so on the page."""
        self.service.cancel(str(visitor.session_hash))

    def choose(self, taken: list[str], event: gr.SelectData) -> Changes:
        """One picture of the run, shown large."""
        index = event.index
        if not isinstance(index, int) or not 0 <= index < len(taken):
            return NOTHING
        path = self._known(taken[index])
        return {self.parts.picture: self.copy(path)} | self._about(path)

    def reuse_seed(self, chosen: str) -> Changes:
        """The shown picture's seed, and its variation's."""
        return self._seeds(read_record(Path(self._known(chosen))))

    def start_from(self, chosen: str) -> list[Any]:
        """The shown picture as the one to begin from, in sight."""
        return [self.copy(self._known(chosen)), gr.update(open=True)]

    def control_from(self, chosen: str) -> list[Any]:
        """The shown picture as a control's: image, ready, on, in sight."""
        return [self.copy(self._known(chosen)), False, True, gr.update(visible=True)]

    def vary(self, chosen: str) -> Changes:
        """The settings of a small variation of the shown picture."""
        record, inputs = read_record(Path(self._known(chosen))), self.parts.inputs
        _, variation = record.request.seeds(record.index)
        new = 0 if variation is None else variation + 1
        return {inputs["seed"]: record.seed, inputs["variation_strength"]: pictures.VARIED, inputs["variation_seed"]: new}

    def upscale(self, chosen: str) -> Changes:
        """The shown picture, and no other of its run, with a second, larger pass."""
        record, inputs = read_record(Path(self._known(chosen))), self.parts.inputs
        return self._seeds(record) | {inputs["count"]: 1, inputs["hires.on"]: True}

    def show_overlay(self, chosen: str) -> Any:
        """For every control the map that was wanted, and how the picture lies on it."""
        path = Path(self._known(chosen))
        try:
            return gr.update(value=pictures.overlays(path), visible=True)
        except LimnError as error:
            raise gr.Error(words.plain(str(error), {}), print_exception=False) from None

    def restore(self, path: str) -> tuple[Changes, str]:
        """The settings of a picture's file, and what is to be said about them.

        Raises:
            LimnError: the file holds none that can be read.
        """
        found = pictures.read_settings(Path(path))
        values, lost = form.shown(found.request, self.service.out, found.record)
        lost += found.lost
        text = f"Settings of {found.origin} are restored" + (f", but not {', '.join(lost)}." if lost else ".")
        return self._filled(values), text

    def _filled(self, values: dict[str, Any]) -> Changes:
        """Values put into the inputs of these names; every unit that is named is shown or hidden."""
        inputs, changes = self.parts.inputs, Changes()
        for i in range(MAX_CONTROLS):
            prefix = f"control.{i}."
            if f"{prefix}on" not in values:
                continue
            if values[f"{prefix}on"]:
                kind = values[f"{prefix}kind"]
                for slot, shown in zip(pool(), settings_of(kind), strict=True):
                    own = {"value": _held(values[prefix + slot])} if prefix + slot in values else {}
                    changes[inputs[prefix + slot]] = gr.update(**(shown | own))
            changes[self.parts.columns[i]] = gr.update(visible=values[f"{prefix}on"])
        for name, value in values.items():
            if name in inputs and inputs[name] not in changes:
                changes[inputs[name]] = (self.copy(value) if value else None) if name.endswith("image") else _held(value)
        return changes

    def _about(self, path: str) -> Changes:
        record = read_record(Path(path))
        request = pictures.alone(record)
        scores = [None if control.fidelity is None else control.fidelity for control in record.controls]
        sentences = [words.fidelity(unit.kind, score) for unit, score in zip(request.controls, scores, strict=True)]
        return {
            self.parts.chosen: path,
            self.parts.result: "".join(words.note(sentence) for sentence in sentences),
            self.parts.download: gr.update(value=self.copy(path)),
            self.parts.command: pictures.as_command(request, self.service.opening),
            self.parts.python: pictures.as_python(request, self.service.opening),
            self.parts.overlay: gr.update(value=None, visible=False),
        }

    def copy(self, path: str) -> str:
        """A copy that may be served: nothing else in the output folder can be reached."""
        return str(self.parts.download.move_resource_to_block_cache(path))

    def _seeds(self, record: Record) -> Changes:
        """What draws this picture of its run."""
        seed, variation = record.request.seeds(record.index)
        return {self.parts.inputs["seed"]: seed} | ({} if variation is None else {self.parts.inputs["variation_seed"]: variation})

    def _known(self, chosen: str) -> str:
        """A drawn picture's file that is still there."""
        if not chosen:
            raise gr.Error("Nothing has been drawn yet: render a picture first.", print_exception=False)
        if not Path(chosen).is_file():
            raise gr.Error("This picture is no longer in the output folder: render it again.", print_exception=False)
        return chosen

    def asked(self, sent: Any) -> dict[str, Any]:
        """What Create's inputs hold, by name.

        Raises:
            BadRequest: what was sent is not that.
        """
        return held.read(sent, self.opened)

    def plain(self, error: LimnError | str, asked: dict[str, Any]) -> str:
        """The error in the visitor's terms: controls are counted from 1, an upload is known by its own name, not by where it lies."""
        alone = sum(bool(asked[f"control.{i}.on"]) for i in range(MAX_CONTROLS)) == 1
        names: dict[str, str] = {}
        given = [i for i in range(MAX_CONTROLS) if form.is_given(asked, i)]  # a request counts these alone
        for i in range(MAX_CONTROLS):
            ours = "" if alone else f"control {i + 1}: "
            names[f"controls.{i}."] = ours
            if i in given:
                place = given.index(i)
                names |= {f"control {place} ({asked[f'control.{i}.kind']}): ": ours, f"control {place}: ": ours}
            if asked[f"control.{i}.image"]:
                names[f"{Path(asked[f'control.{i}.image']).parent}/"] = ""
        if asked.get("init_image"):
            names[f"{Path(asked['init_image']).parent}/"] = ""
        return words.plain(str(error), names)


def _held(value: Any) -> Any:
    """A setting as its component holds it: a number component shows None as 0."""
    return "" if value is None else value
