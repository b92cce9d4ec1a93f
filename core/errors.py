"""Every error Limn raises on purpose.

    LimnError
    ├── UserError            the input is wrong; the caller can mend it (exit code 2)
    │   ├── BadImage         a picture, map or mask that cannot be decoded or is over a limit
    │   ├── BadRequest       a value out of range, an unknown name, a combination that makes no sense
    │   ├── BadModel         weights that are missing, damaged, or in a format that is refused
    │   ├── Mismatch         parts that are fine alone but do not fit together
    │   └── QueueFull        too many requests are waiting
    ├── ResourceError        the machine has not enough of something (exit code 2)
    │   ├── OutOfMemory
    │   └── DiskFull
    └── Cancelled            the caller asked to stop (exit code 130)

A message says what is wrong, the value, the limit and the remedy, in one line.
"""

import difflib
from collections.abc import Iterable


class LimnError(Exception):
    """Base of all errors that Limn raises on purpose."""

    exit_code = 2


class UserError(LimnError):
    """The input is wrong and the caller can mend it."""


class BadImage(UserError):
    """A picture, map or mask cannot be decoded or is over a limit."""


class BadRequest(UserError):
    """A value is out of range, a name is unknown, or a combination makes no sense."""


class BadModel(UserError):
    """Weights are missing, damaged, or in a format that is refused."""


class Mismatch(UserError):
    """Parts that are fine alone do not fit together."""


class QueueFull(UserError):
    """Too many requests are waiting."""


class ResourceError(LimnError):
    """The machine has not enough of something."""


class OutOfMemory(ResourceError):
    """The device or the host ran out of memory."""


class DiskFull(ResourceError):
    """The disk has no room for what had to be written."""


class Cancelled(LimnError):
    """The caller asked to stop."""

    exit_code = 130


def shortened(value: object, limit: int = 60) -> str:
    """A value as Python writes it, on one line, cut to about `limit` characters: messages quote what users give."""
    if isinstance(value, str) and len(value) > limit:
        return f"{value[:limit]!r}…"
    text = repr(value)
    return text if len(text) <= limit + 2 or isinstance(value, str) else f"{text[:limit]}…"


def unknown_name(what: str, name: str, known: Iterable[str]) -> BadRequest:
    """An error for a name that is not in a registry, naming the nearest known one.

    `what` is the kind of thing ("control", "sampler"); `known` the names that would be accepted.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name[:100], names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return BadRequest(f"unknown {what} {shortened(name)}: {hint}known are {', '.join(names)}")
