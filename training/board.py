"""What is logged, for TensorBoard; nothing where it is not installed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Board:
    """Numbers by name and step, in a folder that `tensorboard --logdir` shows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None
        self._missing = False

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
