"""Work shared out: the order of the jobs, one maker a process, and errors that arrive."""

import os
import signal
from collections.abc import Callable

import pytest

from core.errors import BadRequest, LimnError
from core.spread import spread


def square() -> Callable[[int], tuple[int, int]]:
    return lambda number: (number * number, os.getpid())


def refuse() -> Callable[[int], int]:
    def work(number: int) -> int:
        if number == 2:
            raise BadRequest("no twos")
        return number

    return work


def end() -> Callable[[int], None]:
    return lambda _: os.kill(os.getpid(), signal.SIGKILL)


def test_results_come_in_the_jobs_order_from_other_processes() -> None:
    here = list(spread(square, range(5), 1))
    there = list(spread(square, range(5), 2))
    assert [value for value, _ in here] == [value for value, _ in there] == [0, 1, 4, 9, 16]
    assert {pid for _, pid in here} == {os.getpid()}
    assert os.getpid() not in {pid for _, pid in there}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_jobs_error_arrives(workers: int) -> None:
    with pytest.raises(BadRequest, match="no twos"):
        list(spread(refuse, range(4), workers))


def test_a_killed_process_is_told_in_one_sentence() -> None:
    with pytest.raises(LimnError, match="use fewer workers"):
        list(spread(end, range(2), 2))
