"""Pictures to latents and back, for every autoencoder that works picture by picture.

The network reads latents (mean − shift) · scale; some models give shift and spread for each channel (`latents_mean`, `latents_std`).
"""

from typing import Any

import torch
from torch import Tensor

from core.control import Image
from pipelines.images import picture_to_tensor
from pipelines.place import Place


def encode(vae: Any, image_HWC: Image, place: Place) -> Tensor:
    """The mean latents (1, C, H, W) of a picture, float32, shifted and scaled as the denoising network expects them."""
    return encode_pixels(vae, picture_to_tensor(image_HWC)[None], place)


@torch.inference_mode()
def encode_pixels(vae: Any, pixels_BCHW: Tensor, place: Place) -> Tensor:
    """The same for pictures (B, 3, H, W) in [−1, 1]."""
    mean: Tensor = vae.encode(pixels_BCHW.to(place.device, vae.dtype)).latent_dist.mean
    return (mean.float() - _shift(vae, mean.device)) * _scale(vae, mean.device)


@torch.inference_mode()
def decode(vae: Any, latents_BCHW: Tensor, place: Place) -> Tensor:
    """Pictures (B, 3, H, W) in about [−1, 1], float32."""
    there = latents_BCHW.device
    scaled = (latents_BCHW / _scale(vae, there) + _shift(vae, there)).to(place.device, vae.dtype)
    pixels: Tensor = vae.decode(scaled, return_dict=False)[0]
    return pixels.float()


def _shift(vae: Any, device: torch.device) -> float | Tensor:
    means = vae.config.get("latents_mean")
    return float(vae.config.get("shift_factor") or 0.0) if means is None else _channels(means, device)


def _scale(vae: Any, device: torch.device) -> float | Tensor:
    deviations, factor = vae.config.get("latents_std"), float(vae.config.scaling_factor)
    return factor if deviations is None else factor / _channels(deviations, device)


def _channels(values: Any, device: torch.device) -> Tensor:
    return torch.tensor(list(values), device=device).reshape(1, -1, 1, 1)
