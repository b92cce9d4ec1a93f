"""A crew on Ray: one actor for each device, its model loaded once; actors that die are replaced and what they held is given to others.

The driver holds the lock, the journal and the list of jobs; actors draw and publish, each file by itself, so that it is whole wherever its
actor died. Actors are added as the cluster grows, up to one for each device it has.
"""

import contextlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batch.crew import drained, most_held
from batch.planner import Bundle
from batch.store import Folder, Store
from batch.work import Begun, Broken, Event, Lost, Open, Outcome, Worker
from core.errors import BadRequest, ResourceError

GROW_EVERY_S = 5.0
MOST_DEATHS_IN_A_ROW = 5
SILENCE_S, LOCAL_SILENCE_S = 600.0, 120.0  # actors answer every second; after so long there is no Ray any more


class Actor:
    """What runs in an actor's process: a worker that answers with what happened."""

    def __init__(self, open_drawer: Open, store: Store, folder: str, number: int) -> None:
        """folder: that the driver works in, where relative paths begin; a machine that has none of that name keeps its own."""
        import queue

        with contextlib.suppress(OSError):
            os.chdir(folder)

        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._worker = Worker(open_drawer, store, self._events.put, number=number)

    def work(self, bundles: list[Bundle]) -> None:
        """Jobs to be drawn after those that were given before."""
        for bundle in bundles:
            self._worker.give(bundle)

    def listen(self, timeout_s: float) -> list[Event]:
        """What has happened since; waits for something, but not for longer."""
        return drained(self._events, timeout_s)

    def drop(self) -> None:
        """Finish what is begun, hand back the rest."""
        self._worker.drop()


@dataclass(eq=False)
class _Member:
    handle: Any
    number: int
    held: list[str] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)
    waiting: list[Bundle] = field(default_factory=list)
    here: bool = False  # it has answered; before that it may wait for a device that never comes


class Cluster:
    """Actors on a Ray cluster. address: "local" for a Ray of our own, "auto" or a head's address otherwise.

    actors: how many; None for one on each GPU the cluster has, now or later, or on each CPU where it has none.

    Raises:
        BadRequest: Ray is not installed, the cluster cannot be reached, or the output is a folder that it does not share.
    """

    def __init__(self, open_drawer: Open, store: Store, address: str, *, actors: int | None = None) -> None:
        try:
            import ray
        except ImportError:
            raise BadRequest("--ray needs Ray: install limn[cluster]") from None
        self._ray: Any = ray
        store = Folder(store.path.resolve()) if isinstance(store, Folder) else store
        self._arguments, self._wanted = (open_drawer, store, str(Path.cwd())), actors
        self._on_cpu = (getattr(open_drawer, "device", None) or "").partition(":")[0] == "cpu"
        options: dict[str, Any] = {"log_to_driver": False, "include_dashboard": False, "num_cpus": actors} if address == "local" else {}
        try:
            ray.init(address=address, ignore_reinit_error=True, logging_level="ERROR", **options)
        except Exception as error:  # noqa: BLE001 (Ray raises what it finds, a bare Exception among it)
            raise BadRequest(f"Ray at {address!r} cannot be reached ({' '.join(str(error).split())[:200]}): check the address") from None
        self._listening: dict[Any, _Member] = {}
        self._members: list[_Member] = []
        self._deaths, self._dropping, self._next_look, self._largest = 0, False, 0.0, 0
        self._silence_s, self._heard = LOCAL_SILENCE_S if address == "local" else SILENCE_S, 0.0
        self._grow()

    @property
    def room(self) -> int:
        return 0 if self._dropping else sum(max(0, most_held(self._largest) - len(member.held)) for member in self._members if member.here)

    def give(self, bundle: Bundle) -> None:
        self._largest = max(self._largest, len(bundle.jobs))
        member = min((one for one in self._members if one.here), key=lambda one: len(one.held))
        member.held += [job.key for job in bundle.jobs if job.key in bundle.wanted]
        member.waiting.append(bundle)

    def events(self, timeout_s: float) -> list[Event]:
        self._grow()
        for member in self._members:
            if member.waiting:
                member.handle.work.remote(member.waiting)
                member.waiting = []
        found: list[Event] = []
        ready, _ = self._ray.wait(list(self._listening), num_returns=1, timeout=timeout_s)
        if ready:  # and all that are ready with it
            ready, _ = self._ray.wait(list(self._listening), num_returns=len(self._listening), timeout=0)
        if ready or not self._heard:  # before the first answer a cluster may still be growing
            self._heard = time.monotonic() if ready else 0.0
        elif time.monotonic() - self._heard > self._silence_s:
            return [Broken(ResourceError(f"Ray has not answered for {self._silence_s:g} s: look at its head; the same command goes on"))]
        for reference in ready:
            member = self._listening.pop(reference)
            try:
                some = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                found.append(self._replace(member, error))
            else:
                for event in some:
                    self._note(member, event)
                found += some
                member.here = True
                self._listen(member)
        return found

    def drop(self) -> None:
        self._dropping = True
        for member in self._members:
            member.handle.drop.remote()

    def close(self, *, now: bool = False) -> None:
        for member in self._members:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(member.handle)
        self._ray.shutdown()

    def _grow(self) -> None:
        """Actors for devices that have come since."""
        if self._members and time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + GROW_EVERY_S
        has = self._ray.cluster_resources()
        devices = self._gpus() or int(has.get("CPU", 1))
        while len(self._members) < max(1, self._wanted or devices):
            self._members.append(self._start(len(self._members)))

    def _start(self, number: int) -> _Member:
        gpus = 1 if self._gpus() else 0
        remote = self._ray.remote(num_cpus=1, num_gpus=gpus, max_concurrency=4, max_restarts=0)(Actor)
        member = _Member(remote.remote(*self._arguments, number), number)
        self._listen(member, 0.0)
        return member

    def _gpus(self) -> int:
        """GPUs of the cluster that are to compute."""
        return 0 if self._on_cpu else int(self._ray.cluster_resources().get("GPU", 0))

    def _listen(self, member: _Member, timeout_s: float = 1.0) -> None:
        self._listening[member.handle.listen.remote(timeout_s)] = member

    def _note(self, member: _Member, event: Event) -> None:
        match event:
            case Begun(key):
                member.begun.append(key)
            case Outcome(key=key):
                self._deaths = 0
                for keys in (member.held, member.begun):
                    if key in keys:
                        keys.remove(key)

    def _replace(self, member: _Member, error: Exception) -> Event:
        """What a dead actor held; in its place stands a new one."""
        self._deaths += 1
        words = " ".join(str(error).split())[:300]
        if self._deaths >= MOST_DEATHS_IN_A_ROW * max(1, len(self._members)):
            return Broken(ResourceError(f"actors on Ray die one after the other, the {self._deaths}th of them with: {words}"))
        self._members[self._members.index(member)] = self._start(member.number)
        return Lost(tuple(member.held), tuple(member.begun), f"actor {member.number} died: {words}")
