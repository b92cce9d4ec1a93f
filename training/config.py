"""The settings of a training run that every task shares."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from core.request import Frozen

# settings that a resumed run may change and still equal an uninterrupted one
HARMLESS = {"out", "workers", "device", "checkpoint_every", "checkpoint_minutes", "keep", "resume", "log_every"}

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class TrainConfig(Frozen):
    """How to train: sizes, rates, and where the results go. One step is one optimiser step."""

    out: Path = Field(description="folder of the run: checkpoints/, weights/, log.jsonl")
    steps: int = Field(ge=1, description="optimiser steps")
    batch_size: int = Field(16, ge=1, description="samples per optimiser step, over all processes and micro-batches")
    accumulation: int = Field(1, ge=1, description="micro-batches that a process makes of its share of the batch")
    optimiser: Literal["adamw", "adamw8bit", "adafactor", "lion", "prodigy"] = Field(
        "adamw", description="adamw8bit needs bitsandbytes, prodigy prodigyopt; lion wants a rate 3 to 10 times lower, prodigy 1"
    )
    learning_rate: float = Field(1e-4, gt=0.0, description="peak rate of the optimiser")
    learning_rate_factors: dict[str, Annotated[float, Field(ge=0.0)]] = Field(
        default_factory=dict, description="factor on the rate for parameters whose name starts with the key; the longest key wins"
    )
    warmup: int = Field(0, ge=0, description="steps over which the rate rises linearly from 0")
    schedule: Literal["constant", "cosine", "linear"] = Field("constant", description="the rate after warm-up; cosine and linear fall to 0")
    weight_decay: float = Field(0.01, ge=0.0, description="decoupled; not on biases and norms (tensors of one dimension)")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="of AdamW, Lion and Prodigy")
    clip: float = Field(1.0, gt=0.0, description="limit of the gradient's global norm")
    ema_decay: Fraction = Field(0.9999, description="of the averaged weights; 0 turns averaging off")
    seed: int = Field(0, ge=0, lt=2**63, description="of order, noise, times and dropout")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the forward pass; weights and optimiser stay fp32")
    device: Literal["auto", "cpu"] = Field("auto", description="auto takes the accelerator where there is one")
    workers: int = Field(0, ge=0, le=256, description="processes that load samples; 0 loads in the training process")
    checkpoint_every: int = Field(1000, ge=1, description="steps between checkpoints")
    checkpoint_minutes: float = Field(10.0, gt=0.0, description="a checkpoint is also made when this much time has passed")
    keep: int = Field(2, ge=2, description="checkpoints kept")
    resume: Literal["auto", "must", "never"] = Field(
        "auto", description="auto goes on from the newest whole checkpoint, must fails without one, never refuses a folder that has one"
    )
    log_every: int = Field(100, ge=1, description="steps between log lines")

    @model_validator(mode="after")
    def _splits_evenly(self) -> "TrainConfig":
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulation {self.accumulation}")
        if self.warmup >= self.steps and self.schedule != "constant":
            raise ValueError(f"warmup {self.warmup} leaves nothing of {self.steps} steps for the {self.schedule} schedule")
        return self
