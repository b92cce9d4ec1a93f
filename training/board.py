"""What is logged, for TensorBoard, which is left out where it is not installed, and for Weights & Biases where that is asked for."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core.errors import BadRequest


def check_installed(project: str) -> None:
    """Raises BadRequest if there is a project on Weights & Biases and wandb is not installed."""
    if project and find_spec("wandb") is None:
        raise BadRequest(f"monitor.wandb {project!r} needs wandb, which is not installed: pip install wandb, or leave it out")


class Board:
    """Numbers by name and step, in a folder that `tensorboard --logdir` shows, and in a project on Weights & Biases.

    folder: None leaves TensorBoard out. project: empty leaves Weights & Biases out. Both begin with the first numbers.
    """

    def __init__(self, folder: Path | None, project: str = "", name: str = "") -> None:
        self.folder, self.project, self.name = folder, project, name
        self._writer: Any = None
        self._missing = folder is None
        self._run: Any = None

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Writes these values of a step."""
        if self._writer is None and not self._missing:
            try:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self.folder))  # type: ignore[no-untyped-call,unused-ignore]
            except ImportError:
                self._missing = True
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()
        if self.project and self._run is None:
            import wandb  # type: ignore[import-not-found,unused-ignore]

            self._run = wandb.init(project=self.project, name=self.name or None)
        if self._run is not None:
            self._run.log(dict(values), step=step)
