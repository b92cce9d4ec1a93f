"""Who draws: a crew takes jobs and reports events. Here the contract, and the crew of one that is this process."""

import queue
from typing import Protocol

from batch.planner import Bundle
from batch.store import Store
from batch.work import Event, Open, Worker

AHEAD = 8  # jobs that a worker holds at least: enough that their maps are there when it comes to them


def most_held(largest: int, least: int = AHEAD) -> int:
    """How many jobs a worker holds, whose largest bundle is this large: one bundle that is drawn, and one that waits."""
    return max(least, 2 * largest)


class Crew(Protocol):
    """Workers, wherever they are."""

    @property
    def room(self) -> int:
        """How many jobs more it will take now."""
        ...

    def give(self, bundle: Bundle) -> None:
        """Jobs for whoever is free first."""
        ...

    def events(self, timeout_s: float) -> list[Event]:
        """What has happened; waits for something to happen, but not for longer than this."""
        ...

    def drop(self) -> None:
        """Finish what has been begun and hand back the rest."""
        ...

    def close(self, *, now: bool = False) -> None:
        """End all workers."""
        ...


class Alone:
    """This process draws."""

    def __init__(self, open_drawer: Open, store: Store, *, processes: int = 0) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._held, self._largest = 0, 0
        self._worker = Worker(open_drawer, store, self._events.put, processes=processes)

    @property
    def room(self) -> int:
        return most_held(self._largest) - self._held

    def give(self, bundle: Bundle) -> None:
        self._held += len(bundle.wanted)
        self._largest = max(self._largest, len(bundle.jobs))
        self._worker.give(bundle)

    def events(self, timeout_s: float) -> list[Event]:
        found = drained(self._events, timeout_s)
        self._held -= sum(hasattr(event, "status") for event in found)
        return found

    def drop(self) -> None:
        self._worker.drop()

    def close(self, *, now: bool = False) -> None:
        self._worker.close(now=now)


def drained(events: "queue.SimpleQueue[Event]", timeout_s: float) -> list[Event]:
    """What is in a queue, at least one event unless the time is up."""
    found: list[Event] = []
    try:
        found.append(events.get(timeout=timeout_s))
        while True:
            found.append(events.get_nowait())
    except queue.Empty:
        return found
