"""How long each stage of the embedded model is trained: one recipe for two CPU cores, one for a GPU."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from training.config import TrainConfig

RecipeName = Literal["cpu", "gpu"]

# What every stage shares: short runs from scratch want a quick second moment, a rate that falls to nothing, and averaged weights.
_COMMON: dict[str, Any] = {"schedule": "cosine", "betas": (0.9, 0.99), "precision": "bf16"}
_HINT = {"controlnet.controlnet_cond_embedding": 2.0}  # the part of a ControlNet that starts from nothing, or from another kind of map
_ESTIMATOR: dict[str, Any] = {"betas": (0.9, 0.98), "weight_decay": 0.03, "ema_decay": 0.998}


@dataclass(frozen=True)
class Recipe:
    """Training scenes, and the settings of every stage."""

    scenes: int
    stages: dict[str, dict[str, Any]]
    device: Literal["auto", "cpu"]

    def config(self, stage: str, out: Path) -> TrainConfig:
        """The TrainConfig of a stage whose results go to `out`."""
        return TrainConfig.model_validate({**_COMMON, **self.stages[stage], "out": out, "device": self.device})


def _stage(steps: int, batch_size: int, learning_rate: float, warmup: int, **others: Any) -> dict[str, Any]:
    return {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "warmup": warmup, **others}


RECIPES: dict[RecipeName, Recipe] = {
    "cpu": Recipe(
        scenes=24_000,
        stages={
            "autoencoder_half": _stage(2500, 32, 2e-3, 100, ema_decay=0.995),
            "autoencoder": _stage(1600, 16, 1.5e-3, 100, ema_decay=0.998),
            "base": _stage(6500, 32, 8e-4, 200, ema_decay=0.999),
            "binding": _stage(2400, 32, 6e-4, 100, ema_decay=0.998, learning_rate_factors=_HINT),
            "controlnet-canny": _stage(1800, 16, 6e-4, 100, ema_decay=0.998, learning_rate_factors=_HINT),
            "controlnet-depth": _stage(1000, 16, 4e-4, 100, ema_decay=0.998),
            "controlnet-pose": _stage(900, 16, 6e-4, 100, ema_decay=0.998, learning_rate_factors=_HINT),
            "estimator-depth": _stage(2400, 32, 1.5e-3, 200, **_ESTIMATOR),
            "estimator-pose": _stage(3000, 32, 1.5e-3, 200, **_ESTIMATOR),
        },
        device="cpu",
    ),
    "gpu": Recipe(
        scenes=120_000,
        stages={
            "autoencoder_half": _stage(5000, 64, 2e-3, 200, ema_decay=0.998, workers=8),
            "autoencoder": _stage(20_000, 64, 1e-3, 500, ema_decay=0.999, workers=8),
            "base": _stage(60_000, 128, 6e-4, 1000, ema_decay=0.9995, workers=8),
            "binding": _stage(20_000, 128, 4e-4, 500, ema_decay=0.9995, workers=8, learning_rate_factors=_HINT),
            "controlnet-canny": _stage(15_000, 64, 4e-4, 500, ema_decay=0.999, workers=8, learning_rate_factors=_HINT),
            "controlnet-depth": _stage(10_000, 64, 3e-4, 500, ema_decay=0.999, workers=8),
            "controlnet-pose": _stage(10_000, 64, 4e-4, 500, ema_decay=0.999, workers=8, learning_rate_factors=_HINT),
            "estimator-depth": _stage(20_000, 64, 1.5e-3, 500, workers=8, **_ESTIMATOR),
            "estimator-pose": _stage(20_000, 64, 1.5e-3, 500, workers=8, **_ESTIMATOR),
        },
        device="auto",
    ),
}
