"""Components made from pydantic fields: bounds, defaults and explanations stand once, in the model."""

import math
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import gradio as gr
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

MOST_SLIDER_POSITIONS = 256  # a whole number with more values than that is typed, not dragged


def components(model: type[BaseModel], prefix: str) -> dict[str, Any]:
    """A component for every field, in the model's order, under `<prefix>.<field>`."""
    return {f"{prefix}.{name}": component(model, name) for name in model.model_fields}


def component(model: type[BaseModel], name: str, **overrides: Any) -> Any:
    """The component for one field: slider, number, checkbox, choice or text; `overrides` go to its constructor.

    Numbers without a slider carry no bounds of their own: what is typed is checked by the model, whose message says more.

    Raises:
        TypeError: no component is known for the field's type, which is our own mistake.
    """
    field = model.model_fields[name]
    kind = _without_none(field.annotation)
    default = field.get_default(call_default_factory=True)
    options: dict[str, Any] = {
        "label": name.replace("_", " ").capitalize(),
        "info": _sentence(field.description),
        "value": None if default is PydanticUndefined else default,
    }
    if kind is bool:
        return gr.Checkbox(**(options | overrides))
    if get_origin(kind) is Literal:
        return gr.Dropdown(**(options | {"choices": [(str(choice), choice) for choice in get_args(kind)]} | overrides))
    if kind is int or kind is float:
        return _number(kind, field.metadata, options | overrides)
    if kind is str or kind is Path:
        text = options["value"]
        return gr.Textbox(**(options | {"value": "" if text is None else str(text)} | overrides))
    raise TypeError(f"no component is known for {model.__name__}.{name} of type {field.annotation}")


def _number(kind: type[int] | type[float], metadata: list[Any], options: dict[str, Any]) -> Any:
    """A slider between two bounds, where there are two and it is not too fine; otherwise a number to type."""
    low, high = _bound(metadata, "ge", "gt"), _bound(metadata, "le", "lt")
    step = _bound(metadata, "multiple_of")
    if low is None or high is None:
        return gr.Number(**({"step": step or 1} | options))
    if kind is float:
        return gr.Slider(**({"minimum": low, "maximum": high, "step": step or _round_step(high - low)} | options))
    if (high - low) / (step or 1) >= MOST_SLIDER_POSITIONS:
        return gr.Number(**({"step": step or 1} | options))
    return gr.Slider(**({"minimum": low, "maximum": high, "step": step or 1} | options))


def _bound(metadata: list[Any], *names: str) -> Any:
    """The first constraint of that name among a field's annotated_types."""
    found = (getattr(constraint, name, None) for constraint in metadata for name in names)
    return next((value for value in found if value is not None), None)


def _round_step(span: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that divides `span` into a hundred steps or more."""
    power = math.floor(math.log10(span / 100) + 1e-9)
    factor = max(factor for factor in (1, 2, 5) if factor * 10.0**power <= span / 100 * (1 + 1e-9))
    return float(f"{factor}e{power}")


def _without_none(annotation: Any) -> Any:
    """`int | None` as `int`."""
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else annotation
    return annotation


def _sentence(description: str | None) -> str | None:
    return f"{description[0].upper()}{description[1:]}" if description else None
