"""One writer to a folder: whoever holds the lock may write, and everybody else is told who that is.

In a folder it is the operating system's lock on `batch.lock`, which goes when its holder does, however it ends. An object store has no such
locks: there the file's owner renews it, and it counts for as long as it is younger than `STALE_S`.
"""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from batch.store import LOCK, Folder, Store
from core.errors import BadRequest, LimnError

STALE_S, RENEW_S = 120.0, 30.0


@contextlib.contextmanager
def locked(store: Store) -> Iterator[None]:
    """Holds the lock of a store.

    Raises:
        BadRequest: another process holds it; the message says which.
    """
    with _locked_folder(store) if isinstance(store, Folder) else _locked_remote(store):
        yield


def holder(store: Store) -> dict[str, Any] | None:
    """Who holds the lock now: `host`, `process`, `since`; None where nobody does."""
    if isinstance(store, Folder):
        try:
            descriptor = os.open(store.path / LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return _owner(os.pread(descriptor, 4096, 0))
        finally:
            os.close(descriptor)
        return None
    owner = _owner(store.read(LOCK) or b"")
    return owner if owner and time.time() - float(owner.get("renewed", 0.0)) < STALE_S else None


@contextlib.contextmanager
def _locked_folder(store: Folder) -> Iterator[None]:
    try:
        descriptor = os.open(store.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise BadRequest(f"{store.shown!r} cannot be written to ({(error.strerror or '').lower()}): choose another folder") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _taken(store, _owner(os.pread(descriptor, 4096, 0))) from None
        os.ftruncate(descriptor, 0)
        with contextlib.suppress(OSError):  # on a full disk the lock still holds, it only cannot say whose it is
            os.pwrite(descriptor, json.dumps(_me()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked_remote(store: Store) -> Iterator[None]:
    found = holder(store)
    if found is not None:
        raise _taken(store, found)
    me = _me() | {"token": secrets.token_hex(8)}
    ended = threading.Event()

    def renew() -> None:
        store.publish(LOCK, json.dumps(me | {"renewed": time.time()}).encode())

    def keep() -> None:
        while not ended.wait(RENEW_S):
            with contextlib.suppress(LimnError):  # it counts for longer than one renewal
                renew()

    renew()
    time.sleep(0.5)  # of two that came at the same moment the later one's token stands
    found = _owner(store.read(LOCK) or b"")
    if found is not None and found.get("token") != me["token"]:
        raise _taken(store, found)
    keeper = threading.Thread(target=keep, name="limn-lock", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()
        store.remove(LOCK)


def _me() -> dict[str, Any]:
    return {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _owner(data: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _taken(store: Store, owner: dict[str, Any] | None) -> BadRequest:
    who = f"process {owner.get('process', '?')} on {owner.get('host', '?')} since {owner.get('since', '?')}" if owner else "another process"
    return BadRequest(f"{store.shown!r} is being written by {who}: wait for it, stop it, or give another --out")
