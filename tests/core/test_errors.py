"""The error tree, and the messages it builds."""

import inspect

import pytest

from core import errors
from core.errors import BadRequest, Cancelled, LimnError, shortened, unknown_name

TREE = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, LimnError)]


def test_every_error_stands_in_the_modules_drawing_and_ends_with_an_exit_code() -> None:
    assert len(TREE) == 11
    for error in TREE:
        assert error.__name__ in str(errors.__doc__)
        assert error.exit_code == (130 if error is Cancelled else 2)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    error = unknown_name("sampler", "eular", ["heun", "euler", "ddim"])
    assert isinstance(error, BadRequest)
    assert str(error) == "unknown sampler 'eular': did you mean 'euler'? known are ddim, euler, heun"
    assert str(unknown_name("sampler", "zzzz", ["heun"])) == "unknown sampler 'zzzz': known are heun"


@pytest.mark.parametrize("name", ["x" * 1_000_000, "two\nlines", "\x1b[31mred"])
def test_messages_stay_short_and_on_one_line_whatever_the_name(name: str) -> None:
    message = str(unknown_name("control", name, ["canny"]))
    assert len(message) < 150
    assert message.isprintable()


def test_shortened_values_are_python_and_bounded() -> None:
    assert shortened("short") == "'short'"
    assert shortened("x" * 61) == "'" + "x" * 60 + "'…"
    assert shortened(1.5) == "1.5"
    assert shortened(10**80) == "1" + "0" * 59 + "…"
