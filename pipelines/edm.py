"""Models of the EDM kind (Playground 2.5, CosXL): trained on a continuum of noise levels, told a quarter of the level's logarithm.

Their D(x; σ) = c_skip·x + c_out·F(c_in·x; ln σ / 4) is the v-parametrisation in other words. With y = x/σ_data and τ = σ/σ_data the
network is shown y/√(1 + τ²), the VP path at α = 1/√(1 + τ²), and F is v in those that are called v-prediction, −v in those called
epsilon. So samplers, schedules and guidance need not know: latents are divided by σ_data, the path is a table of levels even in their
logarithm, and only the number that the network is told, and its sign, are other.
Source: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022, table 1; diffusers, EDMEulerScheduler.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.errors import BadModel

LENGTH = 1000  # entries of the table


@dataclass(frozen=True)
class Edm:
    """lowest, highest: σ of the first and the last level; data: σ_data; sign: of v in the network's output."""

    lowest: float
    highest: float
    data: float
    sign: float

    @classmethod
    def of(cls, scheduler: Mapping[str, Any]) -> "Edm | None":
        """What a scheduler's configuration says of it; None where it is of another kind.

        Raises:
            BadModel: numbers that no noise level can have, or an unknown prediction type.
        """
        if not is_edm(scheduler):
            return None
        lowest, highest = float(scheduler.get("sigma_min", 0.002)), float(scheduler.get("sigma_max", 80.0))
        data, predicts = float(scheduler.get("sigma_data", 0.5)), str(scheduler.get("prediction_type", "epsilon"))
        if not 0.0 < lowest < highest < math.inf or not 0.0 < data < math.inf:
            raise BadModel(
                f"scheduler sigma_min {lowest:g}, sigma_max {highest:g}, sigma_data {data:g}: expected 0 < min < max and data > 0"
            )
        if predicts not in ("epsilon", "v_prediction"):
            raise BadModel(f"scheduler prediction_type {predicts!r} of an EDM model is unknown: known are epsilon, v_prediction")
        return cls(lowest, highest, data, 1.0 if predicts == "v_prediction" else -1.0)

    def alphas_cumprod(self) -> Tensor:
        """α² at every entry of the table (T,), float64, least noise first."""
        levels_T = torch.exp(torch.linspace(math.log(self.lowest), math.log(self.highest), LENGTH, dtype=torch.float64)) / self.data
        return 1.0 / (1.0 + levels_T**2)

    def told(self, t: Tensor) -> Tensor:
        """What the network is told at timestep t of the table: ln σ / 4."""
        step = (math.log(self.highest) - math.log(self.lowest)) / (LENGTH - 1)
        return 0.25 * (math.log(self.lowest) + step * t)


def is_edm(scheduler: Mapping[str, Any]) -> bool:
    """Whether a diffusers `scheduler_config.json` is of this kind."""
    return str(scheduler.get("_class_name", "")).startswith("EDM")
