"""Fields that a browser keeps over a reload. What comes back is checked where it is used, like everything that a browser sends."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from web import held

MOST_CHARACTERS = 10_000

_QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": [], "api_visibility": "private"}


def keep(name: str, fields: Mapping[str, Any], tab: Any) -> None:
    """Stores the fields' values in the browser whenever one changes, and puts them back when the tab is first opened after a reload."""
    key, opened, carrier = f"limn-{name}", gr.State(False), held.carrier()
    held.hold(key, fields)

    def restore(stored: Any, before: bool) -> dict[Any, Any]:
        return {opened: True} | ({} if before else {fields[one]: value for one, value in read(stored, fields).items()})

    script = held.begin(key, "", list(fields), fields)
    restored = tab.select(restore, [carrier, opened], [opened, *fields.values()], js=script, **_QUIET)
    restored.then(None, None, None, js=held.begun(key), api_visibility="private")


def read(stored: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What was stored for fields that there still are; nothing that no field holds."""
    values = stored.get("values") if isinstance(stored, dict) else None
    if not isinstance(values, dict):
        return {}
    found = {name: value for name, value in values.items() if name in fields and isinstance(value, str | int | float | bool | None)}
    return {name: value for name, value in found.items() if not isinstance(value, str) or len(value) <= MOST_CHARACTERS}
