"""Work shared out over processes of one thread each; at a small model's size that does more than threads do."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from core.errors import LimnError

J = TypeVar("J")
R = TypeVar("R")

_worker: Callable[[Any], Any] | None = None  # a process's own


def spread(make: Callable[[], Callable[[J], R]], jobs: Sequence[J], workers: int) -> Iterator[R]:
    """The jobs' results, in the jobs' order, whoever is done first.

    make: called once in every process, it gives what does a job; with several workers it is pickled, and so are jobs and results. One
    worker is this process.

    Raises:
        LimnError: a process was killed; or whatever a job raises.
    """
    if workers == 1 or len(jobs) < 2:
        yield from map(make(), jobs) if jobs else ()
        return
    pool = ProcessPoolExecutor(min(workers, len(jobs)), multiprocessing.get_context("spawn"), _start, (make,))
    try:
        yield from pool.map(_work, jobs)
    except BrokenProcessPool:
        raise LimnError("a process that measures was killed, perhaps for want of memory: use fewer workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


def default_workers(device: str) -> int:
    """One process per core for the CPU; one where there is an accelerator."""
    return (os.cpu_count() or 1) if device == "cpu" else 1


def _start(make: Callable[[], Callable[[Any], Any]]) -> None:
    import torch

    global _worker
    torch.set_num_threads(1)
    _worker = make()


def _work(job: Any) -> Any:
    assert _worker is not None
    return _worker(job)
