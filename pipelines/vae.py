"""Pictures to latents and back, for every autoencoder that works picture by picture."""

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
    return (mean.float() - _shift(vae)) * float(vae.config.scaling_factor)


@torch.inference_mode()
def decode(vae: Any, latents_BCHW: Tensor, place: Place) -> Tensor:
    """Pictures (B, 3, H, W) in about [−1, 1], float32."""
    scaled = (latents_BCHW / float(vae.config.scaling_factor) + _shift(vae)).to(place.device, vae.dtype)
    pixels: Tensor = vae.decode(scaled, return_dict=False)[0]
    return pixels.float()


def _shift(vae: Any) -> float:
    return float(vae.config.get("shift_factor") or 0.0)
