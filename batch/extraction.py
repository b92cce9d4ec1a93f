"""Control maps ahead of the drawing: each distinct one once, in processes or a thread of their own."""

import multiprocessing
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import controls
from controls.prepare import Prepared, load_map
from core.request import ControlUnit, RenderRequest

MAPS_KEPT = 64


class Extraction:
    """Stands where `controls.prepare.load_map` does, and has the map already where it was announced.

    processes: how many extract; 0 for a thread of this process. Kinds with an estimator wait for the device and are extracted by whoever
    asks. The maps used last are kept.
    """

    def __init__(self, processes: int = 0) -> None:
        self._processes = processes
        self._executor = self._made()
        self._maps: OrderedDict[tuple[str, int, int, str], Future[Prepared]] = OrderedDict()
        self._lock = threading.Lock()
        self.extracted = 0

    def announce(self, request: RenderRequest, model: str) -> None:
        """A request that will be drawn soon. model: what draws requests that name none."""
        model = request.model if "model" in request.model_fields_set else model
        for unit in request.controls:
            if unit.ready or not _learned(unit.kind):
                self._future(unit, request.width, request.height, model)

    def __call__(self, unit: ControlUnit, width: int, height: int, *, model: str = "toyland") -> Prepared:
        """As `controls.prepare.load_map`. What a process died over is given to another, once."""
        here = not unit.ready and _learned(unit.kind)
        try:
            return self._future(unit, width, height, model, here=here).result()
        except BrokenExecutor:
            return self._future(unit, width, height, model, here=here).result()

    def close(self) -> None:
        """End the processes; what is waiting is given up."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _future(self, unit: ControlUnit, width: int, height: int, model: str, *, here: bool = False) -> Future[Prepared]:
        key = (unit.model_dump_json(exclude={"model", "weight", "start", "end", "mode", "layer_weights"}), width, height, model)
        with self._lock:
            if key not in self._maps or _failed(self._maps[key]):  # a failure is not kept: the next try may find the file there
                submit = _at_once if here else self._submit
                self._maps[key] = submit(load_map, unit, width, height, model=model)
                self.extracted += 1
                while len(self._maps) > MAPS_KEPT:
                    self._maps.popitem(last=False)
            self._maps.move_to_end(key)
            return self._maps[key]

    def _submit(self, work: Callable[..., Prepared], *arguments: Any, **more: Any) -> Future[Prepared]:
        try:
            return self._executor.submit(work, *arguments, **more)
        except BrokenExecutor:  # a process of it has died, and with it all of them
            self._executor = self._made()
            return self._executor.submit(work, *arguments, **more)

    def _made(self) -> Executor:
        if not self._processes:
            return ThreadPoolExecutor(1, thread_name_prefix="limn-extract")
        return ProcessPoolExecutor(self._processes, multiprocessing.get_context("spawn"), initializer=stay_with_parent)


def _failed(future: Future[Prepared]) -> bool:
    return future.done() and (future.cancelled() or future.exception() is not None)


def _at_once(work: Callable[..., Prepared], *arguments: Any, **more: Any) -> Future[Prepared]:
    """As an executor's `submit`, done when it returns."""
    future: Future[Prepared] = Future()
    try:
        future.set_result(work(*arguments, **more))
    except Exception as error:  # noqa: BLE001 (a future carries whatever it is)
        future.set_exception(error)
    return future


def stay_with_parent() -> None:
    """In a child process: leave Ctrl-C to the parent, and end when it ends, however that happens."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="limn-watch", daemon=True).start()


def _learned(kind: str) -> bool:
    return "estimator" in controls.get(kind).params.model_fields
