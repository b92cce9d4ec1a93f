"""Batch: a manifest or control pictures, checked row by row, then drawn, also while nobody looks; what is done stays done."""

import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

import controls
from core.errors import LimnError
from web import words
from web.batches import Batch, Batches
from web.handlers import NOTHING, Changes, Handlers
from web.upload import upload_file

HELP = "A manifest (JSONL, CSV or Parquet) with the pictures it names, or control pictures with a text file each for the prompt."
HEAD = ["Line", "Prompt", "Controls", "State", "Fidelity"]
WIDTHS = ["64px", "270px", "110px", "634px", "96px"]  # a narrow window scrolls
SHOWN = 48  # results shown at once
KEY = "limn-batch"

_NEWS_S = 0.5
_QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": [], "api_visibility": "private"}


class _Batch:
    """The tab's behaviour. `key` says which batch it shows; the browser keeps it, so that a page that is opened again finds it."""

    def __init__(self, create: Handlers, batches: Batches, parts: dict[str, Any]) -> None:
        self.create, self.batches, self.parts = create, batches, parts

    def check(self, paths: list[str] | None, kind: str) -> Iterator[Changes]:
        """Every row of what was dropped: what it asks for, or what is wrong with it."""
        if not paths:
            yield {self.parts["said"]: ""}
            return
        files = [Path(path) for path in paths]
        try:
            batch = self.batches.check(files, kind)
        except LimnError as error:
            names = {f"{path.parent}/": "" for path in files}
            yield {self.parts["said"]: words.note(words.plain(str(error), names), problem=True)}
            return
        yield {self.parts["key"]: batch.key, self.parts["results"]: gr.update(visible=False)}
        yield from self._watched(batch)

    def run(self, key: Any) -> Iterator[Changes]:
        """What is not there is drawn; one that fails is said so and the next goes on."""
        try:
            batch = self.batches.start(key if isinstance(key, str) else "")
        except LimnError as error:
            yield {self.parts["said"]: words.note(words.plain(str(error), {}), problem=True)}
            return
        yield from self._watched(batch)

    def watch(self, key: Any) -> Iterator[Changes]:
        """The batch that this browser had, as far as it has come."""
        batch = self.batches.get(key)
        if batch is None:
            yield NOTHING
        else:
            yield from self._watched(batch)

    def pause(self, key: Any) -> None:
        """Stops within a step; `run` says so on the page."""
        batch = self.batches.get(key)
        if batch is not None:
            batch.pause()

    def open_results(self, key: Any) -> Changes:
        """The newest pictures, and all of them to take home."""
        batch = self.batches.get(key)
        if batch is None or not batch.paths:
            return NOTHING
        newest = [path for path in reversed(batch.paths) if path.is_file()][:SHOWN]
        return {
            self.parts["results"]: gr.update(visible=True),
            self.parts["pictures"]: [self.create.copy(str(path)) for path in newest],
            self.parts["all"]: gr.update(value=self._packed(batch)),
        }

    def _watched(self, batch: Batch) -> Iterator[Changes]:
        """The table whenever it has changed, and how far it is, until nothing moves any more."""
        parts, seen = self.parts, -1
        yield {parts["start"]: gr.update(interactive=False), parts["pause"]: gr.update(interactive=batch.running)}
        while batch.running:
            changes = {parts["said"]: words.share(self._far(batch), batch.done + batch.step[0] / batch.step[1], len(batch.jobs))}
            if batch.changes != seen:
                seen = batch.changes
                changes[parts["table"]] = gr.update(value=self._table(batch), visible=True)
            yield changes
            time.sleep(_NEWS_S)
        left = len(batch.jobs) - batch.done
        yield {
            parts["table"]: gr.update(value=self._table(batch), visible=True),
            parts["said"]: words.note(self._plain(batch.problem or self._end(batch)), problem=bool(batch.problem)),
            parts["start"]: gr.update(interactive=left > 0, value="Resume" if left and (batch.done or batch.failed) else "Start"),
            parts["pause"]: gr.update(interactive=False),
            parts["open"]: gr.update(interactive=batch.done > 0),
        }

    def _far(self, batch: Batch) -> str:
        done, steps = batch.step
        return f"{batch.done} of {len(batch.jobs)} pictures are done" + (f", step {done} of {steps} of the next." if done else ".")

    def _end(self, batch: Batch) -> str:
        total, bad = len(batch.jobs), f" {batch.bad} of the rows cannot be read and are left out." if batch.bad else ""
        if batch.done == total:
            return f"All {total} pictures are done; they are in the Gallery.{bad}" if total else f"No row is good.{bad}"
        if not batch.started:
            there = f", {batch.done} of them there already" if batch.done else ""
            return f"{total} pictures are ready to be drawn{there}.{bad}"
        failed = f", {batch.failed} failed" if batch.failed else ", the others wait"
        return f"{batch.done} of {total} pictures are done{failed}.{bad}"

    def _table(self, batch: Batch) -> list[list[Any]]:
        return [[*cells[:3], self._plain(cells[3]) if " " in cells[3] else cells[3], cells[4]] for cells in batch.table()]

    def _plain(self, text: str) -> str:
        out = self.create.service.out.resolve()
        return words.plain(text, {f"{out}/": ""}) if text else ""

    def _packed(self, batch: Batch) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{batch.folder.name}.zip"
            with zipfile.ZipFile(path, "w") as packed:  # PNG does not shrink
                for picture in batch.paths:
                    if picture.is_file():
                        packed.write(picture, picture.name)
            return self.create.copy(str(path))


def remembered() -> Any:
    """Where the browser keeps which batch it has; stands outside of the tabs, for what is in one is not there before it is opened."""
    return gr.BrowserState(None, storage_key=KEY, secret=KEY)


def build(page: Any, create: Handlers, batches: Batches, key: Any) -> None:
    """The tab's components, and which handler answers what. key: see `remembered`."""
    parts: dict[str, Any] = {"key": key}
    gr.HTML(words.note(HELP))
    with gr.Row():
        dropped = upload_file(label="Files", file_count="multiple", height=140, elem_id="batch-files", scale=3)
        kind = gr.Dropdown(controls.names(), value="canny", label="Control, where there is no manifest", scale=1, min_width=200)
    with gr.Row():
        parts["start"] = gr.Button("Start", variant="primary", interactive=False, scale=3, elem_id="start-batch")
        parts["pause"] = gr.Button("Pause", interactive=False, scale=1, min_width=100, elem_id="pause-batch")
        parts["open"] = gr.Button("Open results", interactive=False, scale=1, min_width=120, elem_id="open-batch")
    parts["said"] = gr.HTML(elem_id="batch-said")
    table: dict[str, Any] = {"headers": HEAD, "column_widths": WIDTHS, "interactive": False, "wrap": True, "buttons": []}
    parts["table"] = gr.Dataframe(visible=False, elem_id="batch-table", **table)
    with gr.Column(visible=False, elem_id="batch-results") as parts["results"]:
        parts["pictures"] = gr.Gallery(
            label="Newest pictures", columns=8, height="auto", buttons=[], elem_id="batch-pictures", interactive=False, object_fit="contain"
        )
        parts["all"] = gr.DownloadButton("Download all as ZIP", size="sm", elem_id="batch-download")
    handlers = _Batch(create, batches, parts)
    own = list(parts.values())
    long: dict[str, Any] = {"concurrency_limit": None} | _QUIET
    dropped.upload(handlers.check, [dropped, kind], own, **long)
    parts["start"].click(handlers.run, parts["key"], own, **long)
    parts["pause"].click(handlers.pause, parts["key"], queue=False, **_QUIET)
    parts["open"].click(handlers.open_results, parts["key"], own, **_QUIET)
    page.load(handlers.watch, parts["key"], own, **long)
