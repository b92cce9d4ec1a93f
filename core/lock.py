"""One at a time in a folder: the operating system's lock on a file there, which goes when its holder does, however it ends.

What the file holds says whose the lock is: `host`, `process`, `since`. A child that inherits the descriptor holds the lock too.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.errors import BadRequest

Owner = dict[str, Any]

TRIES, PAUSE_S = 5, 0.02  # who only looks holds the lock for a moment


@contextlib.contextmanager
def held(path: Path, doing: str, remedy: str) -> Iterator[None]:
    """Holds the lock of the file `path`, which is made, and its folder too. doing: what its holder does to the folder, for messages.

    Raises:
        BadRequest: another process holds it, and the message says which; or the folder cannot be written to.
    """
    folder = str(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = take(path)
    except OSError as error:
        raise BadRequest(f"{folder!r} cannot be written to ({(error.strerror or '').lower()}): choose another folder") from None
    if descriptor is None:
        raise _taken(path, holder(path), doing, remedy)
    try:
        sign(descriptor, me())
        yield
    finally:
        os.close(descriptor)


def check_free(path: Path, doing: str, remedy: str) -> None:
    """Looks, and makes nothing. doing, remedy: as in `held`.

    Raises:
        BadRequest: another process holds the lock.
    """
    if (owner := holder(path)) is not None:
        raise _taken(path, owner, doing, remedy)


def _taken(path: Path, owner: Owner | None, doing: str, remedy: str) -> BadRequest:
    return BadRequest(f"{str(path.parent)!r} is being {doing} by {who(owner)}: {remedy}")


def take(path: Path) -> int | None:
    """The descriptor of the locked file; None while another process holds it. Raises OSError if there can be no such file."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    for _ in range(TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(PAUSE_S)
        except OSError:  # a file system that knows no locks: better without one than not at all
            return descriptor
        else:
            return descriptor
    os.close(descriptor)
    return None


def holder(path: Path) -> Owner | None:
    """Who holds the lock now, {} where the file does not say; None where nobody does."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return read(os.pread(descriptor, 4096, 0))
    except OSError:
        return None
    else:
        return None
    finally:
        os.close(descriptor)


def sign(descriptor: int, owner: Owner) -> None:
    """Writes whose the lock is; on a full disk it still holds, it only cannot say so."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)


def me() -> Owner:
    """This process, as an owner."""
    return {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def read(data: bytes) -> Owner:
    """What a lock's file says of its owner; {} where that is nothing."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def who(owner: Owner | None) -> str:
    """An owner, in words."""
    if not owner:
        return "another process"
    return f"process {owner.get('process', '?')} on {owner.get('host', '?')} since {owner.get('since', '?')}"
