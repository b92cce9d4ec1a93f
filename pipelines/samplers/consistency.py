"""Samplers of consistency-distilled networks, which ask for few steps."""

import math

from torch import Tensor

from pipelines.samplers.base import Model, Noise, OnStep, Sampler
from pipelines.schedules import Grid, Times

DATA_DEVIATION = 0.5
TIMESTEP_SCALE = 10.0


def lcm(model: Model, x: Tensor, times: Times, on_step: OnStep, noise: Noise) -> Tensor:
    """Latent consistency: the picture at once, then noise of the next level on it.

    On VP and VE the picture is c_out·x̂_0 + c_skip·x, which is x itself at timestep 0; on the flow path it is x̂_0.

    Source: Luo et al., Latent Consistency Models, 2023, algorithm 3; Song et al., Consistency Models, 2023, algorithm 1.
    """
    for i in range(len(times)):
        denoised = model(x, i)
        if times.path.kind != "flow":
            t = TIMESTEP_SCALE * times.timesteps[i]
            size = t**2 + DATA_DEVIATION**2
            denoised = (t / math.sqrt(size)) * denoised + (DATA_DEVIATION**2 / size) * x
        on_step(i, denoised)
        if i + 1 == len(times):
            return denoised
        x = times.alphas[i + 1] * denoised + times.sigmas[i + 1] * noise()
    return x


def tcd(model: Model, x: Tensor, times: Times, on_step: OnStep, noise: Noise, *, gamma: float = 0.3) -> Tensor:
    """Trajectory consistency with strategic stochastic sampling: down to (1 − γ) of the next timestep, then noise up to it.

    gamma: 0 is deterministic (DDIM's step), 1 draws as much noise as consistency sampling does.

    Source: Zheng et al., Trajectory Consistency Distillation, 2024, strategic stochastic sampling. diffusers ends on the table's first
    entry, as here where the checkpoint says so (`end_on_first`).
    """
    for i in range(len(times)):
        denoised = model(x, i)
        on_step(i, denoised)
        last = i + 1 == len(times)
        alpha_s, sigma_s = times.alphas[i + 1], times.sigmas[i + 1]
        alpha_m, sigma_m = (alpha_s, sigma_s) if last or gamma == 0.0 else _lower(times, i + 1, gamma)
        keep = sigma_m / times.sigmas[i]
        x = keep * x + (alpha_m - keep * times.alphas[i]) * denoised
        if gamma > 0.0 and not last:
            back = alpha_s / alpha_m
            x = back * x + math.sqrt(max(0.0, sigma_s**2 - (back * sigma_m) ** 2)) * noise()
    return x


def _lower(times: Times, i: int, gamma: float) -> tuple[float, float]:
    """α and σ at (1 − γ) of the timestep of point i; a whole one on a table."""
    t = (1.0 - gamma) * times.timesteps[i]
    return times.path.alpha_sigma(t if times.path.kind == "flow" else float(math.floor(t)))


_GRID = Grid(whole_timesteps=True, unit_noise=True, on_table=True, distilled=50)
SAMPLERS = (Sampler("lcm", lcm, _GRID, stochastic=True), Sampler("tcd", tcd, _GRID, stochastic=True))
