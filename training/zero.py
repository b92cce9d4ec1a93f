"""DeepSpeed's ZeRO, stage 2: every process has the weights; gradients and what the optimiser remembers are split over all.

DeepSpeed lays the parameters of each group of the optimiser end to end and gives every process one stretch of that line to step.
Checkpoints stay ours: what is remembered of a parameter is gathered from the stretches it lies in, and put back into them.

Axes: N elements of one parameter, M elements of this process's stretch.
Source: Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models", 2020, section 5.
"""

import logging
import os
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, distributed, nn

from training.config import TrainConfig
from training.optimiser import Optimiser
from training.processes import Copies

BUCKET = 50_000_000  # elements that are averaged at once; a buffer of that size is kept


class Zero(Copies):
    """Gradients and optimiser state are split over the processes."""

    def optimiser(self, parameters: Mapping[str, nn.Parameter]) -> Optimiser:
        made = ZeroOptimiser(parameters, self.config)
        self.model = made.engine = self._engine(made.inner)
        return made

    def micro_batch(self, last: bool) -> AbstractContextManager[None]:
        self.model.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.model.backward(loss)

    def _spread(self, whole: nn.Module) -> Any:
        return whole  # until its optimiser is made: DeepSpeed takes both at once

    def _engine(self, inner: torch.optim.Optimizer) -> Any:
        if self.accelerator.device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        settings = {
            "train_micro_batch_size_per_gpu": 1,  # it only counts with it; so of accumulation, which is told by `micro_batch`
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self.config.clip,
            "zero_optimization": {"stage": 2, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET},
            "zero_allow_untested_optimizer": True,  # those of `training.sharding` are tested by us
        }
        # said at every step, to those who cannot change it
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the same of what is imported
            import deepspeed

            logger = logging.getLogger("DeepSpeed")
            logger.setLevel(logging.ERROR)  # it warns of optimisers that it has not tested
            deepspeed.ops.__compatible_ops__ = {}  # none is needed, and those it finds it compiles, and says so
            engine = deepspeed.initialize(model=self.model, optimizer=inner, config=settings, dist_init_required=False)[0]
            logger.setLevel(logging.WARNING)
        return engine


class ZeroOptimiser(Optimiser):
    """The configured optimiser, each process of which steps its stretch of the parameters."""

    engine: Any

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: TrainConfig) -> None:
        super().__init__(parameters, config)
        # DeepSpeed puts one stretch in the place of a group's parameters
        self.groups = {parameter: number for number, group in enumerate(self.inner.param_groups) for parameter in group["params"]}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts a saved state back, and the modules' weights, which are to be loaded before."""
        super().load(tensors)
        self.engine.optimizer.refresh_fp32_params()

    def _move(self, scaler: torch.amp.GradScaler | None) -> Tensor:
        self.engine.step()
        return torch.as_tensor(self.engine.get_global_grad_norm(), dtype=torch.float32)

    def _remembered(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Whole in the main process, nothing in the others, which have to ask all the same."""
        stretch_M = self._stretch(parameter)
        out: dict[str, Tensor] = {}
        for part, value in self.inner.state.get(stretch_M, {}).items():
            if value.shape == stretch_M.shape:
                whole_N = torch.zeros(parameter.numel(), dtype=value.dtype, device=value.device)
                for here, there in _overlap(parameter, whole_N, value):
                    here.copy_(there)
                distributed.reduce(whole_N, 0)
                value = whole_N.view(parameter.shape)
            out[part] = value.cpu()
        return out if distributed.get_rank() == 0 else {}

    def _remember(self, parameter: nn.Parameter, state: Mapping[str, Tensor]) -> None:
        stretch_M = self._stretch(parameter)
        remembered = self.inner.state[stretch_M]
        for part, value in state.items():
            if part == "step":
                remembered[part] = value.to(stretch_M.device, copy=True)
                continue
            part_M = remembered.setdefault(part, torch.zeros_like(stretch_M))
            for here, there in _overlap(parameter, value.to(stretch_M.device).flatten(), part_M):
                there.copy_(here)

    def _stretch(self, parameter: nn.Parameter) -> Tensor:
        found: Tensor = self.inner.param_groups[self.groups[parameter]]["params"][0]
        return found


def _overlap(parameter: nn.Parameter, whole_N: Tensor, part_M: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The same elements in a parameter's tensor and in this process's stretch, in the same memory; an empty list where it has none."""
    mapping: Any = getattr(parameter, "_hp_mapping", None)
    if mapping is None:
        return []
    inside, outside = mapping.lp_fragment_address, mapping.hp_fragment_address
    return [(whole_N.narrow(0, inside.start, inside.numel), part_M.narrow(0, outside.start, outside.numel))]
