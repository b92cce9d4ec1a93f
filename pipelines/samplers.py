"""Samplers: one function per published algorithm, each for every family and path.

All share one head. `model(x, i)` gives x̂_0, guidance included, for x at point i of `times`; `on_step(i, x̂_0)` is told once per step and
may raise `Cancelled`; `noise()` gives fresh standard noise shaped like x. Between two points every algorithm is x_s = a·x + b·x̂_0 + …
with coefficients that are host floats, so nothing in a loop waits for the device.

Letters: α, σ at the point the step leaves (i), α_s, σ_s at the one it reaches (i + 1); ε̂ = (x − α·x̂_0)/σ.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from core.errors import unknown_name
from pipelines.schedules import Grid, Times

Model: TypeAlias = Callable[[Tensor, int], Tensor]
OnStep: TypeAlias = Callable[[int, Tensor], None]
Noise: TypeAlias = Callable[[], Tensor]
Run: TypeAlias = Callable[[Model, Tensor, Times, OnStep, Noise], Tensor]


def euler(model: Model, x: Tensor, times: Times, on_step: OnStep, noise: Noise) -> Tensor:
    """Euler's method: x_s = α_s·x̂_0 + σ_s·ε̂, a straight line on every path.

    Source: Karras et al., Elucidating the Design Space of Diffusion Models, 2022, algorithm 1 without its second order.
    """
    for i in range(len(times)):
        denoised = model(x, i)
        on_step(i, denoised)
        x = _straight(x, denoised, times, i)
    return x


def euler_ancestral(model: Model, x: Tensor, times: Times, on_step: OnStep, noise: Noise) -> Tensor:
    """Euler's method to a lower level than asked for, then fresh noise up to it.

    Source: k-diffusion, sample_euler_ancestral; with σ_up² = σ_s²·(1 − ρ²), ρ = (σ_s·α)/(α_s·σ), it is DDIM with η = 1.
    """
    return ddim(model, x, times, on_step, noise, eta=1.0)


def heun(model: Model, x: Tensor, times: Times, on_step: OnStep, noise: Noise) -> Tensor:
    """Heun's second-order method in the noise level, with an Euler step at the end; the network is asked 2N − 1 times.

    u = x·level/σ moves with du/dlevel = (u − x̂_0)/level, whether the level is σ/α (VP, VE) or σ (flow).
    Source: Karras et al., 2022, algorithm 1.
    """
    for i in range(len(times)):
        denoised = model(x, i)
        on_step(i, denoised)
        if i + 1 == len(times):
            return _straight(x, denoised, times, i)
        level, level_s = times.levels[i], times.levels[i + 1]
        scale, scale_s = times.sigmas[i] / level, times.sigmas[i + 1] / level_s
        u = x / scale
        slope = (u - denoised) / level
        u_s = u + slope * (level_s - level)
        slope_s = (u_s - model(u_s * scale_s, i + 1)) / level_s
        x = (u + (slope + slope_s) * (0.5 * (level_s - level))) * scale_s
    return x


def ddim(model: Model, x: Tensor, times: Times, on_step: OnStep, noise: Noise, *, eta: float = 0.0) -> Tensor:
    """Denoising diffusion implicit models; eta: 0 is deterministic, 1 draws as much noise as DDPM.

    Source: Song et al., Denoising Diffusion Implicit Models, 2021, eq. 12 and 16, with the ratio ρ for paths other than VP.
    """
    for i in range(len(times)):
        denoised = model(x, i)
        on_step(i, denoised)
        alpha, sigma, alpha_s, sigma_s = times.alphas[i], times.sigmas[i], times.alphas[i + 1], times.sigmas[i + 1]
        rho = min(1.0, (sigma_s * alpha) / (alpha_s * sigma))
        fresh = eta * sigma_s * math.sqrt(1.0 - rho**2)
        keep = sigma_s * math.sqrt(1.0 - eta**2 * (1.0 - rho**2)) / sigma
        x = keep * x + (alpha_s - keep * alpha) * denoised
        if eta > 0.0:  # drawn at the last step too, so that the count of draws does not depend on the end
            x = x + fresh * noise()
    return x


def dpmpp_2m(model: Model, x: Tensor, times: Times, on_step: OnStep, noise: Noise) -> Tensor:
    """DPM-Solver++(2M): second order from the last two x̂_0, in λ = log α/σ; the first and the last step are of first order.

    Source: Lu et al., DPM-Solver++, 2022, algorithm 2.
    """
    previous = x
    for i in range(len(times)):
        denoised = model(x, i)
        on_step(i, denoised)
        blend = denoised
        if 0 < i < len(times) - 1:
            h, h_before = times.log_snr(i + 1) - times.log_snr(i), times.log_snr(i) - times.log_snr(i - 1)
            blend = denoised + (h / (2.0 * h_before)) * (denoised - previous)
        x = _straight(x, blend, times, i)
        previous = denoised
    return x


def _straight(x: Tensor, denoised: Tensor, times: Times, i: int) -> Tensor:
    """α_s·x̂_0 + σ_s·ε̂."""
    keep = times.sigmas[i + 1] / times.sigmas[i]
    return keep * x + (times.alphas[i + 1] - keep * times.alphas[i]) * denoised


@dataclass(frozen=True)
class Sampler:
    """An algorithm and the grid it was published on."""

    name: str
    run: Run
    grid: Grid


SAMPLERS = {
    sampler.name: sampler
    for sampler in (
        Sampler("euler", euler, Grid()),
        Sampler("euler_ancestral", euler_ancestral, Grid()),
        Sampler("heun", heun, Grid()),
        Sampler("ddim", ddim, Grid(whole_timesteps=True, unit_noise=True, on_table=True)),
        Sampler("dpmpp_2m", dpmpp_2m, Grid(whole_timesteps=True, drops_last=True, unit_noise=True)),
    )
}


def get(name: str) -> Sampler:
    """The sampler of that name.

    Raises:
        BadRequest: the name is unknown; the message names the nearest.
    """
    if name not in SAMPLERS:
        raise unknown_name("sampler", name, SAMPLERS)
    return SAMPLERS[name]
