"""Euler's and Heun's methods, and Euler's with fresh noise."""

from torch import Tensor

from pipelines.samplers.base import Model, Noise, OnStep, Sampler, along, boundless, slope, straight
from pipelines.samplers.ddim import ddim
from pipelines.schedules import Grid, Times


def euler(model: Model, x: Tensor, times: Times, on_step: OnStep, noise: Noise) -> Tensor:
    """Euler's method: x_s = α_s·x̂_0 + σ_s·ε̂, a straight line on every path.

    Source: Karras et al., Elucidating the Design Space of Diffusion Models, 2022, algorithm 1 without its second order.
    """
    for i in range(len(times)):
        denoised = model(x, i)
        on_step(i, denoised)
        x = straight(x, denoised, times, i)
    return x


def euler_ancestral(model: Model, x: Tensor, times: Times, on_step: OnStep, noise: Noise) -> Tensor:
    """Euler's method to a lower level than asked for, then fresh noise up to it.

    Source: k-diffusion, sample_euler_ancestral; with σ_up² = σ_s²·(1 − ρ²), ρ = (σ_s·α)/(α_s·σ), it is DDIM with η = 1.
    """
    return ddim(model, x, times, on_step, noise, eta=1.0)


def heun(model: Model, x: Tensor, times: Times, on_step: OnStep, noise: Noise) -> Tensor:
    """Heun's second-order method in the noise level, with an Euler step at the end; the network is asked 2N − 1 times.

    Source: Karras et al., 2022, algorithm 1.
    """
    for i in range(len(times)):
        denoised = model(x, i)
        on_step(i, denoised)
        x = heun_step(model, x, denoised, times, i)
    return x


def heun_step(model: Model, x: Tensor, denoised: Tensor, times: Times, i: int) -> Tensor:
    """One step of Heun's method from point i, where x̂_0 is known.

    From pure noise the mean is taken in r = σ/(α + σ), where du/dr = ε̂ − x̂_0 with u = x/(α + σ) and the step is short: in σ/α it would
    be infinite, and so would what the two slopes differ by.
    """
    if i + 1 == len(times):
        return straight(x, denoised, times, i)
    if boundless(times, i):
        x_s = straight(x, denoised, times, i)
        (one, r), (other, r_s) = _bounded(x, denoised, times, i), _bounded(x_s, model(x_s, i + 1), times, i + 1)
        whole, whole_s = (times.alphas[j] + times.sigmas[j] for j in (i, i + 1))
        return (x / whole + (one + other) * (0.5 * (r_s - r))) * whole_s
    step = times.levels[i + 1] - times.levels[i]
    first = slope(x, denoised, times, i)
    x_s = along(x, first * step, times, i)
    second = slope(x_s, model(x_s, i + 1), times, i + 1)
    return along(x, (first + second) * (0.5 * step), times, i)


def _bounded(x: Tensor, denoised: Tensor, times: Times, i: int) -> tuple[Tensor, float]:
    """du/dr at point i, and r."""
    alpha, sigma = times.alphas[i], times.sigmas[i]
    return (x - (alpha + sigma) * denoised) / sigma, sigma / (alpha + sigma)


SAMPLERS = (
    Sampler("euler", euler, Grid()),
    Sampler("euler_ancestral", euler_ancestral, Grid(), stochastic=True),
    Sampler("heun", heun, Grid(), order=2, calls=lambda steps: 2 * steps - 1),
)
