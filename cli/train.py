"""`limn train`: a new ControlNet."""

from pathlib import Path
from typing import Annotated

import typer

from core import terminal


def train(
    config: Annotated[Path, typer.Argument(help="YAML file; its keys are those of training.run.ControlNetConfig.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="As in train.steps=500.")] = None,
) -> None:
    """Train a ControlNet on pairs of pictures and control maps; started again, it goes on."""
    with terminal.interrupts_held():
        from training.run import main as train_from

    finished = train_from(config, overrides or [])
    if finished.main:
        typer.echo(finished.config.out / "weights")
