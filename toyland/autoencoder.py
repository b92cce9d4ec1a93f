"""Trains the embedded model's AutoencoderKL.

The loss is an absolute error with a squared part and an error of gradients, each weighted up inside objects (their mask is known) and along
their outlines, because a limb is a few pixels wide and a plain mean would let it blur.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from toyland.arrays import packed
from training.randomness import Draws

LATENT_CHANNELS = 8
WIDTHS = (16, 32, 64, 128)
FIRST_LOG_VARIANCE = -5.0
OBJECT_WEIGHT, EDGE_WEIGHT, SQUARE_WEIGHT, GRADIENT_WEIGHT = 1.5, 1.0, 4.0, 0.5


def new_autoencoder() -> AutoencoderKL:
    """Stable Diffusion's autoencoder at a small size: f = 8, GroupNorm, no attention in the middle block.

    The log-variance starts near -5: from 0 the noise drowns the picture and nothing is learnt for long.
    """
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=128,
        scaling_factor=1.0,
    )
    with torch.no_grad():
        vae.quant_conv.weight[LATENT_CHANNELS:] *= 0.05
        vae.quant_conv.bias[LATENT_CHANNELS:] = FIRST_LOG_VARIANCE
    return vae


@dataclass
class AutoencoderTask:
    """Reconstruction of whole pictures. `shrink` 2 trains on pictures of half the size, four times as fast, to begin with."""

    vae: AutoencoderKL
    dataset: Path
    shrink: int = 1
    kl_weight: float = 5e-4
    name: str = "autoencoder"

    def __post_init__(self) -> None:
        self.images, self.masks = packed(self.dataset, "images"), packed(self.dataset, "masks")

    def modules(self) -> dict[str, nn.Module]:
        return {"vae": self.vae}

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        return {"images": torch.from_numpy(self.images[indices]), "masks": torch.from_numpy(self.masks[indices])}

    def loss(self, batch: Any, draws: Draws) -> tuple[Tensor, dict[str, float | Tensor]]:
        x_BCHW = batch["images"].permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()
        inside_B1HW = ((batch["masks"] > 0) & (batch["masks"] < 255)).float()[:, None]
        flip = draws.uniform(name="flip") < 0.5
        x_BCHW = torch.where(flip[:, None, None, None], x_BCHW.flip(-1), x_BCHW)
        inside_B1HW = torch.where(flip[:, None, None, None], inside_B1HW.flip(-1), inside_B1HW)
        if self.shrink > 1:
            x_BCHW, inside_B1HW = functional.avg_pool2d(x_BCHW, self.shrink), functional.avg_pool2d(inside_B1HW, self.shrink)
        near_B1HW = functional.max_pool2d(inside_B1HW, 5, 1, 2) + functional.max_pool2d(-inside_B1HW, 5, 1, 2)
        weight = 1 + OBJECT_WEIGHT * inside_B1HW + EDGE_WEIGHT * near_B1HW
        weight = weight / weight.mean()
        posterior = self.vae.encode(x_BCHW).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        noise = draws.normal(tuple(mean.shape[1:]))
        y_BCHW = self.vae.decode(mean + torch.exp(0.5 * logvar) * noise).sample.float()
        error = y_BCHW - x_BCHW
        square = (weight * error**2).mean()
        absolute = (weight * error.abs()).mean()
        gradient = (weight[..., 1:] * error.diff(dim=-1).abs()).mean() + (weight[..., 1:, :] * error.diff(dim=-2).abs()).mean()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        loss = absolute + SQUARE_WEIGHT * square + GRADIENT_WEIGHT * gradient + self.kl_weight * kl
        psnr = -10 * torch.log10((error.detach() ** 2).mean() / 4)
        inside_error = (error.detach() ** 2 * inside_B1HW).sum() / (3 * inside_B1HW.sum()).clamp(min=1)
        return loss, {"psnr": psnr, "psnr_inside": -10 * torch.log10(inside_error / 4), "kl": kl.detach()}

    def export(self, folder: Path, ema: dict[str, dict[str, Tensor]]) -> None:
        vae = AutoencoderKL.from_config(self.vae.config)
        vae.load_state_dict(ema["vae"])
        vae.save_pretrained(folder / "vae")


@torch.no_grad()
def standardise(vae: AutoencoderKL, images: np.ndarray) -> None:
    """Gives every latent channel mean 0 and deviation 1 over `images` (N, H, W, 3), folded into the 1×1 convolutions around the latents.

    The pictures stay the same and scaling_factor stays 1: a plain Stable Diffusion pipeline sees latents of unit size.
    """
    means = []
    for first in range(0, len(images), 32):
        x_BCHW = torch.from_numpy(images[first : first + 32].copy()).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()
        means.append(vae.encode(x_BCHW).latent_dist.mean)
    latents = torch.cat(means)
    shift, scale = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(shift)
    quant, post = vae.quant_conv, vae.post_quant_conv
    post.bias += (post.weight[:, :, 0, 0] * shift).sum(1)
    post.weight *= scale[None, :, None, None]
    quant.weight[:channels] /= scale[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - shift) / scale
    quant.bias[channels:] -= 2 * torch.log(scale)


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: np.ndarray, masks: np.ndarray) -> tuple[float, float]:
    """Mean PSNR in dB over whole pictures and inside objects, of the decoded mean; images (N, H, W, 3) uint8, masks (N, H, W)."""
    whole, inside = [], []
    for first in range(0, len(images), 16):
        x = torch.from_numpy(images[first : first + 16].copy()).permute(0, 3, 1, 2).float().contiguous()
        mask = torch.from_numpy(masks[first : first + 16].copy())
        y = vae.decode(vae.encode(x / 127.5 - 1).latent_dist.mean).sample
        error = (((y.clamp(-1, 1) + 1) * 127.5).round() - x) ** 2
        whole += (-10 * torch.log10(error.mean((1, 2, 3)) / 255**2)).tolist()
        objects = ((mask > 0) & (mask < 255)).float()
        inner = (error.mean(1) * objects).sum((1, 2)) / objects.sum((1, 2)).clamp(min=1)
        inside += (-10 * torch.log10(inner.clamp(min=1e-3) / 255**2))[objects.sum((1, 2)) > 0].tolist()
    return float(np.mean(whole)), float(np.mean(inside))
