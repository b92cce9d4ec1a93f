"""How long each stage of the embedded model is trained: one recipe for two CPU cores, one for a GPU."""

from dataclasses import dataclass
from typing import Literal

from training.config import TrainConfig

RecipeName = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Recipe:
    """Scenes, and the settings of every stage; `out` is filled in by the stage."""

    scenes: int
    autoencoder_half: dict[str, object]
    autoencoder: dict[str, object]
    base: dict[str, object]
    controlnet: dict[str, object]
    decoder: dict[str, object]

    def config(self, stage: str, out: object) -> TrainConfig:
        """The TrainConfig of a stage."""
        return TrainConfig.model_validate({"out": out, "device": "cpu", **getattr(self, stage)})


RECIPES: dict[RecipeName, Recipe] = {
    "cpu": Recipe(
        scenes=24_000,
        autoencoder_half={
            "steps": 2500,
            "batch_size": 32,
            "learning_rate": 2e-3,
            "warmup": 100,
            "schedule": "cosine",
            "betas": (0.9, 0.99),
            "ema_decay": 0.995,
            "precision": "bf16",
        },
        autoencoder={
            "steps": 1600,
            "batch_size": 16,
            "learning_rate": 1.5e-3,
            "warmup": 100,
            "schedule": "cosine",
            "betas": (0.9, 0.99),
            "ema_decay": 0.998,
            "precision": "bf16",
        },
        base={
            "steps": 6000,
            "batch_size": 16,
            "learning_rate": 8e-4,
            "warmup": 200,
            "schedule": "cosine",
            "betas": (0.9, 0.99),
            "ema_decay": 0.999,
            "precision": "fp32",
        },
        controlnet={
            "steps": 2400,
            "batch_size": 8,
            "learning_rate": 6e-4,
            "warmup": 100,
            "schedule": "cosine",
            "betas": (0.9, 0.99),
            "ema_decay": 0.998,
            "learning_rate_factors": {"controlnet.controlnet_cond_embedding": 2.0},
        },
        decoder={
            "steps": 1500,
            "batch_size": 16,
            "learning_rate": 1e-3,
            "warmup": 50,
            "schedule": "cosine",
            "betas": (0.9, 0.99),
            "ema_decay": 0.998,
            "precision": "bf16",
        },
    ),
}
