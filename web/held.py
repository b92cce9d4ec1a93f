"""What a tab's inputs hold, sent by the browser as one value: `page.js` is told of every change, and keeps it.

As inputs of an event, Gradio's page would look for each of them among all components, several times per event, and one after the other the
server would hand each of them to a thread: with two hundred inputs that takes seconds.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from core.errors import BadRequest

UPLOADING = "uploading"  # what page.js adds while a picture is on its way
PICTURES = ("image", "init_image")  # the last part of the names of inputs that hold an uploaded picture


def carrier() -> Any:
    """The input of an event that gets a tab's values; what it holds is put there by `all_of` or `some_of` as the event begins."""
    return gr.JSON(visible=False)


def hold(key: str, inputs: Mapping[str, Any], buttons: Mapping[str, str] | None = None) -> None:
    """Has the browser keep what these inputs hold, by name, under the tab's key. buttons: by name, the button that a change presses."""
    for name, one in inputs.items():
        button = json.dumps((buttons or {}).get(name))
        script = f"value => limn.hold({json.dumps(key)}, {json.dumps(name)}, value, {button})"
        one.change(None, one, None, js=script, api_visibility="private", show_progress="hidden")


def opened(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the inputs hold when the page is opened."""
    return {name: one.value for name, one in inputs.items()}


def begin(key: str, version: str, kept: Sequence[str], inputs: Mapping[str, Any]) -> str:
    """As `all_of`: what was stored when the page was left. kept: the inputs that are stored from `begun` on, with the version."""
    return _carry(f"begin({', '.join(map(json.dumps, (key, version, list(kept), opened(inputs))))})")


def begun(key: str) -> str:
    """The script of the event after which changes are stored."""
    return f"() => limn.open({json.dumps(key)})"


def all_of(key: str) -> str:
    """The script that has an event's first input, a carrier, hold all values."""
    return _carry(f"all({json.dumps(key)})")


def sketch_of(key: str) -> str:
    """As `all_of`, without the pixels of what is painted."""
    return _carry(f"sketch({json.dumps(key)})")


def some_of(key: str, *beginnings: str) -> str:
    """As `all_of`, of the names that begin so."""
    return _carry(f"some({', '.join(map(json.dumps, (key, *beginnings)))})")


def _carry(call: str) -> str:
    return f"async (carrier, ...others) => [await limn.{call}, ...others]"


def read(sent: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name: what a browser or a program sent, pictures as paths of their uploads, and for the rest what is `known`.

    Raises:
        BadRequest: it is no dictionary, has a name that nothing has, or a picture that was not uploaded or not yet.
    """
    if not isinstance(sent, dict):
        raise BadRequest(f"the settings arrived as {type(sent).__name__}: send a dictionary, the values by name")
    if sent.get(UPLOADING):
        raise BadRequest("a picture is still being uploaded: wait until it is shown, then ask again")
    for name in sent:
        if name not in known:
            near = difflib.get_close_matches(name[:100], known, n=1, cutoff=0.5)
            raise BadRequest(f"no setting is called {name[:100]!r}" + (f": did you mean {near[0]!r}?" if near else ""))
    return {**known, **{name: uploaded(value) if name.rpartition(".")[2] in PICTURES else value for name, value in sent.items()}}


def uploaded(value: Any) -> str | None:
    """The path of an uploaded file; None for none.

    Raises:
        BadRequest: it is no upload.
    """
    if not value:
        return None
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(path, str) or not Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve()):
        raise BadRequest("a picture did not arrive as an upload: choose its file again")
    return path
