"""DPM-Solver-2 as k-diffusion has it: a second evaluation midway, deterministic and ancestral."""

from torch import Tensor

from pipelines.samplers.base import Model, Noise, OnStep, Sampler, decay, fresh, slope, straight
from pipelines.schedules import Grid, Times


def dpm2(model: Model, x: Tensor, times: Times, on_step: OnStep, noise: Noise) -> Tensor:
    """The whole step with the slope at the geometric mean of its levels; an Euler step at the end; 2N − 1 calls of the network.

    Source: k-diffusion, sample_dpm_2; Lu et al., DPM-Solver, 2022, algorithm 1 with r_1 = ½.
    """
    for i in range(0, len(times), 2):
        denoised = model(x, i)
        on_step(i // 2, denoised)
        if i + 1 == len(times):
            return straight(x, denoised, times, i)
        x_m = straight(x, denoised, times, i)
        step = times.levels[i + 2] - times.levels[i]
        middle = slope(x_m, model(x_m, i + 1), times, i + 1)
        x = (x / times.scale(i) + middle * step) * times.scale(i + 2)
    return x


def dpm2_ancestral(model: Model, x: Tensor, times: Times, on_step: OnStep, noise: Noise) -> Tensor:
    """DPM2 to a lower level than asked for, then fresh noise up to it; 2N − 1 calls of the network.

    With all noise fresh the lower level is σ_s²/σ, and the geometric mean of it and σ is σ_s: midway is the next point itself.
    Source: k-diffusion, sample_dpm_2_ancestral with η = 1.
    """
    for i in range(len(times)):
        denoised = model(x, i)
        on_step(i, denoised)
        x_s = straight(x, denoised, times, i)
        if i + 1 == len(times):
            return x_s
        alpha_d, scale_d, level_d = _below(times, i)
        middle = slope(x_s, model(x_s, i + 1), times, i + 1)
        x_d = (x / times.scale(i) + middle * (level_d - times.levels[i])) * scale_d
        x = (times.alphas[i + 1] / alpha_d) * x_d + fresh(times, i, i + 1) * noise()
    return x


def _below(times: Times, i: int) -> tuple[float, float, float]:
    """α, scale and level of the path's point whose σ/α is ρ times that of point i + 1."""
    ratio = decay(times, i, i + 1) * times.sigmas[i + 1] / times.alphas[i + 1]
    level = ratio / (1.0 + ratio) if times.path.kind == "flow" else ratio
    alpha, _ = times.path.from_level(level)
    return alpha, 1.0 if times.path.kind == "flow" else alpha, level


SAMPLERS = (
    Sampler("dpm2", dpm2, Grid(midpoints=True), order=2, calls=lambda steps: 2 * steps - 1),
    Sampler("dpm2_ancestral", dpm2_ancestral, Grid(), order=2, stochastic=True, calls=lambda steps: 2 * steps - 1),
)
