"""How the processes of a run come to one gradient: each with all that is trained (DDP), or each with a shard of it (FSDP2).

What the trainer asks of them is here, so that its loop reads the same for every `train.sharding`; for DeepSpeed see `training/zero.py`.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from training.config import TrainConfig
from training.optimiser import Optimiser
from training.sharding import shard


class Copies:
    """Every process has all that is trained. One process is the simplest case.

    model: what gives a micro-batch's loss; to be called only once the optimiser is made.
    """

    def __init__(self, whole: nn.Module, accelerator: Accelerator, config: TrainConfig) -> None:
        self.accelerator, self.config = accelerator, config
        self.model = self._spread(whole)

    def optimiser(self, parameters: Mapping[str, nn.Parameter]) -> Optimiser:
        """The configured optimiser over these parameters."""
        return Optimiser(parameters, self.config)

    def micro_batch(self, last: bool) -> AbstractContextManager[None]:
        """Around a micro-batch's loss and its backward pass; after the last one of a step the processes agree on the gradient."""
        apart: AbstractContextManager[None] = nullcontext() if last else self.accelerator.no_sync(self.model)
        return apart

    def backward(self, loss: Tensor) -> None:
        """Adds the loss's gradient to the step's."""
        loss.backward()  # type: ignore[no-untyped-call]  # accelerate's own would divide by what `accelerate config` was told

    def _spread(self, whole: nn.Module) -> Any:
        return self.accelerator.prepare(whole)


class Shards(Copies):
    """Weights, gradients and optimiser state are split over the processes."""

    def micro_batch(self, last: bool) -> AbstractContextManager[None]:
        self.model.set_requires_gradient_sync(last)
        return nullcontext()

    def _spread(self, whole: nn.Module) -> Any:
        return shard(whole, self.accelerator.num_processes, self.accelerator.device)
