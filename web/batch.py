"""Batch: a manifest or control pictures, checked row by row, then drawn in order; what is done is done, a second run goes on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

import controls
from batch.manifest import Manifest
from core.errors import Cancelled, LimnError
from web import manifest, words
from web.handlers import Changes, Handlers
from web.service import Drawing, Finished
from web.upload import upload_file

HELP = "A manifest (JSONL, CSV or Parquet) with the pictures it names, or control pictures with a text file each for the prompt."
HEAD = ["Line", "Prompt", "Controls", "State", "Fidelity"]

_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


class _Batch:
    """The tab's behaviour. `rows` is the checked manifest and `table` what became of it: both stay on the server."""

    def __init__(self, create: Handlers, parts: dict[str, Any]) -> None:
        self.create, self.parts = create, parts

    def check(self, paths: list[str] | None, kind: str) -> Changes:
        """Every row of what was dropped: what it asks for, or what is wrong with it."""
        if not paths:
            return {self.parts["said"]: ""}
        files = [Path(path) for path in paths]
        try:
            found = manifest.collect(files, self.create.service.out, kind)
        except LimnError as error:
            names = {f"{path.parent}/": "" for path in files}
            return {self.parts["said"]: words.note(words.plain(str(error), names), problem=True)}
        table: list[list[Any]] = [
            [row.line, row.request.prompt[:80], ", ".join(unit.kind for unit in row.request.controls), "ready", ""] for row in found.rows
        ]
        table += [[problem.line, "", "", words.plain(problem.message, {}), ""] for problem in found.problems]
        bad = f", {len(found.problems)} cannot be read and will be left out" if found.problems else ""
        return {
            self.parts["table"]: gr.update(value=sorted(table, key=lambda row: row[0]), visible=True),
            self.parts["said"]: words.note(f"{len(found.rows)} rows are ready{bad}."),
            self.parts["rows"]: found,
            self.parts["lines"]: sorted(table, key=lambda row: row[0]),
            self.parts["start"]: gr.update(interactive=bool(found.rows), value="Start"),
        }

    def run(self, visitor: gr.Request, found: Manifest | None, lines: list[list[Any]]) -> Iterator[Changes]:
        """Every row that is not done, in order; one that fails is said so and the next goes on."""
        parts = self.parts
        if found is None:
            return
        lines = [list(line) for line in lines]
        at = {line[0]: line for line in lines}
        todo = [row for row in found.rows if at[row.line][3] != "done"]
        yield {parts["start"]: gr.update(interactive=False), parts["pause"]: gr.update(interactive=True)}
        try:
            for number, row in enumerate(todo):
                line = at[row.line]
                try:
                    for news in self.create.service.submit(row.request, str(visitor.session_hash)).follow():
                        share = number + (news.done / news.steps if isinstance(news, Drawing) else 0)
                        yield {parts["said"]: words.share(f"Row {number + 1} of {len(todo)}.", share, len(todo))}
                        if isinstance(news, Finished):
                            scores = [control.fidelity.value for control in news.pictures[0].record.controls if control.fidelity]
                            line[3:] = ["done", ", ".join(f"{score:.2f}" for score in scores)]
                except Cancelled:
                    raise
                except LimnError as error:
                    line[3] = words.plain(str(error), {f"{self.create.service.out.resolve()}/": ""})
                yield {parts["table"]: lines, parts["lines"]: lines}
            failed = sum(at[row.line][3] != "done" for row in found.rows)
            said = (
                f"{len(found.rows) - failed} rows are done"
                + (f", {failed} failed." if failed else ".")
                + " The pictures are in the Gallery."
            )
            yield {parts["said"]: words.note(said), parts["start"]: gr.update(interactive=True, value="Start")}
        except Cancelled:
            yield {parts["said"]: words.note("Paused."), parts["start"]: gr.update(interactive=True, value="Resume")}
        yield {parts["pause"]: gr.update(interactive=False), parts["lines"]: lines}


def build(create: Handlers) -> None:
    """The tab's components, and which handler answers what."""
    parts: dict[str, Any] = {"rows": gr.State(None), "lines": gr.State([])}
    gr.HTML(words.note(HELP))
    with gr.Row():
        dropped = upload_file(label="Files", file_count="multiple", height=140, elem_id="batch-files", scale=3)
        kind = gr.Dropdown(controls.names(), value="canny", label="Control, where there is no manifest", scale=1, min_width=200)
    with gr.Row():
        parts["start"] = gr.Button("Start", variant="primary", interactive=False, scale=3, elem_id="start-batch")
        parts["pause"] = gr.Button("Pause", interactive=False, scale=1, min_width=100, elem_id="pause-batch")
    parts["said"] = gr.HTML(elem_id="batch-said")
    parts["table"] = gr.Dataframe(headers=HEAD, visible=False, interactive=False, wrap=True, elem_id="batch-table", buttons=[])
    handlers = _Batch(create, parts)
    own = list(parts.values())
    dropped.upload(handlers.check, [dropped, kind], own, **_QUIET)
    parts["start"].click(handlers.run, [parts["rows"], parts["lines"]], own, concurrency_limit=None, **_QUIET)
    parts["pause"].click(create.cancel, queue=False, **_QUIET)
