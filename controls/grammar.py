"""The command line's way to write a control: `canny=photo.jpg,weight=0.8,start=0,end=0.7,low=80`.

    control  = item {"," item}
    item     = KIND "=" file | key "=" value | "ready"
    value    = text without a comma | '"' text '"' | "'" text "'"

One item names the kind and its file; the others come in any order. Keys are those of `core.request.ControlUnit` (ready, model, weight,
start, end, mode, resize, mask) and the extractor's own settings.
"""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

import controls
from core.errors import BadRequest, unknown_name
from core.request import ControlUnit, explain

KEYS = tuple(name for name in ControlUnit.model_fields if name not in ("kind", "image", "params"))


def parse_control(text: str) -> ControlUnit:
    """One `--control` value as a control unit.

    Raises:
        BadRequest: unknown kind or key (the nearest is named), a key given twice, a value out of range, an open quote.
    """
    items = [_split(item) for item in _items(text)]
    kinds = controls.names()
    kind = _kind([key for key, value in items if key in kinds and value is not None])
    if kind is None:
        key, value = items[0]
        if value is None or not key or key in KEYS:
            raise BadRequest(f"control {text!r}: give KIND=FILE first, where KIND is one of {', '.join(kinds)}")
        raise unknown_name("control", key, kinds)
    settings = controls.get(kind).params.model_fields
    fields: dict[str, Any] = {}
    params: dict[str, Any] = {}
    for key, value in items:
        target = params if key in settings else fields
        if key not in (kind, *KEYS, *settings):
            error = unknown_name(f"{kind} key", key, (*KEYS, *settings))
            raise error if value is not None else BadRequest(f'{error}; a file name with a comma needs quotes: {kind}="a,b.png"')
        if key in target:
            raise BadRequest(f"control {text!r}: {key} is given twice")
        if value is None and key != "ready":
            raise BadRequest(f"control {text!r}: {key} has no value; write {key}=VALUE")
        if value == "":
            raise BadRequest(f"control {text!r}: {key} is empty; write {key}=VALUE")
        target[key] = True if value is None else value
    fields["image"] = _path(fields.pop(kind))
    if "mask" in fields:
        fields["mask"] = _path(fields["mask"])
    checked = controls.get(kind).parse_params(params)
    try:
        return ControlUnit.model_validate({"kind": kind, **fields, "params": checked.model_dump(mode="json", include=set(params))})
    except ValidationError as error:
        raise BadRequest(f"control {kind}: {explain(error)}") from None


def _kind(named: list[str]) -> str | None:
    """Which of the kinds that stand among the keys is meant: `mask` and `threshold` are keys too, of whichever kind takes the others."""
    meant = (kind for kind in named if all(key in (kind, *KEYS, *controls.get(kind).params.model_fields) for key in named))
    return next(meant, named[0] if named else None)


def _items(text: str) -> list[str]:
    """Cuts at commas outside quotes; a quote opens only where a value begins, so that an apostrophe in a name is a letter."""
    items, quote = [""], ""
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote and text[place + 1 : place + 2] in ("", ",") else quote
        elif letter in "\"'" and items[-1].endswith("=") and items[-1].count("=") == 1:
            quote = letter
        elif letter == ",":
            items.append("")
            continue
        items[-1] += letter
    if quote:
        raise BadRequest(f"control {text!r}: the quote {quote} is not closed")
    return [item.strip() for item in items]


def _split(item: str) -> tuple[str, str | None]:
    """An item as key and value; the value, None without "=", keeps further "=" signs and loses its quotes."""
    key, equals, value = item.partition("=")
    if len(value) >= 2 and value[0] in "\"'" and value[-1] == value[0]:
        value = value[1:-1]
    return key.strip(), value if equals else None


def _path(value: str) -> Path:
    return Path(value).expanduser()
