"""A picture to begin from, and the part of it that stays: img2img and inpainting, for every family and sampler.

Axes: B pictures, C channels, H and W pixels, h and w latent cells.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from core.control import Image
from pipelines.family import Family, Residuals
from pipelines.schedules import Times


@dataclass(frozen=True, eq=False)
class Canvas:
    """Latents to begin from (1, C, h, w).

    mask_11hw: 1 where to paint, 0 where the latents stay, for models that know nothing of inpainting; None to paint everywhere.
    told: what a model made for inpainting is told at every step. from_noise: begin from pure noise instead of the noised latents.
    inverted_1Chw: where to begin instead, found by inversion.
    """

    latents_1Chw: Tensor
    mask_11hw: Tensor | None = None
    told: Residuals | None = None
    from_noise: bool = False
    inverted_1Chw: Tensor | None = None

    def first(self, noise: Tensor, times: Times) -> Tensor:
        """Where the first step starts."""
        if self.inverted_1Chw is not None:
            return self.inverted_1Chw.expand_as(noise).clone()
        if self.from_noise:
            return noise * times.initial
        return times.alphas[0] * self.latents_1Chw + times.sigmas[0] * noise

    def noised(self, x: Tensor, noise: Tensor, times: Times, i: int) -> Tensor:
        """x with its fixed part as it is at point i of the path."""
        return self._kept(x, times.alphas[i] * self.latents_1Chw + times.sigmas[i] * noise)

    def fixed(self, denoised: Tensor) -> Tensor:
        """x̂_0 with its fixed part."""
        return self._kept(denoised, self.latents_1Chw)

    def _kept(self, x: Tensor, fixed: Tensor) -> Tensor:
        return x if self.mask_11hw is None else self.mask_11hw * x + (1.0 - self.mask_11hw) * fixed


def begin(family: Family, image_HWC: Image, mask_HW: NDArray[np.uint8] | None = None, *, strength: float = 1.0) -> Canvas:
    """The canvas of a picture and, for inpainting, a mask (255: paint here; grey is rounded), both at the size to draw.

    As in diffusers, inpainting at strength 1 begins from pure noise, img2img from the picture noised as far as the schedule goes.
    """
    device = family.place.device
    latents = family.encode_image(image_HWC).to(device)
    if mask_HW is None:
        return Canvas(latents)
    told = family.inpaint(image_HWC, mask_HW)
    if told is not None:
        return Canvas(latents, told=told, from_noise=strength >= 1.0)
    mask = torch.from_numpy((mask_HW >= 128).astype(np.float32))[None, None]
    return Canvas(latents, F.interpolate(mask, latents.shape[-2:], mode="nearest").to(device), from_noise=strength >= 1.0)


def pasted(image_HWC: Image, drawn_HWC: Image, mask_HW: NDArray[np.uint8]) -> Image:
    """The drawn picture with every pixel that was not to be painted as it was; grey mixes."""
    share_HW1 = mask_HW[..., None].astype(np.float32) / 255.0
    mixed: Image = np.rint(drawn_HWC * share_HW1 + image_HWC * (1.0 - share_HW1)).astype(np.uint8)
    return mixed
