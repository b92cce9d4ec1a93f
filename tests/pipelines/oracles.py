"""Both sides of a comparison with diffusers: a synthetic network, our samplers on it, and diffusers' schedulers on it."""

from typing import Any

import torch
from torch import Tensor

from pipelines.parameterisation import Output, Parameterisation
from pipelines.samplers import Model, Run
from pipelines.schedules import Times

SD: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
PREDICTION: dict[Output, str] = {"epsilon": "epsilon", "v": "v_prediction", "flow": "flow_prediction"}
SHAPE = (1, 4, 8, 8)
SEED = 3


def network(x: Tensor, t: Tensor) -> Tensor:
    """A smooth nonlinear stand-in that depends on x and t and is bounded as real networks are."""
    return torch.tanh(0.7 * x + 0.3 * torch.roll(x, 1, dims=-1)) + 0.2 * torch.sin(t / 300.0)


def model_of(times: Times, output: Output) -> Model:
    """(x, i) → x̂_0 through the synthetic network."""

    def model(x: Tensor, i: int) -> Tensor:
        out = network(x, torch.tensor(times.timesteps[i]))
        return Parameterisation(output).denoised(x, out, times.alphas[i], times.sigmas[i])

    return model


def ours(run: Run, times: Times, output: Output, **options: Any) -> Tensor:
    """A sampler's end on the synthetic network, all noise from one generator."""
    generator = torch.Generator().manual_seed(SEED)

    def noise() -> Tensor:
        return torch.randn(SHAPE, generator=generator)

    return run(model_of(times, output), noise() * times.initial, times, lambda i, denoised: None, noise, **options)


def theirs(scheduler: Any, **options: Any) -> Tensor:
    """The same through a diffusers scheduler whose timesteps are set."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(SHAPE, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    if "generator" in scheduler.step.__code__.co_varnames:
        options["generator"] = generator
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(scaled, t), t, x, **options).prev_sample
    assert isinstance(x, Tensor)
    return x
