"""The optimiser, its learning rate as a function of the step, its state as named tensors, and the average of the weights."""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import BadRequest, Mismatch
from training.config import TrainConfig
from training.sharding import mine, split_as, whole

# What each remembers of a parameter; others bring their own.
PARTS = {"adamw": {"exp_avg", "exp_avg_sq", "step"}, "lion": {"exp_avg"}, "adafactor": {"step", "row_var", "col_var", "variance"}}
GROUP_STATE = ("d", "d0", "d_max", "d_numerator", "k")  # Prodigy's estimate of the rate
FUSED = ("cpu", "cuda", "mps", "xpu")
LIBRARIES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}


def check_optimiser(config: TrainConfig) -> None:
    """Raises BadRequest if the optimiser's library is not installed."""
    library = LIBRARIES.get(config.optimiser)
    if library and find_spec(library) is None:
        raise BadRequest(f"optimiser {config.optimiser} needs {library}, which is not installed: pip install {library}")


def check_factors(config: TrainConfig, names: Collection[str]) -> None:
    """Raises BadRequest if a key of `learning_rate_factors` fits none of the parameters' names."""
    for prefix in config.learning_rate_factors:
        if not any(name.startswith(prefix) for name in names):
            known = ", ".join(dict.fromkeys(".".join(name.split(".")[: min(2, name.count("."))]) for name in names))
            raise BadRequest(f"learning_rate_factors {prefix!r} fits no trainable parameter: names start with {known}")


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
    """The configured optimiser over named parameters, stepped with the schedule's rate."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: TrainConfig) -> None:
        """Raises BadRequest if a key of `learning_rate_factors` fits no parameter."""
        self.config = config
        self.parameters = dict(parameters)
        check_factors(config, parameters)
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((self._factor(name), decay), []).append(parameter)
        self.inner = _made(
            [{"params": list(group), "weight_decay": decay, "factor": factor} for (factor, decay), group in groups.items()], config
        )

    def step(self, step: int, scaler: torch.amp.GradScaler | None = None) -> Tensor:
        """Clips the gradient, moves the weights along it and forgets it; returns its norm before clipping.

        scaler: of an fp16 loss, which leaves out what overflowed.
        """
        for group in self.inner.param_groups:
            group["lr"] = rate(self.config, step) * group["factor"]
        return self._move(scaler)

    def _move(self, scaler: torch.amp.GradScaler | None) -> Tensor:
        if scaler is not None:
            scaler.unscale_(self.inner)
        norm = whole(nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip))
        if scaler is None:
            self.inner.step()
        else:
            scaler.step(self.inner)
            scaler.update()
        self.inner.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, Tensor]:
        """What the optimiser remembers, as `<parameter>/<part>` tensors; of groups as `<first parameter>//<part>`."""
        out: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            out |= {f"{name}/{part}": value for part, value in self._remembered(parameter).items()}
        for name, group in self._grouped():
            out |= {f"{name}//{part}": torch.tensor(group[part], dtype=torch.float64) for part in GROUP_STATE if part in group}
        return out

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts a saved state back. Raises Mismatch if it is of other parameters or another optimiser."""
        if strangers := sorted(name for name in tensors if name.partition("/")[0] not in self.parameters):
            raise Mismatch(
                f"the checkpoint's optimiser has a state for {strangers[0]!r}, which this task does not train: use another `out`"
            )
        usual = PARTS.get(self.config.optimiser)
        if usual and (others := sorted({name.partition("/")[2] for name in tensors} - usual)):
            raise Mismatch(f"the checkpoint is of another optimiser than {self.config.optimiser} (it has {others[0]!r}): use another `out`")
        found: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            name, _, part = key.partition("/")
            if not part.startswith("/"):
                found.setdefault(name, {})[part] = value
        for name, state in found.items():
            self._remember(self.parameters[name], state)
        for name, group in self._grouped():
            group.update({part: tensors[f"{name}//{part}"].item() for part in GROUP_STATE if f"{name}//{part}" in tensors})

    def _remembered(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        found = self.inner.state.get(parameter, {})
        return {part: whole(torch.as_tensor(value)) for part, value in found.items() if _kept(value)}

    def _remember(self, parameter: nn.Parameter, state: Mapping[str, Tensor]) -> None:
        # torch keeps the step count of fused AdamW beside the parameter, and moments in its dtype
        self.inner.state[parameter] = {part: split_as(value.to(parameter.device, copy=True), parameter) for part, value in state.items()}

    def _grouped(self) -> list[tuple[str, dict[str, Any]]]:
        """Every group that remembers something, with the name of its first parameter."""
        if self.config.optimiser != "prodigy":
            return []
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        return [(names[id(group["params"][0])], group) for group in self.inner.param_groups]

    def _factor(self, name: str) -> float:
        fitting = [prefix for prefix in self.config.learning_rate_factors if name.startswith(prefix)]
        return self.config.learning_rate_factors[max(fitting, key=len)] if fitting else 1.0


def _made(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """Raises BadRequest if the optimiser's library is not installed."""
    check_optimiser(config)
    rate, betas = config.learning_rate, config.betas
    parameters = [parameter for group in groups for parameter in group["params"]]
    match config.optimiser:
        case "lion":
            return Lion(groups, rate, betas)
        case "adafactor":
            # a step is the rate times a parameter's size, at least the second ε: 1, for the usual 0.001 holds zero layers at zero
            return torch.optim.Adafactor(groups, lr=rate, eps=(None, 1.0))
        case "adamw8bit":
            import bitsandbytes  # type: ignore[import-not-found,unused-ignore]

            eight: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(groups, lr=rate, betas=betas)
            return eight
        case "prodigy":
            import prodigyopt  # type: ignore[import-not-found,unused-ignore]

            prodigy: torch.optim.Optimizer = prodigyopt.Prodigy(groups, lr=rate, betas=betas, safeguard_warmup=True)
            return prodigy
    fused = all(parameter.device.type in FUSED for parameter in parameters)
    return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=fused)


def _kept(value: object) -> bool:
    return isinstance(value, Tensor | int | float)


class Lion(torch.optim.Optimizer):
    """Steps of one size, in the direction that gradient and momentum agree on; half of AdamW's memory.

    Source: Chen et al., Symbolic Discovery of Optimization Algorithms, 2023, algorithm 2.
    """

    def __init__(self, parameters: Any, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """θ ← θ − η·(sign(β1·m + (1 − β1)·g) + λ·θ), then m ← β2·m + (1 − β2)·g."""
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                momentum = self.state[parameter].setdefault("exp_avg", torch.zeros_like(parameter))
                direction = torch.lerp(parameter.grad, momentum, first).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                momentum.lerp_(parameter.grad, 1 - second)


class Average:
    """Exponential moving average of the parameters, with a warm-up so that short runs are not held back by the first weights."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float, on_cpu: bool = False) -> None:
        self.decay = decay
        self.live = dict(parameters)
        copied = {name: p.detach().to("cpu", copy=True) if on_cpu else p.detach().clone() for name, p in self.live.items() if decay}
        self.tensors: dict[str, Tensor] = copied

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after optimiser step `step`, counted from 0.

        Source of the warm-up, min(decay, (1 + n) / (10 + n)): TensorFlow's ExponentialMovingAverage.
        """
        if self.tensors:
            decay = min(self.decay, (2 + step) / (11 + step))
            averages, live = ([mine(tensor) for tensor in tensors] for tensors in (self.tensors.values(), map(self._live, self.tensors)))
            live = [tensor.to(average.device) for average, tensor in zip(averages, live, strict=True)]
            torch._foreach_lerp_(averages, live, 1 - decay)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within it the parameters hold the average, where there is one and they are not in shards; on one device nothing is copied."""
        pairs = [(self.live[name], tensor) for name, tensor in self.tensors.items()]

        def exchange() -> None:
            for parameter, tensor in pairs:
                here, there = parameter.device, tensor.device
                parameter.data, tensor.data = tensor.data.to(here), parameter.data.to(there)

        exchange()
        try:
            yield
        finally:
            exchange()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts a saved average back; one that was not saved starts at the live weights."""
        for name, tensor in self.tensors.items():
            tensor.copy_(split_as(tensors[name], tensor) if name in tensors else self._live(name))

    def _live(self, name: str) -> Tensor:
        return self.live[name].detach()

    def state_dicts(self, modules: Mapping[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
        """Full state dicts per module on the CPU, averaged where there is an average; every process has to ask for shards."""
        names = {id(parameter): name for name, parameter in self.live.items()}  # tied weights have one average and several names
        out: dict[str, dict[str, Tensor]] = {}
        for module_name, module in modules.items():
            tied = {name: names.get(id(p), "") for name, p in module.named_parameters(remove_duplicate=False)}
            state = module.state_dict()
            out[module_name] = {name: whole(self.tensors.get(tied.get(name, ""), tensor)).detach().cpu() for name, tensor in state.items()}
        return out
