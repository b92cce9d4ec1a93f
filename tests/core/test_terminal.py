"""Ctrl-C while something must not be cut off."""

import os
import signal
import threading

import pytest

from core.terminal import interrupts_held


def interrupted(done: list[str], error: Exception | None = None) -> None:
    with interrupts_held():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("after")
        if error is not None:
            raise error


def test_an_interrupt_waits_for_the_end_of_the_block() -> None:
    before, done = signal.getsignal(signal.SIGINT), list[str]()
    with pytest.raises(KeyboardInterrupt):
        interrupted(done)
    assert done == ["after"]
    assert signal.getsignal(signal.SIGINT) is before


def test_one_that_was_blocked_before_is_let_through() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupted([])
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_an_error_inside_goes_first() -> None:
    with pytest.raises(ValueError, match="inside"):
        interrupted([], ValueError("inside"))
