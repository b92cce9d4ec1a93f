"""UniPC: a predictor whose next evaluation of the network also corrects the step before."""

import math

from torch import Tensor

from pipelines.samplers.base import Model, Noise, OnStep, Sampler, straight
from pipelines.schedules import Grid, Times

LEAST_ALPHA = 1e-6  # pure noise counts as this α, as in the authors' code on the flow path


def unipc(model: Model, x: Tensor, times: Times, on_step: OnStep, noise: Noise) -> Tensor:
    """UniPC-2 in x̂_0 with B(h) = e^h − 1, of third order with its corrector; N calls of the network, for that asks nothing more.

    Source: Zhao et al., UniPC, 2023, theorem 3.1 (corrector) and corollary 3.2 (predictor), multistep data prediction, B_2(h); of first
    order at the start and at the end.
    """
    lambdas = [max(times.log_snr(i), math.log(LEAST_ALPHA)) for i in range(len(times) + 1)]
    past: list[Tensor] = []  # x̂_0 at the points before, the nearest last
    base, order = x, 0
    for i in range(len(times)):
        denoised = model(x, i)
        if i > 0:
            x = _corrected(base, denoised, past, times, (i - 1, order, lambdas))
        on_step(i, denoised)
        past, base = [*past[-1:], denoised], x
        order = min(2, i + 1, len(times) - i)
        blend = denoised
        if order == 2:
            blend = denoised + _difference(past, lambdas, i) * 0.5
        x = straight(x, blend, times, i)
    return x


def _difference(past: list[Tensor], lambdas: list[float], i: int) -> Tensor:
    """D_1 = (x̂_0 before − x̂_0 now)/r at point i, the last of `past`, with r = (λ_before − λ_i)/h."""
    r = (lambdas[i - 1] - lambdas[i]) / (lambdas[i + 1] - lambdas[i])
    return (past[0] - past[1]) / r


def _corrected(base: Tensor, reached: Tensor, past: list[Tensor], times: Times, step: tuple[int, int, list[float]]) -> Tensor:
    """The step from point i once more, now that x̂_0 where it led to is known."""
    i, order, lambdas = step
    now = past[-1]
    if order == 1:
        return straight(base, now + 0.5 * (reached - now), times, i)
    h = lambdas[i + 1] - lambdas[i]
    r = (lambdas[i - 1] - lambdas[i]) / h
    whole = math.expm1(-h)
    phi_1 = whole / -h - 1.0
    phi_2 = phi_1 / -h - 0.5
    b_1, b_2 = phi_1 / whole, 2.0 * phi_2 / whole
    far = (b_1 - b_2) / (1.0 - r)  # of the system far + near = b_1, r·far + near = b_2
    near = b_1 - far
    return straight(base, now + far * _difference(past, lambdas, i) + near * (reached - now), times, i)


SAMPLERS = (Sampler("unipc", unipc, Grid(whole_timesteps=True, drops_last=True, unit_noise=True), order=3),)
