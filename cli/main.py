"""All commands under one name, and what becomes of their errors."""

import _thread
import contextlib
import gc
import io
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import typer

from app import ui
from batch import options as batches
from cli import demo, doctor, evaluate, extract, render, score, train
from core.errors import LimnError
from pipelines import commands as models_commands
from toyland import commands as toyland_commands
from training import commands as dataset_commands

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_OBJECTS_BETWEEN_COLLECTIONS = 10_000  # Python's 700 has it look for garbage a sixth of the time in which libraries are imported
_REPEAT_AFTER_S = 0.05  # the destructor has returned by then, or the next one drops it too and it comes again

app = typer.Typer(
    name="limn",
    help="Draw pictures from a prompt and control images; train new ControlNets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(toyland_commands.app, name="toyland")
app.add_typer(models_commands.app, name="models")
app.add_typer(dataset_commands.app, name="dataset")
app.add_typer(evaluate.app, name="evaluate")
for command in (
    render.render,
    doctor.doctor,
    extract.extract,
    score.score,
    demo.demo,
    ui,
    batches.status,
    batches.report,
    batches.verify,
    train.train,
):
    app.command()(command)


def main() -> None:
    """Entry point of the console script."""
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, 10, 10)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a prompt may hold what the terminal cannot show
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one command; its exit code: 0, an error's own, 2 for a usage error, 130 after Ctrl-C."""
    try:
        with repeating_dropped_interrupts():
            result = app(list(arguments), prog_name="limn", standalone_mode=False)
        sys.stdout.flush()
        if result == 130:  # what typer makes of Ctrl-C
            return _complain("interrupted", 130)
        return result if isinstance(result, int) else 0
    except LimnError as error:
        return _complain(str(error), error.exit_code)
    except typer.TyperException as error:
        message = getattr(error, "format_message", error.__str__)()
        return _complain(f"{message.rstrip('.')} (see limn --help)", 2) if message else 2  # none: the help was shown
    except (KeyboardInterrupt, typer.Abort):
        return _complain("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has gone, as in `limn models | head`
        sys.stderr.close()
        return 1


@contextlib.contextmanager
def repeating_dropped_interrupts() -> Iterator[None]:
    """A Ctrl-C that falls into a destructor or a weak reference's callback, where Python drops every exception, comes once more."""
    over, before = threading.Event(), sys.unraisablehook

    def repeat() -> None:
        if not over.wait(_REPEAT_AFTER_S):
            _thread.interrupt_main()

    def hook(dropped: "UnraisableHookArgs") -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            threading.Thread(target=repeat, daemon=True).start()
        else:
            before(dropped)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        over.set()
        sys.unraisablehook = before


def _complain(message: str, exit_code: int) -> int:
    """One line on stderr."""
    print(f"limn: {' '.join(message.split())}", file=sys.stderr)
    return exit_code
