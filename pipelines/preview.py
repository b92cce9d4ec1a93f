"""What a picture would look like now, fast: x̂_0 through a linear map or a tiny decoder instead of the autoencoder.

Axes: B pictures, C latent channels, H and W pixels, h and w latent cells.
"""

from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from core.control import Image
from core.errors import BadModel, Mismatch
from pipelines.checkpoint import open_checkpoint
from pipelines.family import Family
from pipelines.images import picture_to_tensor, tensor_to_pictures
from pipelines.memory import in_float32
from pipelines.place import Place

FITTED_ON = 6  # pictures of 16 × 16 cells each: 1,536 equations for the 5 to 33 numbers of a colour


SMALL_AUTOENCODER = 8_000_000  # weights; Stable Diffusion's has 84 million


class Preview(Protocol):
    """Latents (B, C, h, w) to small pictures in about [−1, 1], (B, 3, H, W) of any size."""

    def __call__(self, latents: Tensor, /) -> Tensor: ...


class LinearPreview:
    """Each cell's colour as a weighted sum of its latents. weights_C3, bias_3: on the latents' device."""

    def __init__(self, weights_C3: Tensor, bias_3: Tensor) -> None:
        self.weights_C3, self.bias_3 = weights_C3, bias_3

    def __call__(self, latents_BChw: Tensor) -> Tensor:
        """One pixel a cell."""
        return torch.einsum("bchw,cd->bdhw", latents_BChw.float(), self.weights_C3) + self.bias_3[:, None, None]


class TinyPreview:
    """A decoder of a few layers that was distilled for one family (TAESD). Source: Bohan, Tiny AutoEncoder for Stable Diffusion, 2023."""

    def __init__(self, network: Any, place: Place) -> None:
        self.network, self.place = network, place

    @classmethod
    def load(cls, folder: Path, place: Place) -> "TinyPreview":
        """From a diffusers folder of an AutoencoderTiny.

        Raises:
            BadModel: it is something else, or damaged.
        """
        from diffusers import AutoencoderTiny

        checkpoint = open_checkpoint(folder)
        kind = checkpoint.config("").get("_class_name")
        if kind != "AutoencoderTiny":
            raise BadModel(f"{str(folder)!r} is {kind or 'of an unknown class'}, not an AutoencoderTiny: previews need one, or none")
        return cls(checkpoint.network(AutoencoderTiny, "", place), place)

    @torch.inference_mode()
    def __call__(self, latents_BChw: Tensor) -> Tensor:
        """Eight pixels to a side of a cell, as a rule."""
        wanted = int(self.network.config.latent_channels)
        if latents_BChw.shape[1] != wanted:
            raise Mismatch(
                f"the preview decoder takes {wanted} latent channels, this model has {latents_BChw.shape[1]}: give its own, or none"
            )
        pixels: Tensor = self.network.decode(latents_BChw.to(self.place.dtype), return_dict=False)[0]
        return pixels.float()


def default_preview(family: Family) -> Preview:
    """The autoencoder itself where it is small, as the embedded model's is; otherwise a linear map."""
    weights = sum(weight.numel() for weight in family.vae.parameters())
    return family.decode if weights <= SMALL_AUTOENCODER else linear_preview(family)


_FITTED: "WeakKeyDictionary[Family, LinearPreview]" = WeakKeyDictionary()


def linear_preview(family: Family) -> LinearPreview:
    """The linear map of a family's autoencoder, fitted when it is first asked for and kept as long as the model."""
    if family not in _FITTED:
        _FITTED[family] = fit(family)
    return _FITTED[family]


@torch.inference_mode()
def fit(family: Family) -> LinearPreview:
    """Least squares between what the autoencoder makes of synthetic pictures and their mean colour cell by cell."""
    pictures = synthetic_pictures(FITTED_ON, 16 * family.cell_px)
    with in_float32(family):
        latents_BChw = torch.cat([family.encode_image(picture) for picture in pictures]).float().cpu()
    pixels_B3HW = torch.stack([picture_to_tensor(picture) for picture in pictures])
    colours_M3 = F.interpolate(pixels_B3HW, latents_BChw.shape[-2:], mode="area").permute(0, 2, 3, 1).reshape(-1, 3)
    cells_MC = latents_BChw.permute(0, 2, 3, 1).reshape(len(colours_M3), -1)
    ones_M1 = torch.ones(len(cells_MC), 1)
    solution = torch.linalg.lstsq(torch.cat([cells_MC, ones_M1], dim=1).double(), colours_M3.double(), driver="gelsd").solution.float()
    return LinearPreview(solution[:-1].to(family.place.device), solution[-1].to(family.place.device))


def synthetic_pictures(count: int, side: int) -> list[Image]:
    """Soft fields of colour with hard-edged boxes on them, RGB uint8 (side, side, 3); always the same."""
    random = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        coarse = torch.from_numpy(random.uniform(0, 255, (1, 3, 4, 4)))
        picture = F.interpolate(coarse, (side, side), mode="bilinear", align_corners=True)[0].permute(1, 2, 0).numpy().astype(np.uint8)
        for _ in range(6):
            top, left = random.integers(0, 3 * side // 4, 2)
            height, width = random.integers(side // 8, side // 2, 2)
            picture[top : top + height, left : left + width] = random.integers(0, 256, 3)
        pictures.append(np.ascontiguousarray(picture))
    return pictures


@torch.inference_mode()
def previews(preview: Preview, latents_BChw: Tensor, width: int, height: int) -> list[Image]:
    """The latents' pictures at the size they will have, RGB uint8 HWC."""
    return tensor_to_pictures(F.interpolate(preview(latents_BChw), (height, width), mode="bilinear", antialias=True))
