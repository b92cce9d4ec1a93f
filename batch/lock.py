"""One writer to a place: whoever holds the lock may write, and everybody else is told who that is.

In a folder it is the operating system's lock on `batch.lock` (`core.lock`). An object store has no such locks: there the file's owner
renews it, and it counts for as long as it is younger than `STALE_S`.
"""

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Iterator

from batch.store import LOCK, Folder, Store
from core import lock
from core.errors import BadRequest, LimnError

STALE_S, RENEW_S = 120.0, 30.0
DOING, REMEDY = "written", "wait for it, stop it, or give another --out"


@contextlib.contextmanager
def locked(store: Store) -> Iterator[None]:
    """Holds the lock of a store.

    Raises:
        BadRequest: another process holds it; the message says which.
    """
    with lock.held(store.path / LOCK, DOING, REMEDY) if isinstance(store, Folder) else _locked_remote(store):
        yield


def holder(store: Store) -> lock.Owner | None:
    """Who holds the lock now: `host`, `process`, `since`; None where nobody does."""
    if isinstance(store, Folder):
        return lock.holder(store.path / LOCK)
    owner = lock.read(store.read(LOCK) or b"")
    return owner if owner and time.time() - float(owner.get("renewed", 0.0)) < STALE_S else None


@contextlib.contextmanager
def _locked_remote(store: Store) -> Iterator[None]:
    found = holder(store)
    if found is not None:
        raise _taken(store, found)
    me = lock.me() | {"token": secrets.token_hex(8)}
    ended = threading.Event()

    def renew() -> None:
        store.publish(LOCK, json.dumps(me | {"renewed": time.time()}).encode())

    def keep() -> None:
        while not ended.wait(RENEW_S):
            with contextlib.suppress(LimnError):  # it counts for longer than one renewal
                renew()

    renew()
    time.sleep(0.5)  # of two that came at the same moment the later one's token stands
    found = lock.read(store.read(LOCK) or b"")
    if found and found.get("token") != me["token"]:
        raise _taken(store, found)
    keeper = threading.Thread(target=keep, name="limn-lock", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()
        store.remove(LOCK)


def _taken(store: Store, owner: lock.Owner) -> BadRequest:
    return BadRequest(f"{store.shown!r} is being {DOING} by {lock.who(owner)}: {REMEDY}")
