"""Inversion: the noise from which a deterministic sampler draws a given picture."""

from collections.abc import Callable

import torch
from torch import Tensor

from core.errors import BadRequest
from pipelines.samplers.base import Model, OnStep, straight
from pipelines.samplers.euler import heun_step
from pipelines.schedules import Times

Step = Callable[[Model, Tensor, Times, int], Tensor]


def invert(
    model: Model, x0: Tensor, times: Times, on_step: OnStep | None = None, *, sampler: str = "euler", iterations: int = 10
) -> Tensor:
    """The x at the first of `times` from which the sampler ("euler", "ddim" or "heun") comes to x0 at the last.

    Every step is solved backwards, x ← x + (α-scaled) what the step from x still misses, with the last two tries extrapolated per
    picture; the count of iterations is fixed, so nothing waits for the device. iterations = 1 is plain DDIM inversion, which takes the
    network's answer at the step's end for the one at its start. Calls of the network: N·iterations, for heun (2N − 1)·iterations.

    On Gaussian data, 50 steps of a Stable Diffusion table and 10 iterations, a float64 round trip errs by less than 1e-6 of the
    picture's deviation, the plain one by some 1e-2.

    on_step: told of the steps from the last to the first, with the x reached.

    Raises:
        BadRequest: another sampler, no iterations, or times that end at the pure picture, to which every x of the last step leads.
    Source: Song et al., DDIM, 2021, section 4.3 (plain); Pan et al., Effective Real Image Editing with Accelerated Iterative
    Diffusion Inversion, 2023 (fixed points); Walker and Ni, Anderson Acceleration for Fixed-Point Iterations, 2011, with m = 1.
    """
    steps: dict[str, Step] = {"euler": _euler, "ddim": _euler, "heun": _heun}
    if sampler not in steps:
        raise BadRequest(f"sampler {sampler!r} cannot be inverted: use one of {', '.join(sorted(steps))}")
    if iterations < 1:
        raise BadRequest(f"iterations = {iterations}: give at least 1")
    if times.sigmas[-1] == 0.0 and len(times):
        raise BadRequest("the last point is the pure picture, from where no single way leads back: use times.ending_on_first()")
    x = x0
    for i in reversed(range(len(times))):
        x = _solved(steps[sampler], model, x, times, i, iterations=iterations)
        if on_step is not None:
            on_step(i, x)
    return x


def _solved(step: Step, model: Model, target: Tensor, times: Times, i: int, *, iterations: int) -> Tensor:
    """The x at point i from which `step` leads to `target`, by fixed-point iteration in u = x/scale."""
    back = times.scale(i) / times.scale(i + 1)
    x, x_before, missing_before = target * back, None, None
    for _ in range(iterations):
        missing = (target - step(model, x, times, i)) * back
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


def _euler(model: Model, x: Tensor, times: Times, i: int) -> Tensor:
    return straight(x, model(x, i), times, i)


def _heun(model: Model, x: Tensor, times: Times, i: int) -> Tensor:
    return heun_step(model, x, model(x, i), times, i)
