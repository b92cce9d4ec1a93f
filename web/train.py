"""Train: a dataset looked at, a ControlNet trained in a process of its own and watched, the result put into Create."""

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

import controls
from core.errors import BadRequest, LimnError
from core.request import MAX_CONTROLS
from web import train_folder, train_layout, train_settings, train_upload, words
from web.fields import settings_of
from web.handlers import NOTHING, Changes, Handlers
from web.kept import keep
from web.settings import pool
from web.train_check import Looked, look
from web.train_folder import Told
from web.train_process import Trainings

TICK_S = 2.0

_QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": [], "api_visibility": "private"}


class _Train:
    """The tab's behaviour. `seen` says which state of which training is shown, so that nothing is sent twice; it stays on the server."""

    def __init__(self, trainings: Trainings, create: Handlers, *, parts: dict[str, Any], fields: dict[str, Any]) -> None:
        self.places, self.trainings, self.create, self.parts, self.fields = trainings.places, trainings, create, parts, fields

    def open(self, chosen: str | None) -> Changes:
        """The tab as it is when somebody comes: what can be chosen now, and the training that runs, or the newest."""
        names = train_folder.names(self.places.runs)
        running = self.trainings.running()
        name = running.name if running else chosen if chosen in names else next(iter(names), None)
        changes = {
            self.parts["run"]: gr.update(choices=names, value=name, visible=bool(names)),
            self.fields["folder"]: gr.update(choices=self.places.datasets()),
            self.fields["base"]: gr.update(choices=self.create.service.models()),
        }
        return changes | self._shown(name, None)

    def show(self, name: str | None, seen: Any) -> Changes:
        """What has changed of the chosen training."""
        return self._shown(name, seen)

    def fill(self, preset: str) -> Changes:
        """The fields with a preset's values."""
        try:
            values = train_settings.shown(train_settings.preset(preset))
        except LimnError as error:
            return {self.parts["said"]: words.note(_plain(error), problem=True)}
        return {self.fields[key]: value for key, value in values.items()} | {self.parts["said"]: ""}

    def check(self, *values: Any) -> Iterator[Changes]:
        """Every pair looked at: what is wrong, and a sheet of some."""
        asked, parts = self._named(values), self.parts
        yield {parts["check"]: gr.update(interactive=False), parts["checked"]: words.note("Listing the pairs.")}
        try:
            config = train_settings.read_data(asked, self.places)
            hidden = {f"{config.folder}/": ""}
            for news in look(config):
                if not isinstance(news, Looked):
                    yield {parts["checked"]: words.share(f"Pair {news.seen} of {news.total}.", news.seen, max(1, news.total))}
                    continue
                found = news.found
                wrong = f"{len(found.mistakes)} kinds of mistakes" if len(found.mistakes) > 1 else "1 kind of mistake"
                verdict = f"{wrong}: mend them, or leave those pairs out" if found.mistakes else "nothing that training would stop at"
                yield {
                    parts["checked"]: words.note(f"{found.pairs} pairs, {verdict}.", problem=bool(found.mistakes)),
                    parts["findings"]: _findings([words.plain(line, hidden) for line in found.lines()]),
                    parts["sheet"]: gr.update(value=news.sheet_HWC, visible=news.sheet_HWC is not None),
                }
        except LimnError as error:
            said = words.note(_plain(error, asked), problem=True)
            yield {parts["checked"]: said, parts["findings"]: "", parts["sheet"]: gr.update(value=None, visible=False)}
        yield {parts["check"]: gr.update(interactive=True)}

    def receive(self, paths: list[str] | None) -> Changes:
        """An uploaded dataset, chosen."""
        files = [Path(path) for path in paths or []]
        if not files:
            return NOTHING
        try:
            received = train_upload.receive(files, self.places.uploads)
        except LimnError as error:
            said = words.note(words.plain(str(error), {f"{path.parent}/": "" for path in files}), problem=True)
            return {self.parts["checked"]: said, self.parts["upload"]: None}
        left_out = f" {received.left_out} other files were left out." if received.left_out else ""
        return {
            self.parts["checked"]: words.note(f"{received.files} files have arrived.{left_out}"),
            self.parts["findings"]: "",
            self.parts["sheet"]: gr.update(value=None, visible=False),
            self.parts["upload"]: None,
            self.fields["folder"]: gr.update(choices=self.places.datasets(), value=train_folder.short(received.folder.absolute())),
        }

    def remove(self, folder: Any) -> Changes:
        """The chosen dataset, where it was uploaded, is no longer kept."""
        try:
            name = self.trainings.remove_upload(str(folder or ""))
        except LimnError as error:
            return {self.parts["checked"]: words.note(_plain(error), problem=True)}
        return {
            self.parts["checked"]: words.note(f"{name} is removed."),
            self.parts["findings"]: "",
            self.parts["sheet"]: gr.update(value=None, visible=False),
            self.fields["folder"]: gr.update(choices=self.places.datasets(), value=""),
        }

    def start(self, *values: Any) -> Changes:
        """A new training."""
        asked = self._named(values)
        try:
            name = self.trainings.start(train_settings.read_config(asked, self.places))
        except LimnError as error:
            return {self.parts["said"]: words.note(_plain(error, asked), problem=True)}
        names = train_folder.names(self.places.runs)
        return self._shown(name, None) | {
            self.parts["run"]: gr.update(choices=names, value=name, visible=True),
            self.parts["said"]: words.note(f"Training {name} has started. Drawing goes on meanwhile, and comes first."),
        }

    def resume(self, name: str | None) -> Changes:
        """The chosen training goes on."""
        try:
            self.trainings.resume(self.places.run(str(name or "")))
        except LimnError as error:
            return self._told(error)
        return self._shown(name, None)

    def stop(self, name: str | None) -> Changes:
        """The running training finishes its step, saves, and ends."""
        self.trainings.stop()
        return {self.parts["state"]: words.note("Stopping after this step; what was learned is saved."), self.parts["seen"]: None}

    def use(self, name: str | None) -> Changes:
        """The trained ControlNet in Create's first control."""
        try:
            told = train_folder.read(self.places.run(str(name or "")))
            if told.usable is None:
                raise BadRequest(f"training {told.name!r} has nothing to draw with yet: wait for its end, or until its condition is heard")
        except LimnError as error:
            return self._told(error)
        inputs, (folder, what) = self.create.parts.inputs, told.usable
        data, path = told.settings.get("data", {}), train_folder.short(folder)
        kind = next(
            (name for name in (data.get("kind"), data.get("condition")) if isinstance(name, str) and name in controls.names()), None
        )
        known = ["", path]  # what else fits follows from the kind and the model
        changes: Changes = {
            inputs["control.0.on"]: True,
            self.create.parts.columns[0]: gr.update(visible=True),
            inputs["control.0.model"]: gr.update(choices=known, value=path),
            inputs["model"]: str(told.settings.get("base", self.create.service.model)),
            self.create.parts.status: words.note(f"The first control is drawn by {what} of training {told.name}."),
            self.parts["tabs"]: gr.update(selected="create"),
        }
        for key in ("width", "height"):
            changes |= {inputs[key]: data[key]} if key in data else {}
        if kind is None:  # of a kind of its own: its maps come finished
            return changes | {inputs["control.0.ready"]: True}
        shown = {inputs[f"control.0.{slot}"]: gr.update(**one) for slot, one in zip(pool(), settings_of(kind), strict=True)}
        return changes | {inputs["control.0.kind"]: kind} | shown

    def _shown(self, name: str | None, seen: Any) -> Changes:
        """The chosen training as its folder tells it, where that has changed since `seen`."""
        parts = self.parts
        running = self.trainings.running()
        runs = running is not None and running.name == name
        if not name:
            return {parts["watch"]: gr.update(visible=False), parts["timer"]: gr.update(active=running is not None)}
        try:
            folder = self.places.run(str(name))
            now = [name, runs, train_folder.changed(folder)]
            if now == seen:
                return {parts["seen"]: now}
            told = train_folder.read(folder)
        except LimnError as error:
            return self._told(error) | {parts["timer"]: gr.update(active=False)}
        changes: Changes = {
            parts["seen"]: now,
            parts["watch"]: gr.update(visible=True),
            parts["state"]: _state(told, runs),
            parts["timer"]: gr.update(active=running is not None),
            parts["stop"]: gr.update(visible=runs),
            parts["resume"]: gr.update(visible=not runs and not told.finished, interactive=running is None),
            parts["use"]: gr.update(visible=told.usable is not None),
            parts["log"]: words_of_log(told.said),
            parts["grid"]: gr.update(value=self._copy(told.grid) if told.grid else None, visible=told.grid is not None),
        }
        if not runs:
            changes[parts["said"]] = ""  # that it has started
        return changes | {parts[key]: _plot(told, key) for key in train_layout.CURVES}

    def _told(self, error: LimnError) -> Changes:
        return {self.parts["watch"]: gr.update(visible=True), self.parts["state"]: words.note(_plain(error), problem=True)}

    def _named(self, values: tuple[Any, ...]) -> dict[str, Any]:
        return dict(zip(self.fields, values, strict=True))

    def _copy(self, path: Path) -> str:
        """A copy that may be served: nothing else in the runs' folder can be reached."""
        return str(self.create.parts.download.move_resource_to_block_cache(str(path)))


def build(tab: Any, tabs: Any, trainings: Trainings, create: Handlers) -> None:
    """The tab's components, and which handler answers what."""
    parts: dict[str, Any] = {"tabs": tabs, "seen": gr.State(None), "timer": gr.Timer(TICK_S, active=False)}
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=6, min_width=340, elem_id="train-asked"):
            fields, preset = train_layout.settings(parts)
        with gr.Column(scale=5, min_width=340, elem_id="train-shown"):
            train_layout.watching(parts)
    create.service.trained = trainings.networks
    keep("train", fields, tab)
    handlers = _Train(trainings, create, parts=parts, fields=fields)
    given, run = list(fields.values()), parts["run"]
    into_create = [*create.parts.inputs.values(), create.parts.columns[0], create.parts.status]
    outputs = [*parts.values(), *given]
    tab.select(handlers.open, run, outputs, **_QUIET)
    preset.input(handlers.fill, preset, outputs, **_QUIET)
    parts["upload"].upload(handlers.receive, parts["upload"], outputs, **_QUIET)
    parts["remove"].click(handlers.remove, fields["folder"], outputs, **_QUIET)
    parts["check"].click(handlers.check, given, outputs, concurrency_limit=2, **_QUIET)
    parts["start"].click(handlers.start, given, outputs, **_QUIET)
    run.input(handlers.show, [run, gr.State(None)], outputs, **_QUIET)
    parts["timer"].tick(handlers.show, [run, parts["seen"]], outputs, queue=False, **_QUIET)
    parts["stop"].click(handlers.stop, run, outputs, queue=False, **_QUIET)
    parts["resume"].click(handlers.resume, run, outputs, **_QUIET)
    used = parts["use"].click(handlers.use, run, [*outputs, *into_create], **_QUIET)
    kinds, networks = ([create.parts.inputs[f"control.{i}.{name}"] for i in range(MAX_CONTROLS)] for name in ("kind", "model"))
    used.then(create.offer_networks, [create.parts.inputs["model"], *kinds], networks, **_QUIET)


def _plain(error: LimnError, asked: Mapping[str, Any] | None = None) -> str:
    """The error in the visitor's terms."""
    hidden = {f"{asked['folder']}/": "", "data.folder": "dataset"} if asked and asked.get("folder") else {}
    return words.plain(str(error), hidden)


def words_of_log(said: str) -> str:
    """What a training says, without where this page lies."""
    return said.replace(f"{Path.cwd()}/", "")


def _state(told: Told, runs: bool) -> str:
    """Where a training is, as HTML."""
    if runs and not told.step:
        return f"{words.note('Preparing: the base is loaded and the pairs are encoded.')}<progress aria-label='Preparing'></progress>"
    if runs and told.step >= told.steps:
        return words.share("Measuring and writing the weights.", 1, 1)
    left = f", about {words.duration(told.seconds_left)} left" if runs and told.seconds_left is not None else ""
    if runs:
        return words.share(f"Step {told.step} of {told.steps}{left}.", told.step, max(1, told.steps))
    if told.finished:
        return words.note(f"Finished after {told.steps} steps.")
    if told.problem:
        return words.note(words_of_log(words.plain(told.problem, {})), problem=True)
    if told.saved:
        return words.note(f"Stopped at step {told.saved} of {told.steps}. Resume goes on from there.")
    return words.note("Stopped before anything was saved.")


def _plot(told: Told, key: str) -> Any:
    _, y, series = train_layout.CURVES[key]
    rows = train_folder.curve(told.measured if key in ("gap", "fidelity") else told.log, **series)
    if len({step for step, *_ in rows}) < 2:  # one point makes no line
        return gr.update(value=None, visible=False)
    import pandas  # type: ignore[import-untyped]

    return gr.update(value=pandas.DataFrame(rows, columns=["step", y, "curve"]), visible=True)


def _findings(lines: list[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="findings">{items}</ul>' if items else ""
