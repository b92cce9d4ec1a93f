"""The shapes that N points can take: spacings count timesteps of a table or shares of a path, curves count noise levels.

A spacing gives positions on the scale 0 (least noise) … length − 1 (most); a curve gives levels from high to low.
"""

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BETA_SHAPE = 0.6  # both parameters of the Beta distribution


def uniform(length: int, steps: int, _offset: int) -> Floats:
    """Evenly from the last timestep to the first, both included ("linspace" in diffusers); a single step is the last timestep."""
    return np.linspace(length - 1, 0, steps)


def leading(length: int, steps: int, offset: int) -> Floats:
    """Whole strides up from the first timestep, moved by the checkpoint's `steps_offset`."""
    return (np.arange(steps - 1, -1, -1) * (length // steps) + offset).astype(np.float64)


def trailing(length: int, steps: int, _offset: int) -> Floats:
    """Strides down from the last timestep, which is always included, as whole timesteps."""
    index: Floats = np.round(length - np.arange(steps) * (length / steps)) - 1.0
    return index


def sgm_uniform(length: int, steps: int, _offset: int) -> Floats:
    """`uniform` with one point more, which is left out at the end. Source: Stability AI's generative-models, as ComfyUI names it."""
    return np.linspace(length - 1, 0, steps + 1)[:-1]


def simple(length: int, steps: int, _offset: int) -> Floats:
    """The table's own entries, whole strides down from the last, rounded towards it. Source: ComfyUI, simple_scheduler."""
    index: Floats = length - 1 - np.floor(np.arange(steps) * (length / steps))
    return index


def beta(length: int, steps: int, _offset: int) -> Floats:
    """Quantiles of Beta(0.6, 0.6): dense at both ends, where pictures change most.

    Source: Lee et al., Beta Sampling is All You Need, 2024, over timesteps; diffusers spreads the same quantiles over σ/α
    instead, which crowds a VP table's low end, and agrees on the flow path.
    """
    quantiles: Floats = beta_quantile(np.linspace(1.0, 0.0, steps))
    return quantiles * (length - 1)


def on_flow(schedule: str, path_range: tuple[float, float], steps: int, length: int) -> Floats:
    """The same spacings on σ of the flow path, which is continuous: between the lowest and the highest of `path_range`."""
    low, high = path_range
    match schedule:
        case "uniform":
            return np.linspace(high, low, steps)
        case "trailing":
            return high * (1.0 - np.arange(steps) / steps)
        case "sgm_uniform":
            return np.linspace(high, low, steps + 1)[:-1]
        case "beta":
            return low + (high - low) * beta_quantile(np.linspace(1.0, 0.0, steps))
        case _:
            return (simple(length, steps, 0) + 1.0) / length


def beta_quantile(share: Floats) -> Floats:
    """Quantiles of the symmetric Beta(a, a), a = BETA_SHAPE, from shares in 0 … 1; absolute error below 1e-6."""
    shares, values = _beta_table()
    return np.where(share <= 0.5, np.interp(share, shares, values), 1.0 - np.interp(1.0 - share, shares, values))


@cache
def _beta_table() -> tuple[Floats, Floats]:
    """The distribution function of the lower half. With x = sin²θ and w = θ^2a its density in w is smooth, so the trapezium rule holds."""
    w = np.linspace(0.0, (math.pi / 4) ** (2 * BETA_SHAPE), 20_001)
    theta = w ** (1 / (2 * BETA_SHAPE))
    density = np.ones_like(w)
    density[1:] = (np.sin(2 * theta[1:]) / (2 * theta[1:])) ** (2 * BETA_SHAPE - 1)
    total = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return 0.5 * total / total[-1], np.sin(theta) ** 2


def karras(low: float, high: float, steps: int, rho: float = 7.0) -> Floats:
    """Noise levels even in level^(1/ρ). Source: Karras et al., Elucidating the Design Space of Diffusion Models, 2022, eq. 5, ρ = 7."""
    return np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho


def exponential(low: float, high: float, steps: int, rho: float = 1.0) -> Floats:
    """Noise levels even in their logarithm. Source: k-diffusion, get_sigmas_exponential."""
    return np.exp(np.linspace(math.log(high), math.log(low), steps))


def polyexponential(low: float, high: float, steps: int, rho: float = 1.0) -> Floats:
    """Noise levels whose logarithm falls as the power ρ; ρ = 1 is exponential. Source: k-diffusion, get_sigmas_polyexponential."""
    return np.exp(np.linspace(1.0, 0.0, steps) ** rho * (math.log(high) - math.log(low)) + math.log(low))
