"""What a run says while it works: a live line on a terminal, plain lines elsewhere, and `log.jsonl` always."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from core.files import publish

LINE_EVERY_S = 10.0
SMOOTHING = 0.98  # per step; the shown loss averages over some fifty steps


class Reporter:
    """Reports one run. Made by the main process only; a `quiet` one (other processes) says nothing."""

    def __init__(self, out: Path, name: str, start: int, steps: int, quiet: bool = False) -> None:
        self.path = out / "log.jsonl"
        self.quiet = quiet
        self.name, self.start, self.steps = name, start, steps
        self.began = time.monotonic()
        self.loss: float | None = None
        self.last_step, self.last_time = start, self.began
        if not quiet:
            self._go_on()
        self.bar: _WithFigures | None = None
        if sys.stdout.isatty() and not quiet:
            shown = (_TITLE, BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
            self.bar = _WithFigures(*shown)
            self.task = self.bar.add_task(name, total=steps, completed=start)

    def _go_on(self) -> None:
        """Steps that a cut run logged and did not save come again: their rows go, and the shown loss goes on from the others."""
        if not self.path.is_file():
            return
        try:
            lines = self.path.read_text().splitlines(keepends=True)
            steps = [json.loads(line)["step"] for line in lines]
        except (OSError, ValueError, KeyError, TypeError):
            return
        kept = [line for line, step in zip(lines, steps, strict=True) if step <= self.start]
        if kept:
            self.loss = json.loads(kept[-1]).get("loss_smooth")
        if len(kept) < len(lines):
            publish(self.path, "".join(kept).encode())

    def __enter__(self) -> "Reporter":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()

    def step(self, step: int) -> None:
        """Moves the live line to `step` finished steps."""
        if self.bar:
            self.bar.update(self.task, completed=step)

    def record(self, step: int, metrics: dict[str, float], samples: int) -> None:
        """Logs the means since the last record. `metrics` holds `loss` and `lr`; `samples` were consumed since then."""
        if self.quiet:
            return
        now = time.monotonic()
        count, seconds = step - self.last_step, max(now - self.last_time, 1e-9)
        self.last_step, self.last_time = step, now
        weight = 1 - SMOOTHING**count
        self.loss = metrics["loss"] if self.loss is None else self.loss + weight * (metrics["loss"] - self.loss)
        left_s = (self.steps - step) * (now - self.began) / max(1, step - self.start)
        row = {"step": step, **metrics, "loss_smooth": self.loss, "samples_per_s": samples / seconds, "left_s": left_s}
        with self.path.open("a") as file:
            file.write(
                json.dumps({name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in row.items()}) + "\n"
            )
        rest = " ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name not in ("loss", "lr"))
        speed = f"{count / seconds:.3g} steps/s {samples / seconds:.1f} samples/s"
        said = f"loss {self.loss:.4f} lr {metrics['lr']:.2e} {speed} {rest}".rstrip()
        if self.bar:
            self.bar.said = said
            self.bar.update(self.task, completed=step)
        else:
            print(f"{self.name} step {step}/{self.steps} {said} left {_clock(left_s)}", flush=True)

    def say(self, text: str) -> None:
        """One line that is always seen."""
        if self.quiet:
            return
        if self.bar:
            self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, flush=True)


_TITLE = TextColumn("{task.description}", markup=False)


class _WithFigures(Progress):
    """A bar, and under it what is said of it: beside it, a terminal of the usual width would cut it off."""

    said = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.said:
            yield Text(self.said)


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


@contextmanager
def counting(title: str, total: int, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A callback (done, total) for work that is counted: a bar on a terminal, a line every ten seconds elsewhere."""
    if quiet:
        yield lambda done, total: None
    elif sys.stdout.isatty():
        with Progress(_TITLE, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()) as bar:
            task = bar.add_task(title, total=total)
            yield lambda done, total: bar.update(task, completed=done)
    else:
        said = time.monotonic()

        def say(done: int, total: int) -> None:
            nonlocal said
            if done == total or time.monotonic() - said > LINE_EVERY_S:
                said = time.monotonic()
                print(f"{title} {done}/{total}", flush=True)

        yield say
