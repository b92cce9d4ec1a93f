"""ControlNets of Stable Diffusion 3: transformers that read the latents of a map and add to the tokens after each of the base's blocks.

Axes: B rows, C channels, H and W pixels or latent cells, L tokens, D width. Source: Zhang et al., Adding Conditional Control to
Text-to-Image Diffusion Models, 2023; the nets of InstantX, alimama and Stability AI for SD3 and 3.5.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import BadRequest
from core.stack import unstacked
from pipelines import vae
from pipelines.family import Hint, Place, Residuals, Text
from pipelines.flow_family import SteeredTokens
from pipelines.images import picture_to_tensor
from pipelines.stacks import Stack
from pipelines.tokens import place_of

_MASKED = 128  # a mask of 0 … 255 paints from here on


class LoadedControlNet:
    """A ControlNet whose hint embedding has been taken out, so that it runs once a picture instead of at every step."""

    def __init__(self, net: Any, transformer: Any, autoencoder: Any, place: Place) -> None:
        self.net, self.vae, self.place = net, autoencoder, place
        self.hint_embedding: nn.Module = net.pos_embed_input
        net.pos_embed_input = nn.Identity()
        if not net.config.use_pos_embed:  # 3.5 large's ControlNets read the picture as their base does
            net.pos_embed = transformer.pos_embed.to(place.device)

    @property
    def inpaints(self) -> bool:
        """Whether it is told a mask besides the picture."""
        return bool(self.net.config.extra_conditioning_channels) and Stack.of(self.net.config) is None

    def embed(self, hint: Hint) -> Tensor:
        """The tokens (1, L, D) of a map's latents; an inpainting ControlNet's picture is black where it is painted."""
        pixels = picture_to_tensor(hint.map_HWC)
        if hint.map_HWC.shape[2] > 3:
            latents = torch.cat([vae.encode(self.vae, map_HWC, self.place) for map_HWC in unstacked(hint.map_HWC)], dim=1)
        elif not self.inpaints:
            # InstantX's nets, which read no pooled text either, were trained without the autoencoder's shift.
            latents = vae.encode_pixels(self.vae, self._in_its_range(pixels, hint.kind)[None], self.place)
            if self.net.config.force_zeros_for_pooled_projection:
                latents = latents + float(self.vae.config.shift_factor or 0.0) * float(self.vae.config.scaling_factor)
        elif hint.mask_HW is None:
            raise BadRequest("this ControlNet inpaints: give the request a mask, white where to paint")
        else:
            pixels[:, painted(hint.mask_HW)] = -1.0
            latents = vae.encode_pixels(self.vae, pixels[None], self.place)
            latents = torch.cat([latents, 1.0 - cells(hint.mask_HW, latents)], dim=1)
        embedded: Tensor = self.hint_embedding(latents.to(self.place.dtype))
        return embedded

    def _in_its_range(self, pixels: Tensor, kind: str) -> Tensor:
        """Pixels in [−1, 1] as the net was trained to see them: 3.5 large's see edges of 128, and depth with what is near dark.

        Source: Stability-AI/sd3.5, sd3_infer.py; ComfyUI, comfy/controlnet.py, for depth.
        """
        if self.net.config.use_pos_embed or kind not in ("canny", "depth"):
            return pixels
        return (pixels + 1.0) * 63.75 + 0.5 if kind == "canny" else -pixels


class SteeredControlNet(SteeredTokens):
    """A ControlNet with one map."""

    def residuals(self, x_BCHW: Tensor, t: Tensor, text: Text) -> Residuals:
        """What to add after the transformer's blocks, first to last; unscaled."""
        assert text.pooled_BD is not None
        net = self.loaded.net
        silent = self.loaded.inpaints or net.config.force_zeros_for_pooled_projection
        found = net(
            x_BCHW.to(self.loaded.place.dtype),
            controlnet_cond=self.hint_1LD,
            encoder_hidden_states=text.tokens_BLD if net.context_embedder is not None else None,
            pooled_projections=torch.zeros_like(text.pooled_BD) if silent else text.pooled_BD,
            timestep=t.expand(x_BCHW.shape[0]),
            return_dict=False,
        )[0]
        return {place_of("blocks", found): list(found)}


def painted(mask_HW: NDArray[np.uint8]) -> Tensor:
    """Where a mask of 0 … 255 paints, as booleans."""
    return torch.from_numpy(mask_HW >= _MASKED)


def cells(mask_HW: NDArray[np.uint8], latents: Tensor) -> Tensor:
    """1 in the latent cells (1, 1, H, W) whose first pixel is painted."""
    mask = painted(mask_HW).float()[None, None]
    return F.interpolate(mask, latents.shape[-2:], mode="nearest").to(latents.device)
