"""Layouts of training datasets: every module of this package that defines `FORMAT` is one."""

import sys
from functools import cache
from pathlib import Path

from core.errors import BadRequest
from core.registry import discover, lookup
from training.pairs import Format


@cache
def _all() -> dict[str, Format]:
    return discover(sys.modules[__name__], "FORMAT")


def names() -> list[str]:
    """The formats that `get` accepts, in alphabetical order."""
    return list(_all())


def get(name: str) -> Format:
    """One format by its name. Raises BadRequest if it is unknown."""
    return lookup(_all(), name, "dataset format")


def only_condition(path: Path) -> str:
    """What holds the conditions of a folder or file, where one thing alone may.

    Raises:
        BadRequest: it is of no known format, or nothing or several may be meant.
    """
    found = recognise(path).conditions(path)
    if len(found) != 1:
        which = f"has {', '.join(found)}" if found else "has nothing that may hold conditions: give extract=true and a kind to make them"
        raise BadRequest(f"which conditions? give --condition NAME: dataset {str(path)!r} {which}")
    return found[0]


def recognise(path: Path) -> Format:
    """The format of a folder or file.

    Raises:
        BadRequest: there is nothing, or it is of none.
    """
    if not path.exists():
        raise BadRequest(f"dataset {str(path)!r} cannot be read: there is no such folder or file")
    for known in sorted(_all().values(), key=lambda known: known.vague):
        if known.recognises(path):
            return known
    layouts = "; ".join(f"{known.name}: {known.example}" for known in _all().values())
    raise BadRequest(f"dataset {str(path)!r} is of no known format; known are {layouts}")
