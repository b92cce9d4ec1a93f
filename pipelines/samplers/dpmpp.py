"""DPM-Solver++ and its stochastic relatives: x̂_0 as a polynomial in λ, integrated exactly against the path."""

import math

from torch import Tensor

from pipelines.samplers.base import Model, Noise, OnStep, Sampler, decay, fresh, straight
from pipelines.schedules import Grid, Times

FEW_STEPS = 15  # below, the last step but one is of second order at most, as in the authors' code


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
            h, h_before = _steps(times, i)
            blend = denoised + (h / (2.0 * h_before)) * (denoised - previous)
        x = straight(x, blend, times, i)
        previous = denoised
    return x


def dpmpp_2m_sde(model: Model, x: Tensor, times: Times, on_step: OnStep, noise: Noise) -> Tensor:
    """DPM-Solver++(2M) on the stochastic equation, whose noise is replaced entirely (η = 1); first and last step of first order.

    Source: Lu et al., DPM-Solver++, 2022, SDE-DPM-Solver++(2M); k-diffusion, sample_dpmpp_2m_sde, midpoint.
    """
    previous = x
    for i in range(len(times)):
        denoised = model(x, i)
        on_step(i, denoised)
        blend = denoised
        if 0 < i < len(times) - 1:
            h, h_before = _steps(times, i)
            blend = denoised + (h / (2.0 * h_before)) * (denoised - previous)
        x = _stochastic(x, blend, times, i, i + 1) + fresh(times, i, i + 1) * noise()
        previous = denoised
    return x


def dpmpp_3m_sde(model: Model, x: Tensor, times: Times, on_step: OnStep, noise: Noise) -> Tensor:
    """The same from the last three x̂_0; the last step is of first order, and of few steps the last but one of second.

    Source: k-diffusion, sample_dpmpp_3m_sde (η = 1). diffusers' third-order update has the ½ of its last coefficient with the other
    sign, so that the coefficient does not vanish with the step and the order is lost; the two agree while it is not used.
    """
    past: list[Tensor] = []
    for i in range(len(times)):
        denoised = model(x, i)
        on_step(i, denoised)
        last, few = i == len(times) - 1, len(times) < FEW_STEPS
        order = 1 if last else min(len(past) + 1, 2 if few and i == len(times) - 2 else 3)
        x_s = _stochastic(x, denoised, times, i, i + 1)
        if order == 2:
            h, h_before = _steps(times, i)
            x_s = x_s + (0.5 * times.alphas[i + 1] * -math.expm1(-2.0 * h) * h / h_before) * (denoised - past[-1])
        if order == 3:
            x_s = x_s + _third_order(denoised, past, times, i)
        x = x_s + fresh(times, i, i + 1) * noise()
        past = [*past[-1:], denoised]
    return x


def _third_order(denoised: Tensor, past: list[Tensor], times: Times, i: int) -> Tensor:
    """What the first and second divided difference of x̂_0 in λ add to the stochastic step."""
    h, h_before = _steps(times, i)
    h_first = times.log_snr(i - 1) - times.log_snr(i - 2)
    r_0, r_1 = h_before / h, h_first / h
    near, far = (denoised - past[1]) / r_0, (past[1] - past[0]) / r_1
    bend = (near - far) / (r_0 + r_1)
    phi_2 = math.expm1(-2.0 * h) / (2.0 * h) + 1.0
    phi_3 = phi_2 / (2.0 * h) - 0.5
    return times.alphas[i + 1] * (phi_2 * (near + r_0 * bend) - phi_3 * bend)


def dpmpp_sde(model: Model, x: Tensor, times: Times, on_step: OnStep, noise: Noise) -> Tensor:
    """DPM-Solver++ with a stage midway, on the stochastic equation; 2N − 1 calls of the network.

    The noise at midway and at the end of a step are tied as the equation ties them, from two draws. k-diffusion takes both from one
    Brownian motion over σ/α, which is the same at midway and nearly the same tie.

    Source: k-diffusion, sample_dpmpp_sde with η = 1 and r = ½; on the flow path r follows from where midway lies.
    """
    for i in range(0, len(times), 2):
        denoised = model(x, i)
        on_step(i // 2, denoised)
        if i + 1 == len(times):
            return straight(x, denoised, times, i)
        first, second = noise(), noise()
        x_m = _stochastic(x, denoised, times, i, i + 1) + fresh(times, i, i + 1) * first
        whole, half = times.log_snr(i + 2) - times.log_snr(i), times.log_snr(i + 1) - times.log_snr(i)
        share = 0.5 if math.isinf(whole) else whole / (2.0 * half)
        blend = (1.0 - share) * denoised + share * model(x_m, i + 1)
        carried = decay(times, i + 1, i + 2) * times.sigmas[i + 2] / times.sigmas[i + 1] * fresh(times, i, i + 1)
        x = _stochastic(x, blend, times, i, i + 2) + carried * first + fresh(times, i + 1, i + 2) * second
    return x


def _steps(times: Times, i: int) -> tuple[float, float]:
    """h of this step and of the one before."""
    return times.log_snr(i + 1) - times.log_snr(i), times.log_snr(i) - times.log_snr(i - 1)


def _stochastic(x: Tensor, denoised: Tensor, times: Times, i: int, j: int) -> Tensor:
    """The mean of the stochastic equation's step from point i to j for constant x̂_0: (σ_j/σ_i)·ρ·x + α_j·(1 − ρ²)·x̂_0."""
    rho = decay(times, i, j)
    return (rho * times.sigmas[j] / times.sigmas[i]) * x + (times.alphas[j] * (1.0 - rho**2)) * denoised


_GRID = Grid(whole_timesteps=True, drops_last=True, unit_noise=True)
SAMPLERS = (
    Sampler("dpmpp_2m", dpmpp_2m, _GRID, order=2),
    Sampler("dpmpp_2m_sde", dpmpp_2m_sde, _GRID, order=2, stochastic=True),
    Sampler("dpmpp_3m_sde", dpmpp_3m_sde, _GRID, order=2, stochastic=True),
    Sampler("dpmpp_sde", dpmpp_sde, Grid(midpoints=True), order=2, stochastic=True, calls=lambda steps: 2 * steps - 1),
)
