"""What a task must offer to be trained, and what callbacks see of a run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from training.config import TrainConfig
from training.optimiser import Average
from training.randomness import Draws


class Task(Protocol):
    """What is trained: its modules, its samples, its loss."""

    name: str

    def modules(self) -> dict[str, nn.Module]:
        """The modules that are saved and averaged, by name; their parameters that require gradients are trained."""
        ...

    def __len__(self) -> int:
        """How many samples there are."""
        ...

    def batch(self, indices: list[int]) -> Any:
        """Loads these samples, on the CPU and without randomness; may run in a worker process."""
        ...

    def loss(self, batch: Any, draws: Draws) -> tuple[Tensor, dict[str, float | Tensor]]:
        """The mean loss over the batch and numbers to log; row i of `draws` belongs to sample i."""
        ...

    def export(self, folder: Path, ema: dict[str, dict[str, Tensor]]) -> None:
        """Writes the finished weights into `folder`; `ema` holds a full state dict per module."""
        ...


@runtime_checkable
class WithFrozen(Protocol):
    """A task that also needs modules it does not train: the trainer places them, in evaluation mode and without gradients."""

    def frozen(self) -> dict[str, nn.Module]:
        """The frozen modules, by name."""
        ...


@runtime_checkable
class WithBuckets(Protocol):
    """A task whose samples are not of one shape, so that a batch may only hold samples of one bucket."""

    def buckets(self) -> list[int]:
        """Each sample's bucket."""
        ...


@runtime_checkable
class WithSettings(Protocol):
    """A task that has settings of its own, which a resumed run is told to have changed."""

    def settings(self) -> dict[str, Any]:
        """What determines the result besides the trainer's own settings, by name, as JSON has it."""
        ...


@dataclass
class Run:
    """A run between two steps, as callbacks see it.

    metrics: the last that were logged; fresh: they were logged at this step. noted: what a callback wants to be logged from now on.
    say: prints a line that is always seen.
    """

    step: int
    task: Task
    config: TrainConfig
    average: Average
    main: bool
    metrics: dict[str, float] = field(default_factory=dict)
    noted: dict[str, float] = field(default_factory=dict)
    fresh: bool = False
    say: Callable[[str], None] = print
    _gathered: tuple[int, dict[str, dict[str, Tensor]]] | None = None

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """The averaged weights, a full state dict per module, on the CPU. Where they lie in shards, every process has to ask first."""
        if self._gathered is not None and self._gathered[0] == self.step:
            return self._gathered[1]
        found = self.average.state_dicts(self.task.modules())
        self._gathered = (self.step, found) if self.config.sharding == "fsdp" else None
        return found


OnStep = Callable[[Run], None]
