"""What all samplers share: their head, their value, and the steps they are built from.

`model(x, i)` gives x̂_0, guidance included, for x at point i of `times`; `on_step(n, x̂_0)` is told once per step and may raise
`Cancelled`; `noise()` gives fresh standard noise shaped like x. Between two points every algorithm is x_s = a·x + b·x̂_0 + …, with
coefficients that are host floats made from `times`, so nothing in a loop waits for the device.

Letters: α, σ at the point the step leaves (i), α_s, σ_s at the one it reaches (i + 1); ε̂ = (x − α·x̂_0)/σ; λ = log α/σ; h = λ_s − λ;
ρ = e^−h = (σ_s·α)/(α_s·σ). At pure noise and at the picture λ is infinite, and each formula is taken to its limit there.

Stochastic samplers draw their noise from `noise()` step by step, so it depends on the number of steps. k-diffusion's Brownian tree
fixes it over noise levels instead; both have the same law.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from pipelines.parameterisation import SMALLEST_ALPHA_CUMPROD
from pipelines.schedules import Grid, Times

Model: TypeAlias = Callable[[Tensor, int], Tensor]
OnStep: TypeAlias = Callable[[int, Tensor], None]
Noise: TypeAlias = Callable[[], Tensor]
Run: TypeAlias = Callable[[Model, Tensor, Times, OnStep, Noise], Tensor]


@dataclass(frozen=True)
class Sampler:
    """An algorithm and the grid it was published on.

    order: the power of the step by which the error falls, of x if deterministic, of the pictures' deviation if stochastic; calls: of
    the network, for N steps.
    """

    name: str
    run: Run
    grid: Grid
    order: int = 1
    stochastic: bool = False
    calls: Callable[[int], int] = lambda steps: steps


def straight(x: Tensor, denoised: Tensor, times: Times, i: int) -> Tensor:
    """α_s·x̂_0 + σ_s·ε̂, the first-order step on every path."""
    keep = times.sigmas[i + 1] / times.sigmas[i]
    return keep * x + (times.alphas[i + 1] - keep * times.alphas[i]) * denoised


def decay(times: Times, i: int, j: int) -> float:
    """ρ = e^−(λ_j − λ_i) between two points; 0 from pure noise or to the picture."""
    return min(1.0, (times.sigmas[j] * times.alphas[i]) / (times.alphas[j] * times.sigmas[i]))


def slope(x: Tensor, denoised: Tensor, times: Times, i: int) -> Tensor:
    """du/dlevel = (u − x̂_0)/level at point i, with u = x/scale: ε̂ on VP and VE, the velocity on the flow path."""
    return (x / times.scale(i) - denoised) / times.levels[i]


def along(x: Tensor, du: Tensor, times: Times, i: int) -> Tensor:
    """x_s from x at point i when u changes by `du` until point i + 1."""
    return (x / times.scale(i) + du) * times.scale(i + 1)


def fresh(times: Times, i: int, j: int) -> float:
    """The deviation of what noise is new at point j when all of it decays from point i: σ_j·√(1 − ρ²)."""
    return times.sigmas[j] * math.sqrt(1.0 - decay(times, i, j) ** 2)


def boundless(times: Times, i: int) -> bool:
    """Whether point i is the pure noise of a table with zero-terminal SNR, whose level stands for an infinite one."""
    return times.path.kind == "vp" and times.levels[i] > 0.99 * SMALLEST_ALPHA_CUMPROD**-0.5
