"""A crew of processes on this machine, one for each device, or several on the CPU.

Each has a pipe of its own, so that one that dies takes nothing with it but what it was drawing: that is given to another, and the dead one
is replaced. `warm` starts a process that imports the libraries while the caller reads its manifest, and from which workers are forked.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TypeAlias

from batch.crew import most_held
from batch.extraction import stay_with_parent
from batch.planner import Bundle
from batch.store import Store
from batch.work import Begun, Broken, Event, Lost, Open, Outcome, Worker
from core.errors import ResourceError

AHEAD = 4
MOST_DEATHS_IN_A_ROW = 5  # without a picture between: then it is not the jobs
FORKS = "forkserver" in multiprocessing.get_all_start_methods()
_DROP, _END = "drop", "end"
_Work: TypeAlias = tuple[Open, Store, int, Mapping[str, str]]


@dataclass(eq=False)
class _Member:
    process: BaseProcess
    connection: Connection
    number: int
    held: list[str] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)


class Processes:
    """`count` workers. extractors: processes in each that extract; 0 for a thread. forked: from the process that `warm` starts.

    What has begun to use CUDA cannot be forked, so workers for GPUs are not.
    """

    def __init__(self, open_drawer: Open, store: Store, count: int, *, extractors: int = 0, forked: bool = False) -> None:
        self._work: _Work = (open_drawer, store, extractors, dict(os.environ))
        self._context = multiprocessing.get_context("forkserver") if forked and FORKS else multiprocessing.get_context("spawn")
        self._deaths, self._dropping, self._largest = 0, False, 0
        self._members = [self._start(number) for number in range(count)]

    @property
    def room(self) -> int:
        most = most_held(self._largest, AHEAD)
        return 0 if self._dropping else sum(max(0, most - len(member.held)) for member in self._members)

    def give(self, bundle: Bundle) -> None:
        self._largest = max(self._largest, len(bundle.jobs))
        member = min(self._members, key=lambda one: len(one.held))
        member.held += [job.key for job in bundle.jobs if job.key in bundle.wanted]
        with contextlib.suppress(OSError):  # it has died; `events` will see that and say what it held
            member.connection.send(bundle)

    def events(self, timeout_s: float) -> list[Event]:
        found: list[Event] = []
        by_connection = {member.connection: member for member in self._members}
        for ready in multiprocessing.connection.wait(list(by_connection), timeout_s):
            assert isinstance(ready, Connection)
            member = by_connection[ready]
            try:
                while True:
                    event = member.connection.recv()
                    self._note(member, event)
                    found.append(event)
                    if not member.connection.poll():
                        break
            except (EOFError, OSError):
                found.append(self._replace(member))
        return found

    def drop(self) -> None:
        self._dropping = True
        self._tell_all(_DROP)

    def close(self, *, now: bool = False) -> None:
        if not now:
            self._tell_all(_END)
        for member in self._members:
            if now:
                member.process.kill()
            member.process.join(None if now else 60.0)
            if member.process.is_alive():
                member.process.kill()
                member.process.join()
            member.connection.close()

    def _start(self, number: int) -> _Member:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(there, number, self._work), name=f"limn-worker-{number}")
        process.start()
        there.close()
        return _Member(process, here, number)

    def _note(self, member: _Member, event: Event) -> None:
        match event:
            case Begun(key):
                member.begun.append(key)
            case Outcome(key=key):
                self._deaths = 0
                for keys in (member.held, member.begun):
                    if key in keys:
                        keys.remove(key)

    def _replace(self, member: _Member) -> Event:
        """What a dead worker held; in its place stands a new one."""
        member.connection.close()
        member.process.join()
        self._deaths += 1
        reason = f"worker {member.number} ended with {_ending(member.process.exitcode)}"
        if self._deaths >= MOST_DEATHS_IN_A_ROW * len(self._members):
            return Broken(ResourceError(f"{reason}, the {self._deaths}th in a row: look at the memory, or give fewer --workers"))
        self._members[self._members.index(member)] = self._start(member.number)
        return Lost(tuple(member.held), tuple(member.begun), reason)

    def _tell_all(self, word: str) -> None:
        for member in self._members:
            with contextlib.suppress(OSError):  # as in `give`
                member.connection.send(word)


def warm() -> None:
    """Start the process that workers are forked from; in the main thread, for Ctrl-C must not reach it."""
    if not FORKS:
        return
    from multiprocessing import forkserver  # not there on every system

    forkserver.set_forkserver_preload(["batch.preloaded"])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which it inherits, and leaves the end to this process
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(connection: Connection, number: int, work: _Work) -> None:
    """A worker's process: jobs come in by the pipe, events go out; without a parent there is nothing to do."""
    stay_with_parent()
    open_drawer, store, extractors, environment = work
    os.environ.update(environment)  # a forked process has that of the time when the other one was started
    sending = threading.Lock()

    def tell(event: Event) -> None:
        with sending:
            connection.send(event)

    worker = Worker(open_drawer, store, tell, number=number, processes=extractors)
    try:
        while (message := connection.recv()) != _END:
            if message == _DROP:
                worker.drop()
            else:
                worker.give(message)
    except (EOFError, OSError):
        os._exit(1)
    worker.close()


def _ending(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
