"""Denoising diffusion, implicit and probabilistic: the samplers of the first published models."""

import math
from typing import Literal

from torch import Tensor

from pipelines.samplers.base import Model, Noise, OnStep, Sampler, decay
from pipelines.schedules import Grid, Times


def ddim(model: Model, x: Tensor, times: Times, on_step: OnStep, noise: Noise, *, eta: float = 0.0) -> Tensor:
    """Denoising diffusion implicit models; eta: 0 is deterministic, 1 draws as much noise as DDPM.

    Source: Song et al., Denoising Diffusion Implicit Models, 2021, eq. 12 and 16, with the ratio ρ for paths other than VP.
    """
    for i in range(len(times)):
        denoised = model(x, i)
        on_step(i, denoised)
        alpha, sigma, alpha_s, sigma_s = times.alphas[i], times.sigmas[i], times.alphas[i + 1], times.sigmas[i + 1]
        rho = decay(times, i, i + 1)
        fresh = eta * sigma_s * math.sqrt(1.0 - rho**2)
        keep = sigma_s * math.sqrt(1.0 - eta**2 * (1.0 - rho**2)) / sigma
        x = keep * x + (alpha_s - keep * alpha) * denoised
        if eta > 0.0:  # drawn at the last step too, so that the count of draws does not depend on the end
            x = x + fresh * noise()
    return x


def ddpm(model: Model, x: Tensor, times: Times, on_step: OnStep, noise: Noise, *, variance: Literal["small", "large"] = "small") -> Tensor:
    """Denoising diffusion probabilistic models, over strided points.

    variance: "small" is the posterior's, β̃ = σ_s²·(1 − ρ²); "large" the forward step's own, β = σ²·(1 − ρ²).

    Source: Ho et al., Denoising Diffusion Probabilistic Models, 2020, algorithm 2; both variances in section 3.2; strided as in
    Nichol and Dhariwal, 2021, section 4.
    """
    for i in range(len(times)):
        denoised = model(x, i)
        on_step(i, denoised)
        rho = decay(times, i, i + 1)
        keep = rho * times.sigmas[i + 1] / times.sigmas[i]
        x = keep * x + times.alphas[i + 1] * (1.0 - rho**2) * denoised
        forward = math.sqrt(1.0 - rho**2)  # √β̃ = σ_s·√(1 − ρ²), √β = σ·√(1 − ρ²)
        if i + 1 < len(times):
            x = x + forward * (times.sigmas[i + 1] if variance == "small" else times.sigmas[i]) * noise()
    return x


_GRID = Grid(whole_timesteps=True, unit_noise=True, on_table=True)
SAMPLERS = (Sampler("ddim", ddim, _GRID), Sampler("ddpm", ddpm, _GRID, stochastic=True))
