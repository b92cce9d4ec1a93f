"""What a browser keeps of Create's settings over a reload: everything but pictures, paint, and what no longer makes sense."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import controls
from core.errors import BadRequest
from core.request import MAX_CONTROLS, RenderRequest
from web import form
from web.settings import slots

KEY = "limn-create"
_PICTURES = ("image", "mask", "painting", "init_image")


def version() -> str:
    """Changes when a field, a kind of control or its settings do: what was stored for others means nothing then."""
    kinds = {kind: slots(controls.get(kind).params) for kind in controls.names()}
    switched = {owner: list(model.model_fields) for owner, model in form.SWITCHED.items()}
    text = json.dumps([1, kinds, list(RenderRequest.model_fields), switched])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def kept(names: Sequence[str]) -> list[str]:
    """Of the page's inputs those that are kept."""
    return [name for name in names if name.rpartition(".")[2] not in _PICTURES]


def read(stored: Any) -> dict[str, Any]:
    """Values for the page's inputs from what a browser had stored; whatever is not as it should be is left out."""
    if not isinstance(stored, dict) or stored.get("version") != version() or not isinstance(stored.get("values"), dict):
        return {}
    values = {name: stored["values"][name] for name in kept(list(map(str, stored["values"]))) if name in stored["values"]}
    plain = {*RenderRequest.model_fields} - {"controls", *form.SWITCHED}
    found = {name: value for name, value in values.items() if name in plain and _is_asked({name: value})}
    for owner, model in form.SWITCHED.items():
        part = {name: values[name] for own in model.model_fields if (name := f"{owner}.{own}") in values}
        found |= {name: value for name, value in part.items() if _is_part(owner, part) or _is_part(owner, {name: value})}
        found |= {name: values[name] for name in (f"{owner}.on",) if isinstance(values.get(name), bool)}
    for i in range(MAX_CONTROLS):
        prefix = f"control.{i}."
        unit = {name: value for name, value in values.items() if name.startswith(prefix)}
        if unit.get(f"{prefix}on") is True and _is_unit(unit, i):
            found |= unit
        elif unit.get(f"{prefix}on") is False:
            found[f"{prefix}on"] = False
    return found


def _is_part(owner: str, values: dict[str, Any]) -> bool:
    return _is_asked(values | {f"{owner}.on": True, "init_image": str(form.PAINTED) if owner == "inversion" else None})


def _is_asked(values: dict[str, Any]) -> bool:
    try:
        form.sketch_request(values, "")
    except BadRequest:
        return False
    return True


def _is_unit(unit: dict[str, Any], index: int) -> bool:
    prefix = f"control.{index}."
    needed = {f"{prefix}{name}" for name in ("kind", "ready", "weight", "window", "mode", "resize", "model")}
    try:
        kind = controls.get(str(unit.get(f"{prefix}kind")))
        if not needed | {prefix + slot for slot in slots(kind.params).values()} <= unit.keys():
            return False
        form.check_unit(unit, index)
    except BadRequest:
        return False
    return True
