"""A target whose exact solution is known: Gaussian data, N(mean, deviation²) in every element, in float64.

The best x̂_0 is mean + (x − α·mean)·α·s²/(α²s² + σ²), and along the probability flow x − α·mean stays proportional to √(α²s² + σ²).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.parameterisation import Path
from pipelines.samplers import Model
from pipelines.schedules import Times
from tests.pipelines.oracles import SD

PATHS = {
    "vp": Path.from_scheduler_config(SD),
    "ve": Path.ve(torch.logspace(-2, 1.5, 1000, dtype=torch.float64)),
    "flow": Path.flow(1000),
}


@dataclass(frozen=True)
class Gaussian:
    """Data of this mean and deviation."""

    mean: float = 0.3
    deviation: float = 0.5

    def width(self, alpha: float, sigma: float) -> float:
        """The deviation of x at a point."""
        return math.hypot(alpha * self.deviation, sigma)

    def model(self, times: Times) -> Model:
        """The exact x̂_0."""

        def model(x: Tensor, i: int) -> Tensor:
            alpha, sigma = times.alphas[i], times.sigmas[i]
            return self.mean + (x - alpha * self.mean) * (alpha * self.deviation**2 / self.width(alpha, sigma) ** 2)

        return model

    def start(self, standard: Tensor, times: Times) -> Tensor:
        """x at the first point, from standard noise."""
        alpha, sigma = times.alphas[0], times.sigmas[0]
        return alpha * self.mean + self.width(alpha, sigma) * standard

    def end(self, standard: Tensor, times: Times) -> Tensor:
        """Where the probability flow leads that start at the last point."""
        alpha, sigma = times.alphas[-1], times.sigmas[-1]
        return alpha * self.mean + self.width(alpha, sigma) * standard
