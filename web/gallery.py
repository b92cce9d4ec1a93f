"""Gallery: every picture of the output folder, found again, restored, or thrown away; and settings from other programs' pictures."""

from pathlib import Path
from typing import Any

import gradio as gr

from core.errors import LimnError
from web import words
from web.handlers import NOTHING, Changes, Handlers
from web.library import Library
from web.upload import upload_file

PAGE = 48  # pictures shown at once
HINT = "Words of the prompt, and conditions: kind: model: seed: fidelity> fidelity< after: before: in:trash"
AWAY, BACK = "To the trash", "Out of the trash"
EMPTY = "No picture yet. What is drawn in Create is found here."
SEARCH = "blue cube kind:depth fidelity>0.5"

_INTO_SIGHT = "() => document.querySelector('#details').scrollIntoView({block: 'nearest', behavior: 'smooth'})"  # it may lie far below
_QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": [], "api_visibility": "private"}


class _Gallery:
    """The tab's behaviour. `found` are the files that are shown, `chosen` is the one that was clicked: both stay on the server."""

    def __init__(self, library: Library, create: Handlers, parts: dict[str, Any], tabs: Any) -> None:
        self.library, self.create, self.parts, self.tabs = library, create, parts, tabs

    def search(self, text: str) -> Changes:
        """The pictures that answer, newest first."""
        parts = self.parts
        try:
            entries = self.library.search(text)
        except LimnError as error:
            return {parts["said"]: words.note(words.plain(str(error), {}), problem=True)}
        shown = entries[:PAGE]
        more = f", the newest {PAGE} are shown" if len(entries) > PAGE else ""
        said = (
            f"{len(entries)} picture{'' if len(entries) == 1 else 's'}{more}."
            if entries
            else "No picture is found."
            if text.strip()
            else EMPTY
        )
        return {
            parts["pictures"]: gr.update(value=[self._copy(entry.path) for entry in shown], selected_index=None),
            parts["said"]: words.note(said),
            parts["found"]: [str(entry.path) for entry in shown],
            parts["chosen"]: "",
            parts["details"]: "",
            parts["buttons"]: gr.update(visible=False),
        }

    def choose(self, found: list[str], event: gr.SelectData) -> Changes:
        """One picture's details."""
        index = event.index
        if not isinstance(index, int) or not 0 <= index < len(found):
            return NOTHING
        entry = next((one for one in self.library.entries() if str(one.path) == found[index]), None)
        if entry is None:
            return {self.parts["said"]: words.note("This picture has gone: search again.", problem=True)}
        return {
            self.parts["chosen"]: found[index],
            self.parts["details"]: words.details(entry.record, entry.time),
            self.parts["buttons"]: gr.update(visible=True),
            self.parts["download"]: gr.update(value=self._copy(entry.path)),
            self.parts["move"]: BACK if self.library.is_trashed(entry.path) else AWAY,
        }

    def restore(self, chosen: str) -> Changes:
        """The chosen picture's settings in Create."""
        return self._restored(chosen) if chosen else NOTHING

    def read_file(self, path: str | None) -> Changes:
        """The settings of a picture that was dropped here, in Create."""
        return self._restored(path) if path else NOTHING

    def move(self, chosen: str, text: str) -> Changes:
        """The chosen picture into the trash, or back from there, and what is left of those that were found."""
        try:
            if chosen:
                path = Path(chosen)
                (self.library.recover if self.library.is_trashed(path) else self.library.discard)(path)
        except LimnError as error:
            return {self.parts["said"]: words.note(words.plain(str(error), {}), problem=True)}
        return self.search(text)

    def _restored(self, path: str) -> Changes:
        try:
            changes, said = self.create.restore(path)
        except LimnError as error:
            text = words.plain(str(error), {f"{Path(path).parent}/": ""})
            return {self.parts["said"]: words.note(text, problem=True)}
        return changes | {
            self.parts["said"]: words.note(said),
            self.create.parts.status: words.note(said),
            self.tabs: gr.update(selected="create"),
        }

    def _copy(self, path: Path) -> str:
        return str(self.parts["download"].move_resource_to_block_cache(str(path)))


def build(tab: Any, tabs: Any, library: Library, create: Handlers) -> None:
    """The tab's components, and which handler answers what."""
    parts: dict[str, Any] = {"found": gr.State([]), "chosen": gr.State("")}
    with gr.Row(elem_classes="bar"):
        search = gr.Textbox(label="Search", info=HINT, placeholder=SEARCH, elem_id="search", scale=5)
        refresh = gr.Button("Search", scale=1, min_width=100, elem_id="refresh")
    parts["said"] = gr.HTML(elem_id="gallery-said")
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=6, min_width=340):
            parts["pictures"] = gr.Gallery(
                show_label=False, columns=6, height="auto", allow_preview=False, buttons=[], elem_id="pictures", interactive=False
            )
        with gr.Column(scale=4, min_width=300):
            parts["details"] = gr.HTML(elem_id="details")
            with gr.Row(visible=False, elem_id="gallery-buttons") as parts["buttons"]:
                restore = gr.Button("Restore to Create", min_width=130, variant="primary", size="sm", elem_id="restore")
                parts["download"] = gr.DownloadButton("Download", min_width=90, size="sm", elem_id="gallery-download")
                parts["move"] = gr.Button(AWAY, min_width=90, size="sm", elem_id="discard")
            dropped = upload_file(label="Restore from Limn, A1111, ComfyUI or InvokeAI", file_types=[".png"], height=170, elem_id="foreign")
    handlers = _Gallery(library, create, parts, tabs)
    own = list(parts.values())
    filled = [*own, tabs, create.parts.status, *create.parts.columns, *create.parts.inputs.values()]
    asked = [tab.select, refresh.click, search.submit]
    gr.on(asked, handlers.search, search, own, trigger_mode="always_last", **_QUIET)  # what is asked during a search follows it
    chosen = parts["pictures"].select(handlers.choose, parts["found"], own, **_QUIET)
    chosen.then(None, None, None, js=_INTO_SIGHT, api_visibility="private")
    restore.click(handlers.restore, parts["chosen"], filled, **_QUIET)
    dropped.upload(handlers.read_file, dropped, filled, **_QUIET)
    parts["move"].click(handlers.move, [parts["chosen"], search], own, **_QUIET)
