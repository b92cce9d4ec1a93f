"""Floors and ceilings of a model, as `limn evaluate control` has measured them and left them beside it."""

import json
from dataclasses import dataclass
from pathlib import Path

from controls import estimators

FILE = "fidelity.json"


@dataclass(frozen=True)
class Bounds:
    """A kind's mean score without the control, with it, and of a picture that obeys perfectly; from 0 to 1. count: pictures measured."""

    floor: float
    value: float
    ceiling: float
    count: int


def beside(model: str) -> Path:
    """Where a model's file is looked for: next to its ControlNets."""
    return (estimators.ROOT if model == "toyland" else Path(model).expanduser().resolve().parent) / FILE


def bounds(model: str) -> dict[str, Bounds]:
    """The bounds of every kind that was measured, by kind; empty where nothing was, or the file is not one of ours."""
    try:
        rows = json.loads(beside(model).read_text(encoding="utf-8"))["rows"]
        return {
            row["kind"]: Bounds(row["floor"]["score"], row["value"]["score"], row["ceiling"]["score"], row["count"])
            for row in rows
            if row["value"]
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}
