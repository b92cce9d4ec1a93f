"""The settings of a training run: those every task shares, and those of a ControlNet. Torch is not imported: forms are made from them."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from core.request import Frozen
from training.pairs import DataConfig

# settings that a resumed run may change and still equal an uninterrupted one
HARMLESS = {"out", "workers", "device", "checkpoint_every", "checkpoint_minutes", "keep", "resume", "log_every", "ema_on_cpu"}

HINT_CHANNELS = (16, 32, 96, 256)  # of published SD ControlNets

Precision = Literal["fp32", "fp16", "bf16"]
Variant = Literal["full", "lite", "lora"]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class TrainConfig(Frozen):
    """How to train: sizes, rates, and where the results go. One step is one optimiser step."""

    out: Path = Field(description="folder of the run: checkpoints/, weights/, log.jsonl")
    steps: int = Field(ge=1, description="optimiser steps")
    batch_size: int = Field(16, ge=1, description="samples per optimiser step, over all processes and micro-batches")
    accumulation: int = Field(1, ge=1, description="micro-batches that a process makes of its share of the batch")
    optimiser: Literal["adamw", "adamw8bit", "adafactor", "lion", "prodigy"] = Field(
        "adamw",
        description="adamw8bit needs bitsandbytes, prodigy prodigyopt; lion wants 3 to 10 times lower rates than adamw, prodigy 1",
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
    ema_on_cpu: bool = Field(False, description="keep the averaged weights in the host's memory")
    seed: int = Field(0, ge=0, lt=2**63, description="of order, noise, times and dropout")
    precision: Precision = Field("fp32", description="of the forward pass; weights and optimiser stay fp32, fp16 scales the loss")
    sharding: Literal["none", "fsdp", "zero"] = Field(
        "none",
        description="none: every process has all that is trained; fsdp: weights, gradients and optimiser state are split over them; "
        "zero: gradients and optimiser state are, by DeepSpeed",
    )
    compile: bool = Field(
        False, description="compile the repeated blocks, if at the beginning every gradient is proven the same; else go on without"
    )
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
        if self.optimiser == "prodigy" and (other := set(self.learning_rate_factors.values()) - {0.0, 1.0}):
            raise ValueError(
                f"learning_rate_factors {min(other):g}: prodigy finds one rate for all; give 0, which holds a part, or leave it out"
            )
        return self

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU computes, asked for or for want of anything else. Untold, accelerate takes processes on a CPU for strangers."""
        import torch

        return self.device == "cpu" or not torch.accelerator.is_available()


class ObjectiveConfig(Frozen):
    """Settings of the denoising loss."""

    min_snr_gamma: float | None = Field(None, gt=0.0, description="cap on the signal-to-noise ratio as a weight; 5 is usual")
    noise_offset: float = Field(0.0, ge=0.0, le=1.0, description="deviation of a constant added to each channel's noise; 0.05 is usual")
    noisy_times: float = Field(0.0, ge=0.0, le=4.0, description="density of the drawn timesteps grows as this power of t; 0 is uniform")
    density: Literal["uniform", "logit_normal", "mode", "cosmap"] = Field("uniform", description="of the drawn times, as in SD3's paper")
    logit_mean: float = Field(0.0, ge=-5.0, le=5.0, description="of the logit-normal density; above 0 towards noise")
    logit_deviation: float = Field(1.0, gt=0.0, le=5.0, description="of the logit-normal density")
    mode_scale: float = Field(1.29, ge=-1.0, le=1.75, description="of the mode density")
    shift: float | None = Field(
        None, gt=0.0, le=20.0, description="of flow times towards noise; by default the checkpoint's own at this size"
    )
    huber: float = Field(0.0, ge=0.0, le=10.0, description="errors beyond this count linearly (pseudo-Huber); 0: all squared")
    zero_terminal_snr: bool = Field(False, description="the last time is pure noise; for v-prediction")
    multi_scale: int = Field(
        0,
        ge=0,
        le=512,
        description="errors count at every halving of the latents down to this side, in cells, as in Simple diffusion; 0: not",
    )
    unmasked: float = Field(0.0, ge=0.0, le=1.0, description="what counts outside the masks of data.mask, where 1 counts inside")


class RewardConfig(Frozen):
    """The cycle-consistency reward of ControlNet++, for canny, depth and pose."""

    weight: float = Field(0.0, ge=0.0, le=100.0, description="factor on how little x̂_0 agrees with its condition; 0: no reward")
    until: float = Field(0.2, gt=0.0, le=1.0, description="share of the times, from the picture on, at which x̂_0 is looked at")
    estimator: str = Field(
        "",
        max_length=300,
        description="hub id or folder of the depth or pose network that looks; empty: the embedded one, made for toyland",
    )


class MonitorConfig(Frozen):
    """What is measured while a ControlNet is trained, and how often."""

    every: int = Field(500, ge=0, description="steps between two measurements of the paired gap; 0: only where the samples are drawn")
    samples: int = Field(16, ge=0, le=64, description="pairs that are measured, and held out where that is under a tenth of all; 0: none")
    fidelity_every: int = Field(0, ge=0, description="steps between drawing the samples and scoring how well they obey; 0 draws nothing")
    steps: int = Field(20, ge=1, le=200, description="sampling steps of the drawn pictures")
    guidance_scale: float | None = Field(None, ge=0.0, le=30.0, description="of the drawn pictures; by default the model's own")
    tensorboard: bool = Field(True, description="also write what is logged for TensorBoard, where it is installed")
    wandb: str = Field("", description="project on Weights & Biases that gets it too (needs pip install wandb); empty: none")

    @model_validator(mode="after")
    def _others_to_shuffle(self) -> "MonitorConfig":
        if self.samples == 1:
            raise ValueError("samples 1: a sample is also measured against another's condition; give 2 or more, or 0 to measure none")
        if self.fidelity_every and not self.samples:
            raise ValueError(f"fidelity_every {self.fidelity_every} draws samples, and samples is 0: give 2 or more")
        return self


class ControlNetConfig(Frozen):
    """Everything that determines a ControlNet's training."""

    base: str = Field("toyland", description="'toyland', a diffusers folder or a hub id; stays as it is")
    init: Path | None = Field(
        None, description="ControlNet to start from, a folder, .safetensors file or hub id; default: a silent copy of the base's encoder"
    )
    hint_channels: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = Field(
        HINT_CHANNELS, min_length=2, max_length=6, description="widths of the hint encoder (SD, SDXL)"
    )
    blocks: tuple[int, ...] = Field(
        (), max_length=2, description="blocks that are copied: of the encoder (SD, SDXL), joint ones (SD3), double and single ones (FLUX)"
    )
    variant: Variant = Field("full", description="full copy; lite: half as wide, nothing copied; lora: low-rank differences to the base")
    rank: int = Field(64, ge=1, le=1024, description="of the differences of variant lora")
    data: DataConfig
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    reward: RewardConfig = Field(default_factory=RewardConfig)
    caption_dropout: float = Field(0.5, ge=0.0, le=1.0, description="share of captions replaced by the empty one, drawn at each step")
    condition_dropout: float = Field(0.0, ge=0.0, le=1.0, description="share of conditions replaced by black ones, drawn at each step")
    prior_share: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="share of samples with a black condition whose target is what the base says alone, drawn at each step",
    )
    guidance_scale: float = Field(3.5, ge=0.0, le=100.0, description="what guidance-distilled bases (FLUX dev) are told")
    base_weights: Literal["fp32", "bf16"] = Field("fp32", description="precision that the base is kept in; its autoencoder stays fp32")
    gradient_checkpointing: bool = Field(False, description="compute the ControlNet twice instead of keeping what is in between")
    cache: Path | None = Field(
        None,
        description="folder for moments and text embeddings; default: `cache` in the dataset's folder, or in the run's for one of the hub",
    )
    cache_batch: int = Field(16, ge=1, le=1024, description="pictures encoded at once while the cache is built")
    weights: Precision = Field("fp32", description="precision of what is written in the end")
    single_file: bool = Field(True, description="also write one .safetensors file for A1111 and ComfyUI into the finished folder")
    push: str = Field("", description="owner/name on the Hugging Face hub that the finished folder goes to; empty: nowhere")
    monitor: MonitorConfig = Field(default_factory=MonitorConfig)
    train: TrainConfig
