"""AdamW, its learning rate as a function of the optimiser step, its state as named tensors, and the average of the weights."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from core.errors import BadRequest, Mismatch
from training.config import TrainConfig

STATE = ("exp_avg", "exp_avg_sq", "step")
FUSED = ("cpu", "cuda", "mps", "xpu")


def rate(config: TrainConfig, step: int) -> float:
    """The learning rate of optimiser step `step`, counted from 0."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    fall = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done
    return config.learning_rate * max(0.0, fall)


class Optimiser:
    """AdamW over named parameters, stepped with the schedule's rate."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: TrainConfig) -> None:
        """Raises BadRequest if a key of `learning_rate_factors` fits no parameter."""
        self.config = config
        self.parameters = dict(parameters)
        unused = [prefix for prefix in config.learning_rate_factors if not any(name.startswith(prefix) for name in parameters)]
        if unused:
            names = ", ".join(sorted({name.split(".")[0] for name in parameters}))
            raise BadRequest(f"learning_rate_factors {unused[0]!r} fits no trainable parameter: names start with {names}")
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((self._factor(name), decay), []).append(parameter)
        self.adamw = torch.optim.AdamW(
            [{"params": list(group), "weight_decay": decay, "factor": factor} for (factor, decay), group in groups.items()],
            lr=config.learning_rate,
            betas=config.betas,
            fused=all(parameter.device.type in FUSED for parameter in self.parameters.values()),
        )

    def step(self, step: int) -> None:
        """Moves the weights along their gradients and forgets the gradients."""
        for group in self.adamw.param_groups:
            group["lr"] = rate(self.config, step) * group["factor"]
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """The moments and step counts as `<parameter>/<moment>` tensors."""
        states = self.adamw.state
        return {f"{name}/{part}": states[p][part] for name, p in self.parameters.items() if p in states for part in STATE}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts a saved state back. Raises Mismatch if it is of other parameters."""
        known = {f"{name}/{part}" for name in self.parameters for part in STATE}
        if strangers := sorted(set(tensors) - known):
            raise Mismatch(
                f"the checkpoint's optimiser has a state for {strangers[0]!r}, which this task does not train: use another `out`"
            )
        for name, parameter in self.parameters.items():
            if f"{name}/step" in tensors:
                state = {part: tensors[f"{name}/{part}"] for part in STATE}
                # torch keeps the step count of fused AdamW beside the parameter, and moments in its dtype
                self.adamw.state[parameter] = {part: value.to(parameter.device, copy=True) for part, value in state.items()}

    def _factor(self, name: str) -> float:
        fitting = [prefix for prefix in self.config.learning_rate_factors if name.startswith(prefix)]
        return self.config.learning_rate_factors[max(fitting, key=len)] if fitting else 1.0


class Average:
    """Exponential moving average of the parameters, with a warm-up so that short runs are not held back by the first weights."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.live = dict(parameters)
        self.tensors = {name: p.detach().clone() for name, p in self.live.items()} if decay else {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after optimiser step `step`, counted from 0.

        Source of the warm-up, min(decay, (1 + n) / (10 + n)): TensorFlow's ExponentialMovingAverage.
        """
        if self.tensors:
            decay = min(self.decay, (2 + step) / (11 + step))
            torch._foreach_lerp_(list(self.tensors.values()), [self.live[name].detach() for name in self.tensors], 1 - decay)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts a saved average back; one that was not saved starts at the live weights."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name] if name in tensors else self.live[name].detach())

    def state_dicts(self, modules: Mapping[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
        """Full state dicts per module on the CPU, averaged where there is an average."""
        names = {id(parameter): name for name, parameter in self.live.items()}  # tied weights have one average and several names
        out: dict[str, dict[str, Tensor]] = {}
        for module_name, module in modules.items():
            tied = {name: names.get(id(p), "") for name, p in module.named_parameters(remove_duplicate=False)}
            state = module.state_dict()
            out[module_name] = {name: self.tensors.get(tied.get(name, ""), tensor).detach().cpu() for name, tensor in state.items()}
        return out
