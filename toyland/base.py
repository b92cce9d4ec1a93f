"""Trains the embedded model's text encoder and UNet together, from scratch, on cached latents.

v-prediction on Stable Diffusion's schedule, stretched to zero terminal SNR (Lin et al., 2023), so that a night scene can be as dark as it
should: with SD's own last timestep the mean brightness of the picture leaks into the noise.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from toyland.autoencoder import LATENT_CHANNELS
from training.objectives import Objective, sample_moments
from training.randomness import Draws

TEXT_WIDTH, TEXT_LAYERS, TEXT_LENGTH, VOCABULARY = 128, 3, 32, 800
UNET_WIDTHS = (96, 128, 128)
HINT_CHANNELS = (8, 16, 32, 64)  # of the ControlNets' hint encoder
CAPTION_DROPOUT = 0.1
VARIANTS = 4  # wordings of every caption

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
}


def new_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """A byte-level BPE tokenizer learnt from captions; every other word still tokenises, into smaller pieces."""
    tokenizer = CLIPTokenizer().train_new_from_iterator(captions, vocab_size=VOCABULARY)
    tokenizer.model_max_length = TEXT_LENGTH
    return tokenizer


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """CLIP's text transformer at a small size."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=TEXT_LAYERS,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_unet() -> UNet2DConditionModel:
    """Stable Diffusion's UNet at a small size: 16×16 latents, one layer a block."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=UNET_WIDTHS,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=tuple(width // 32 for width in UNET_WIDTHS),
        norm_num_groups=16,
        use_linear_projection=True,
    )


@dataclass
class BaseTask:
    """Denoising of latents under a caption.

    moments: (N, 2·C, h, w) mean and log-variance of every picture's latents. tokens: (N, VARIANTS, TEXT_LENGTH).
    """

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    moments: np.ndarray
    tokens: np.ndarray
    name: str = "base"
    objective: Objective = field(default_factory=lambda: Objective.from_scheduler_config(SCHEDULER))

    def __post_init__(self) -> None:
        self.empty = torch.tensor(tokenise(self.tokenizer, [""])[0])

    def modules(self) -> dict[str, nn.Module]:
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    def __len__(self) -> int:
        return len(self.moments)

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        return {"moments": torch.from_numpy(self.moments[indices].astype(np.float32)), "tokens": torch.from_numpy(self.tokens[indices])}

    def loss(self, batch: Any, draws: Draws) -> tuple[Tensor, dict[str, float | Tensor]]:
        x0_BCHW = sample_moments(batch["moments"], draws, 1.0)
        variant = (draws.uniform(name="variant") * VARIANTS).long()
        tokens = batch["tokens"][torch.arange(len(variant), device=variant.device), variant].long()
        dropped = draws.uniform(name="caption dropout") < CAPTION_DROPOUT
        tokens = torch.where(dropped[:, None], self.empty.to(tokens.device), tokens)
        noised = self.objective.noised(x0_BCHW, draws)
        text_BLD = self.text_encoder(tokens).last_hidden_state
        out_BCHW = self.unet(noised.x_BCHW, noised.t_B, text_BLD, return_dict=False)[0]
        return self.objective.loss(noised, out_BCHW), {}

    def export(self, folder: Path, ema: dict[str, dict[str, Tensor]]) -> None:
        unet = UNet2DConditionModel.from_config(self.unet.config)
        unet.load_state_dict(ema["unet"])
        unet.save_pretrained(folder / "unet")
        text_encoder = CLIPTextModel(self.text_encoder.config)
        text_encoder.load_state_dict(ema["text_encoder"])
        text_encoder.save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")
        DDIMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")


def tokenise(tokenizer: CLIPTokenizer, captions: list[str]) -> list[list[int]]:
    """Token ids, padded and cut to TEXT_LENGTH, as Stable Diffusion's pipeline makes them."""
    ids: list[list[int]] = tokenizer(captions, padding="max_length", max_length=TEXT_LENGTH, truncation=True).input_ids
    return ids
