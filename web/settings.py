"""Which of the page's prepared components shows which field of a model: a unit has a few of every sort, enough for any kind of control.

A slot is called by its sort and a number, as in `slider 2`.
"""

import types
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

import controls

Sort = Literal["slider", "number", "checkbox", "choice", "text"]

MOST_SLIDER_POSITIONS = 256  # a whole number with more values than that is typed, not dragged


def sort_of(model: type[BaseModel], name: str) -> Sort:
    """How a field is shown.

    Raises:
        TypeError: nothing is known for the field's type, which is our own mistake.
    """
    field = model.model_fields[name]
    kind = without_none(field.annotation)
    if kind is bool:
        return "checkbox"
    if get_origin(kind) is Literal:
        return "choice"
    if kind is str or kind is Path:
        return "text"
    if kind is not int and kind is not float:
        raise TypeError(f"no component is known for {model.__name__}.{name} of type {field.annotation}")
    low, high = bound(field.metadata, "ge", "gt"), bound(field.metadata, "le", "lt")
    if low is None or high is None or (kind is not field.annotation and field.default is None):  # a slider cannot be empty
        return "number"
    fine = kind is int and (high - low) / (bound(field.metadata, "multiple_of") or 1) >= MOST_SLIDER_POSITIONS
    return "number" if fine else "slider"


def slots(model: type[BaseModel]) -> dict[str, str]:
    """The slot of every field, in the model's order."""
    seen: Counter[str] = Counter()
    found = {}
    for name in model.model_fields:
        sort = sort_of(model, name)
        found[name] = f"{sort} {seen[sort]}"
        seen[sort] += 1
    return found


def typed(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """What components hold, by field, as the model takes it: an empty one is nothing where a field may be nothing."""
    empty = {name for name, field in model.model_fields.items() if without_none(field.annotation) is not field.annotation}
    return {name: value.strip() or None if name in empty and isinstance(value, str) else value for name, value in values.items()}


@cache
def pool() -> tuple[str, ...]:
    """Every slot that some kind of control needs."""
    return tuple(dict.fromkeys(slot for kind in controls.names() for slot in slots(controls.get(kind).params).values()))


def bound(metadata: list[Any], *names: str) -> Any:
    """The first constraint of that name among a field's annotated_types."""
    found = (getattr(constraint, name, None) for constraint in metadata for name in names)
    return next((value for value in found if value is not None), None)


def without_none(annotation: Any) -> Any:
    """`int | None` as `int`."""
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else annotation
    return annotation
