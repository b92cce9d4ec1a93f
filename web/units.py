"""The control units: eight of them, made beforehand and hidden, so that adding one costs nothing and loses no text."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

import controls
from core.errors import LimnError
from core.request import MAX_CONTROLS, ControlUnit
from web import form, held, remembered, words
from web.fields import component, prepared, settings_of
from web.handlers import Changes
from web.settings import pool
from web.upload import upload
from web.widgets import painter, window

NETWORK = "By default the one that belongs to the model and the kind."
DRAW = "Without a picture, draw the map itself. Over one, paint where it acts, draw on it, or trace it."
LEVELS = "A factor for each of its levels, outermost first, with spaces between; empty for 1 everywhere."
FIRST = "canny"
_QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": [], "api_visibility": "private"}

_ADD = """(...on) => {
  const i = on.indexOf(false);
  if (i >= 0) on[i] = true;
  return [...on, ...on.map((visible) => ({__type__: 'update', visible}))];
}"""
_REMOVE = "() => [false, {__type__: 'update', visible: false}, null, '']"


@dataclass(frozen=True, eq=False)
class Units:
    """inputs: what the units hold, by the names that `web.form` reads; columns: each unit's part of the page."""

    inputs: dict[str, Any]
    columns: list[Any]
    maps: list[Any]
    notes: list[Any]
    add: Any
    removes: list[Any]
    lasts: list[Any]


def layout() -> Units:
    """The units, of which the first is shown."""
    inputs: dict[str, Any] = {}
    columns, maps, notes, removes, lasts = [], [], [], [], []
    for i in range(MAX_CONTROLS):
        with gr.Column(visible=i == 0, elem_id=f"unit-{i}", elem_classes="unit") as column, gr.Group():
            made, map_, note, (remove, last) = _unit(i)
        inputs |= made
        columns.append(column)
        maps.append(map_)
        notes.append(note)
        removes.append(remove)
        lasts.append(last)
    add = gr.Button("Add a control", size="sm", elem_id="add-control")
    return Units(inputs, columns, maps, notes, add, removes, lasts)


def wire(page: Any, units: Units, size: dict[str, Any], sent: Any) -> None:
    """What the units do on their own. size: the inputs `width` and `height`; sent: what carries what inputs hold (see `web.held`)."""
    kinds = {
        kind: {slot: shown for slot, shown in zip(pool(), settings_of(kind), strict=True) if shown["visible"]} for kind in controls.names()
    }
    page.load(None, None, None, js=f"() => limn.know({json.dumps(kinds)}, {json.dumps(pool())})", api_visibility="private")
    on = [units.inputs[f"control.{i}.on"] for i in range(MAX_CONTROLS)]
    units.add.click(None, on, [*on, *units.columns], js=_ADD, api_visibility="private")
    every = []
    for i in range(MAX_CONTROLS):
        prefix = f"control.{i}."
        own = {name.removeprefix(prefix): one for name, one in units.inputs.items() if name.startswith(prefix)}
        kind, image = own["kind"], own["image"]
        every.append(handlers := _UnitHandlers(i, units.inputs, size, units.maps[i], units.notes[i]))
        units.removes[i].click(None, None, [on[i], units.columns[i], image, own["painting"]], js=_REMOVE, api_visibility="private")
        shown: dict[str, Any] = {"inputs": sent, "outputs": [units.maps[i], units.notes[i]]}
        shown |= {"js": held.some_of(remembered.KEY, prefix, *size)} | _QUIET
        turn = f"kind => limn.turn({json.dumps(remembered.KEY)}, {json.dumps(prefix)}, kind)"
        turned = kind.input(None, kind, [own[slot] for slot in pool()], js=turn, api_visibility="private")
        turned.then(handlers.show_map, **shown)
        name = json.dumps(f"{prefix}ready")
        looking = f"(...picture) => {{ limn.look({name}); return picture; }}"
        noticed = image.upload(handlers.notice_map, [kind, image], own["ready"], js=looking, **_QUIET)
        seen = f"ready => limn.looked({json.dumps(remembered.KEY)}, {name}, ready)"
        noticed.then(None, own["ready"], None, js=seen, api_visibility="private")
        again = gr.Button("Map", visible="hidden", elem_id=_button(i))
        again.click(handlers.show_map, trigger_mode="always_last", concurrency_limit=4, **shown)

    def show_maps(sent: Any) -> Changes:
        """All units' maps."""
        return {component: news for handlers in every for component, news in handlers.show_map(sent).items()}

    shown = {"inputs": sent, "outputs": [*units.maps, *units.notes], "js": held.some_of(remembered.KEY, "control.", *size)} | _QUIET
    gr.on([one.change for one in size.values()], show_maps, trigger_mode="always_last", **shown)


def buttons() -> dict[str, str]:
    """For every input on which a control's map depends, the button that is pressed when it changes."""
    shaping = ("ready", "image", "painting", "resize", "processor_px", *pool())
    return {f"control.{i}.{name}": _button(i) for i in range(MAX_CONTROLS) for name in shaping}


def _button(index: int) -> str:
    return f"draw-map-{index}"


class _UnitHandlers:
    """The behaviour of one unit. inputs, size: whose values, by name, decide about its map."""

    def __init__(self, index: int, inputs: Mapping[str, Any], size: Mapping[str, Any], map_: Any, note: Any) -> None:
        self.index, self.map, self.note = index, map_, note
        self._known = held.opened(inputs) | held.opened(size)

    def notice_map(self, kind: str, image: str | None) -> Any:
        """The *ready* switch, set when the uploaded picture is a finished map already."""
        try:
            finished = form.looks_finished(kind, Path(image)) if image else None
        except LimnError:  # show_map says what is wrong
            finished = None
        return gr.skip() if finished is None else finished

    def show_map(self, sent: Any) -> Changes:
        """The map as the network will see it."""
        hidden: dict[str, str] = {}
        try:
            asked = held.read(sent, self._known)
            if image := asked[f"control.{self.index}.image"]:
                hidden = {f"{Path(image).parent}/": ""}
            prepared_map = form.read_map(asked, self.index)
        except LimnError as error:
            text = words.plain(str(error), {f"controls.{self.index}.": ""} | hidden)
            return {self.map: None, self.note: words.note(text, problem=True)}
        warnings = " ".join(words.plain(warning, hidden) for warning in prepared_map.warnings) if prepared_map else ""
        return {self.map: prepared_map.map_HWC if prepared_map else None, self.note: words.note(warnings)}


def _unit(i: int) -> tuple[dict[str, Any], Any, Any, tuple[Any, Any]]:
    """One unit: its inputs by name, its map, what is to be said about it, and the buttons that remove it and that take the last result."""
    prefix = f"control.{i}."
    inputs: dict[str, Any] = {f"{prefix}on": gr.Checkbox(i == 0, visible=False)}
    with gr.Row(elem_classes="unit-head"):
        label = "Control" if i == 0 else f"Control {i + 1}"
        inputs[f"{prefix}kind"] = gr.Dropdown(controls.names(), value=FIRST, label=label, scale=3, min_width=150, elem_id=f"kind-{i}")
        inputs[f"{prefix}ready"] = component(
            ControlUnit, "ready", info="It is the finished map.", scale=2, min_width=120, elem_id=f"ready-{i}"
        )
        last = gr.Button("Last result", size="sm", scale=0, min_width=96, elem_id=f"last-{i}")
        remove = gr.Button("Remove", size="sm", scale=0, min_width=86, elem_id=f"remove-{i}")
    with gr.Row():
        inputs[f"{prefix}image"] = upload(
            label="Control picture", sources=["upload", "clipboard", "webcam"], height=220, elem_id=f"image-{i}", elem_classes="source"
        )
        map_ = gr.Image(
            label="Map", interactive=False, format="png", buttons=["fullscreen"], height=220, elem_id=f"map-{i}", elem_classes="map"
        )
    note = gr.HTML(elem_id=f"map-note-{i}", elem_classes="map-note")
    with gr.Accordion("Draw", open=False, elem_id=f"draw-{i}"):
        inputs[f"{prefix}painting"] = painter(f"#image-{i}", DRAW, drawing=True, elem_id=f"painting-{i}")
    with gr.Column(elem_id=f"settings-{i}", elem_classes="settings"):
        inputs |= prepared(f"control.{i}", FIRST)
    with gr.Row():
        inputs[f"{prefix}weight"] = component(ControlUnit, "weight", info=None, min_width=180)
        inputs[f"{prefix}window"] = window(elem_id=f"window-{i}")
    with gr.Accordion("Fit and ControlNet", open=False, elem_id=f"fine-{i}"):
        with gr.Row():
            inputs[f"{prefix}resize"] = component(ControlUnit, "resize", info=None, min_width=120, elem_id=f"resize-{i}")
            inputs[f"{prefix}mode"] = component(ControlUnit, "mode", info=None, min_width=120, elem_id=f"mode-{i}")
        inputs[f"{prefix}model"] = gr.Dropdown(
            [""], value="", label="ControlNet", info=NETWORK, allow_custom_value=True, elem_id=f"controlnet-{i}"
        )
        with gr.Row():
            inputs[f"{prefix}processor_px"] = component(ControlUnit, "processor_px", label="Extracted at", min_width=160)
            inputs[f"{prefix}layer_weights"] = gr.Textbox("", label="Level weights", info=LEVELS, min_width=160)
    return inputs, map_, note, (remove, last)
