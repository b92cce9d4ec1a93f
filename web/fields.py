"""Components made from pydantic fields: bounds, defaults and explanations stand once, in the model."""

import math
from typing import Any, get_args

import gradio as gr
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import controls
from web.settings import Sort, bound, pool, slots, sort_of, without_none

# Bounds and choices change with a unit's kind, and what a browser sends meanwhile belongs to the ones before: Gradio's own check would
# answer with an error of its own. Everything is checked by the models, whose message says more.
for _component in (gr.Slider, gr.Dropdown):
    _component.preprocess = lambda self, payload: payload

_ACRONYMS = {"cfg", "cpu", "ema", "pag", "snr", "vae"}
_MAKERS: dict[Sort, Any] = {"slider": gr.Slider, "number": gr.Number, "checkbox": gr.Checkbox, "choice": gr.Dropdown, "text": gr.Textbox}


def components(model: type[BaseModel], prefix: str) -> dict[str, Any]:
    """A component for every field, in the model's order, under `<prefix>.<field>`."""
    return {f"{prefix}.{name}": component(model, name) for name in model.model_fields}


def component(model: type[BaseModel], name: str, **overrides: Any) -> Any:
    """The component for one field: slider, number, checkbox, choice or text; `overrides` go to its constructor.

    Numbers without a slider carry no bounds of their own: what is typed is checked by the model, whose message says more.

    Raises:
        TypeError: no component is known for the field's type, which is our own mistake.
    """
    return _MAKERS[sort_of(model, name)](**(properties(model, name) | overrides))


def properties(model: type[BaseModel], name: str) -> dict[str, Any]:
    """What the component for one field is made with: label, explanation, value, bounds or choices."""
    field, sort = model.model_fields[name], sort_of(model, name)
    default = field.get_default(call_default_factory=True)
    made: dict[str, Any] = {
        "label": _label(name),
        "info": _sentence(field.description),
        "value": None if default is PydanticUndefined else default,
    }
    if sort == "choice":
        made["choices"] = [(str(choice), choice) for choice in get_args(without_none(field.annotation))]
    if made["value"] is None:
        made["value"] = ""  # a number component shows None as 0; `web.settings.typed` reads it back
    if sort == "text":
        made["value"] = str(made["value"])
    step = bound(field.metadata, "multiple_of")
    if sort == "number":
        made["step"] = step or (1 if without_none(field.annotation) is int else None)
    if sort == "slider":
        low, high = bound(field.metadata, "ge", "gt"), bound(field.metadata, "le", "lt")
        made |= {"minimum": low, "maximum": high, "step": step or (1 if without_none(field.annotation) is int else _round_step(high - low))}
    return made


def prepared(prefix: str, kind: str) -> dict[str, Any]:
    """A component for every slot, under `<prefix>.<slot>`, showing the settings of `kind`."""
    shown = dict(zip(pool(), settings_of(kind), strict=True))
    made = {}
    for slot in pool():
        blank = {"minimum": 0, "maximum": 1} if slot.startswith("slider") else {}
        made[f"{prefix}.{slot}"] = _MAKERS[slot.split()[0]](**(blank | {"visible": False, "interactive": True} | shown[slot]))  # type: ignore[index]
    return made


def settings_of(kind: str) -> list[dict[str, Any]]:
    """For every slot the properties with which it shows its setting of `kind`; hidden where the kind has none.

    Raises:
        BadRequest: no such kind.
    """
    params = controls.get(kind).params
    fields = {slot: name for name, slot in slots(params).items()}
    return [properties(params, fields[slot]) | {"visible": True} if slot in fields else {"visible": False} for slot in pool()]


def _round_step(span: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that divides `span` into a hundred steps or more."""
    power = math.floor(math.log10(span / 100) + 1e-9)
    factor = max(factor for factor in (1, 2, 5) if factor * 10.0**power <= span / 100 * (1 + 1e-9))
    return float(f"{factor}e{power}")


def _label(name: str) -> str:
    """`pag_scale` as "PAG scale"."""
    first, *rest = (word.upper() if word in _ACRONYMS else word for word in name.split("_"))
    return " ".join([first[:1].upper() + first[1:], *rest])


def _sentence(description: str | None) -> str | None:
    return f"{description[0].upper()}{description[1:]}" if description else None
