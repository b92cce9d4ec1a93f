"""Ctrl-C and SIGTERM while a ControlNet is trained: the step in work is finished, with the samples that workers bring, and saved."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def outlive_sigterm(worker: int) -> None:
    """A worker goes on when all processes of a run are told to stop, as torchrun and schedulers do: the step is finished with its samples.

    It ends when the training does or is killed, and when the training itself tells it to, as Python does at its exit.
    """
    if not hasattr(signal, "sigwaitinfo"):  # not on Linux
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def listen() -> None:
        while (told := signal.sigwaitinfo({signal.SIGTERM})) is None or told.si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that the step in work is finished and saved first. Only the main thread can hear them."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
