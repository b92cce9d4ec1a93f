"""What is logged, for TensorBoard, which is left out where it is not installed, and for Weights & Biases where that is asked for."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import BadRequest


def check_installed(project: str) -> None:
    """Whether a project on Weights & Biases can be written to, asking for the key where there is a terminal; empty: there is none.

    Raises:
        BadRequest: wandb is not installed, or nobody is logged in.
    """
    if not project:
        return
    try:
        import wandb  # type: ignore[import-not-found,unused-ignore]

        login, error = wandb.login, wandb.errors.Error
    except (ImportError, AttributeError):  # its own folder of runs has its name, and is imported where there is nothing else
        raise BadRequest(f"monitor.wandb {project!r} needs wandb, which is not installed: pip install wandb, or leave it out") from None
    if os.environ.get("RANK", "0") != "0" or os.environ.get("WANDB_MODE", "online") != "online":
        return
    try:
        login()
    except error as reason:
        said = " ".join(str(reason).split())[:120]
        raise BadRequest(
            f"monitor.wandb {project!r}: nobody is logged in ({said}): run `wandb login`, set WANDB_MODE=offline, or leave it out"
        ) from None


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

                # of a run that was cut, what is measured again counts
                self._writer = SummaryWriter(str(self.folder), purge_step=step)  # type: ignore[no-untyped-call,unused-ignore]
            except ImportError:
                self._missing = True
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()
        if self.project and self._run is None:
            self._begin(self.project)
        if self._run is not None:
            self._run.log(dict(values), step=step)

    def _begin(self, project: str) -> None:
        """Nothing is lost but the figures there if it cannot be reached."""
        import wandb  # type: ignore[import-not-found,unused-ignore]

        try:
            self._run = wandb.init(project=project, name=self.name or None)
        except wandb.errors.Error as error:
            self.project = ""
            print(f"Weights & Biases gets nothing of this run: {' '.join(str(error).split())[:200]}", flush=True)
