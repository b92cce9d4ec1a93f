"""Inversion: the noise from which a deterministic sampler draws a given picture."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from core.errors import BadRequest
from pipelines.samplers.base import Model, OnStep, straight
from pipelines.samplers.euler import heun_step
from pipelines.schedules import Times


def invert(model: Model, x0: Tensor, times: Times, on_step: OnStep | None = None, *, sampler: str = "euler", iterations: int = 5) -> Tensor:
    """The x at the first of `times` from which the sampler ("euler", "ddim" or "heun") comes to x0 at the last.

    Every step is solved backwards: from where the two points before lead, x ← x + what the step from x still misses, with the last two
    tries extrapolated per picture. The count of iterations is fixed, so nothing waits for the device; with 1 this is DDIM inversion
    without a way to mend its error. Calls of the network: N·iterations, for heun (2N − 1)·iterations.

    Measured as the largest error of the round trip over 50 steps of Stable Diffusion's table, float64: on Gaussian data of deviation ½
    1e-2 with 1 iteration, 1e-14 with 2, for there every step is linear; on a nonlinear network 1e-2 with 1, 3e-4 with 2, 1e-7 with 5.

    on_step: told of the steps from the last to the first, with the x reached.

    Raises:
        BadRequest: another sampler, no iterations, or times that end at the pure picture, to which every x of the last step leads.
    Source: Song et al., DDIM, 2021, section 4.3 (plain); Pan et al., Effective Real Image Editing with Accelerated Iterative
    Diffusion Inversion, 2023 (fixed points); Walker and Ni, Anderson Acceleration for Fixed-Point Iterations, 2011, with m = 1.
    """
    if sampler not in INVERTIBLE:
        raise BadRequest(f"sampler {sampler!r} cannot be inverted: use one of {', '.join(INVERTIBLE)}")
    if iterations < 1:
        raise BadRequest(f"iterations = {iterations}: give at least 1")
    if times.sigmas[-1] == 0.0 and len(times):
        raise BadRequest("the last point is the pure picture, from where no single way leads back: use times.ending_on_first()")
    x, rate = x0, torch.zeros_like(x0)
    for i in reversed(range(len(times))):
        target, length = x / times.scale(i + 1), times.levels[i] - times.levels[i + 1]
        back = times.scale(i) / times.scale(i + 1)
        x = _solved(
            partial(INVERTIBLE[sampler], model, times=times, i=i),
            (target + rate * length) * times.scale(i),
            x,
            back=back,
            iterations=iterations,
        )
        if length > 0.0:
            rate = (x / times.scale(i) - target) / length
        if on_step is not None:
            on_step(i, x)
    return x


def _solved(step: Callable[[Tensor], Tensor], x: Tensor, target: Tensor, *, back: float, iterations: int) -> Tensor:
    """The x from which `step` leads to `target`, by fixed-point iteration from a first guess."""
    x_before: Tensor | None = None
    missing_before: Tensor | None = None
    for _ in range(iterations):
        missing = (target - step(x)) * back
        x_next = x + missing
        if x_before is not None and missing_before is not None:
            change = missing - missing_before
            # Where nothing changes any more, at the rounding of x, the floor keeps the share from growing without bound.
            floor = (1e-3 * _inner(missing, missing)).clamp(min=torch.finfo(x.dtype).tiny)
            share = _inner(missing, change) / torch.maximum(_inner(change, change), floor)
            x_next = x_next - share * ((x - x_before) + change)
        x, x_before, missing_before = x_next, x, missing
    return x


def _inner(one: Tensor, other: Tensor) -> Tensor:
    """The inner product picture by picture, (B, 1, …)."""
    return (one * other).flatten(1).sum(1).reshape(-1, *(1,) * (one.ndim - 1))


def _euler(model: Model, x: Tensor, *, times: Times, i: int) -> Tensor:
    return straight(x, model(x, i), times, i)


def _heun(model: Model, x: Tensor, *, times: Times, i: int) -> Tensor:
    return heun_step(model, x, model(x, i), times, i)


INVERTIBLE = {"ddim": _euler, "euler": _euler, "heun": _heun}
