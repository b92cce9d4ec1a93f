"""Fields that a browser keeps over a reload. What comes back is checked where it is used, like everything that a browser sends."""

import json
from collections.abc import Mapping
from typing import Any

import gradio as gr

MOST_CHARACTERS = 10_000

_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def keep(name: str, fields: Mapping[str, Any], tab: Any) -> None:
    """Stores the fields' values in the browser whenever one changes, and puts them back when the tab is first opened after a reload."""
    key = f"limn-{name}"
    stored, opened = gr.BrowserState(None, storage_key=key, secret=key), gr.State(False)
    components = list(fields.values())

    def restore(values: Any, before: bool) -> dict[Any, Any]:
        return {opened: True} | ({} if before else {fields[one]: value for one, value in read(values, fields).items()})

    restored = tab.select(restore, [stored, opened], [opened, *components], **_QUIET)
    restored.then(None, None, None, js=f"() => {{ window[{key!r}] = true; }}", api_visibility="private")
    gr.on(
        [component.change for component in components],
        None,
        [stored, *components],
        stored,
        js=f"(stored, ...values) => window[{key!r}]"
        f" ? Object.fromEntries({json.dumps(list(fields))}.map((name, i) => [name, values[i]])) : stored",
        trigger_mode="always_last",
        api_visibility="private",
    )


def read(values: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What was stored for fields that there still are; nothing that no field holds."""
    if not isinstance(values, dict):
        return {}
    found = {name: value for name, value in values.items() if name in fields and isinstance(value, str | int | float | bool | None)}
    return {name: value for name, value in found.items() if not isinstance(value, str) or len(value) <= MOST_CHARACTERS}
