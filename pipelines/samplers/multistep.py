"""Linear multistep methods: PNDM's and DEIS."""

import math

from torch import Tensor

from pipelines.samplers.base import Model, Noise, OnStep, Sampler, along, boundless, slope, straight
from pipelines.samplers.euler import heun_step
from pipelines.schedules import Grid, Times

FEW_STEPS = 15  # below, DEIS ends with a first-order step, as in the authors' code
ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def pndm(model: Model, x: Tensor, times: Times, on_step: OnStep, noise: Noise) -> Tensor:
    """Pseudo linear multistep (PLMS) from up to four slopes, started by one Heun step; N + 1 calls of the network.

    The Adams–Bashforth weights are those of even steps, and are kept on uneven ones; so the order shows on even schedules alone. From pure
    noise, whose step in σ/α is infinite, no slope is carried on: PLMS begins a point later.

    Source: Liu et al., Pseudo Numerical Methods for Diffusion Models on Manifolds, 2022, eq. 9 (transfer) and its linear multistep
    part; without the Runge–Kutta warm-up, as in Stable Diffusion's PLMS sampler.
    """
    slopes: list[Tensor] = []
    for i in range(len(times)):
        denoised = model(x, i)
        on_step(i, denoised)
        if not boundless(times, i):
            slopes = [slope(x, denoised, times, i), *slopes[:3]]
        if i == 0:
            x = heun_step(model, x, denoised, times, 0)
            continue
        weights = ADAMS_BASHFORTH[len(slopes) - 1]
        mean = weights[0] * slopes[0]
        for weight, past in zip(weights[1:], slopes[1:], strict=True):
            mean = mean + weight * past
        x = along(x, mean * (times.levels[i + 1] - times.levels[i]), times, i)
    return x


def deis(model: Model, x: Tensor, times: Times, on_step: OnStep, noise: Noise) -> Tensor:
    """Diffusion exponential integrator of second order: ε̂ as a straight line in log ρ, ρ = σ/α, integrated exactly.

    The first step, and a last one to the pure picture, are of first order.

    Source: Zhang and Chen, Fast Sampling of Diffusion Models with Exponential Integrator, 2023, tAB-DEIS with polynomials in log ρ.
    diffusers ends on the table's first entry instead of the picture: `Times.ending_on_first`.
    """
    before: Tensor | None = None
    for i in range(len(times)):
        denoised = model(x, i)
        on_step(i, denoised)
        epsilon = (x - times.alphas[i] * denoised) / times.sigmas[i]
        ends = i + 1 == len(times) and (times.sigmas[i + 1] == 0.0 or len(times) < FEW_STEPS)
        if before is None or ends or times.alphas[i - 1] == 0.0:
            x = straight(x, denoised, times, i)
        else:
            rho_s, rho, rho_before = (times.sigmas[j] / times.alphas[j] for j in (i + 1, i, i - 1))
            now = _line(rho_s, rho, rho_before) - _line(rho, rho, rho_before)
            then = _line(rho_s, rho_before, rho) - _line(rho, rho_before, rho)
            x = times.alphas[i + 1] * (x / times.alphas[i] + now * epsilon + then * before)
        before = epsilon
    return x


def _line(at: float, one: float, zero: float) -> float:
    """∫ (log t − log zero)/(log one − log zero) dt up to `at`."""
    return at * (math.log(at) - math.log(zero) - 1.0) / (math.log(one) - math.log(zero))


SAMPLERS = (
    Sampler("pndm", pndm, Grid(whole_timesteps=True, unit_noise=True, on_table=True), order=2, calls=lambda n: n + 1 if n > 1 else n),
    Sampler("deis", deis, Grid(whole_timesteps=True, drops_last=True, unit_noise=True), order=2),
)
