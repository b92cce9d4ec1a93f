"""Kinds of control: every module of this package that defines `CONTROL` is one."""

import sys
from functools import cache

from core.control import Control
from core.registry import discover, lookup


@cache
def _all() -> dict[str, Control]:
    return discover(sys.modules[__name__], "CONTROL")


def names() -> list[str]:
    """The kinds of control that `get` accepts, in alphabetical order."""
    return list(_all())


def get(kind: str) -> Control:
    """One kind of control by its name.

    Raises:
        BadRequest: unknown; the nearest known kind is named.
    """
    return lookup(_all(), kind, "control")
