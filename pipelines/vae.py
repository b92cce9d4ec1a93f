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
    shift, scale = shift_and_scale(vae, mean.device)
    return (mean.float() - shift) * scale


@torch.inference_mode()
def decode(vae: Any, latents_BCHW: Tensor, place: Place) -> Tensor:
    """Pictures (B, 3, H, W) in about [−1, 1], float32."""
    shift, scale = shift_and_scale(vae, latents_BCHW.device)
    scaled = (latents_BCHW / scale + shift).to(place.device, vae.dtype)
    pixels: Tensor = vae.decode(scaled, return_dict=False)[0]
    return pixels.float()


def shift_and_scale(vae: Any, device: torch.device) -> tuple[float | Tensor, float | Tensor]:
    """What a picture's moments are shifted and scaled by, numbers or (1, C, 1, 1): networks read (mean − shift) · scale."""
    means, deviations = vae.config.get("latents_mean"), vae.config.get("latents_std")
    shift = float(vae.config.get("shift_factor") or 0.0) if means is None else _channels(means, device)
    factor = float(vae.config.scaling_factor)
    return shift, factor if deviations is None else factor / _channels(deviations, device)


def _channels(values: Any, device: torch.device) -> Tensor:
    return torch.tensor(list(values), device=device).reshape(1, -1, 1, 1)
