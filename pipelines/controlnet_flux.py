"""ControlNets of FLUX.1: plain, union, XLabs' and alimama's for holes, and the maps that Canny and Depth models read themselves.

Axes: B rows, C channels, H and W latent cells, L tokens, D width. Source: InstantX, FLUX.1-dev-Controlnet-Union, 2024; XLabs-AI,
x-flux, 2024; alimama-creative, FLUX-Controlnet-Inpainting, 2024; Black Forest Labs, FLUX.1 Tools, 2024.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.control import Image
from core.errors import Mismatch
from core.stack import unstacked
from pipelines.checkpoint import Checkpoint
from pipelines.family import Hint, Place, Residuals, Text
from pipelines.images import hole_of, picture_to_tensor
from pipelines.tokens import PATCH, pack, place_of

# The mode of each kind in the published union ControlNets (InstantX, Shakker-Labs); 6 is "low quality", which no kind here is.
MODES: Mapping[str, int] = {"canny": 0, "tile": 1, "depth": 2, "blur": 3, "pose": 4, "recolour": 5}


class Positions:
    """Where tokens stand: (frame, row, column) for the picture's, nowhere for the text's; computed once a size."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._kept = lru_cache(8)(self._new)

    def __call__(self, x_BCHW: Tensor, text: Text) -> dict[str, Tensor]:
        """As the networks take them, (L, 3) each."""
        at_image, at_text = self._kept(x_BCHW.shape[-2] // PATCH, x_BCHW.shape[-1] // PATCH, text.tokens_BLD.shape[1])
        return {"img_ids": at_image, "txt_ids": at_text}

    def _new(self, height: int, width: int, words: int) -> tuple[Tensor, Tensor]:
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        at_image = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)
        return at_image.to(self._place.device, self._place.dtype), torch.zeros(words, 3, device=self._place.device, dtype=self._place.dtype)


def told(x_BCHW: Tensor, t: Tensor, text: Text, *, guided: bool) -> dict[str, Tensor | None]:
    """What the transformer and its ControlNets are told alike; guided: the guidance scale too."""
    return {
        "encoder_hidden_states": text.tokens_BLD,
        "pooled_projections": text.pooled_BD,
        "timestep": t.expand(x_BCHW.shape[0]) / 1000,
        "guidance": text.extra["guidance"] if guided else None,
    }


class FluxControlNet:
    """A FluxControlNetModel whose embedding of the map has been taken out, so that it runs once a picture instead of at every step."""

    def __init__(self, net: Any, checkpoint: Checkpoint, place: Place, positions: Positions) -> None:
        self.net, self.checkpoint, self.place, self.positions = net, checkpoint, place, positions
        self.hint_encoder, self.embedder = net.input_hint_block, net.controlnet_x_embedder
        net.input_hint_block, net.controlnet_x_embedder = None, nn.Identity()

    @property
    def inpaints(self) -> bool:
        """Whether it reads beside a picture's latents where the picture stays."""
        return bool(self.net.config.get("extra_condition_channels"))

    def prepare(self, hint: Hint, encode_image: Callable[[Image], Tensor]) -> "SteeredFlux":
        """The map's tokens, from its pixels where the network has an encoder for them (XLabs), else from its latents.

        Raises:
            Mismatch: a union network knows nothing of the hint's kind, or a network for holes is to read something else.
        """
        mode = self._mode(hint.kind)
        if self.inpaints:
            features = self._with_hole(hint, encode_image)
        elif self.hint_encoder is None:
            features = torch.cat([encode_image(map_HWC) for map_HWC in unstacked(hint.map_HWC)], dim=1)
        else:
            features = self.hint_encoder(picture_to_tensor(hint.map_HWC)[None].to(self.place.device, self.place.dtype))
        return SteeredFlux(self, self.embedder(pack(features.to(self.place.dtype))), mode)

    def _with_hole(self, hint: Hint, encode_image: Callable[[Image], Tensor]) -> Tensor:
        """The latents (1, C + 1, H, W) of the picture with a black hole, and 1 where it has none."""
        if hint.kind != "inpaint":
            raise Mismatch(f"ControlNet {str(self.checkpoint.path)!r} paints in holes, not by {hint.kind!r}: give it the kind 'inpaint'")
        hole_HW = hole_of(hint.map_HWC, hint.mask_HW)
        latents = encode_image(np.where(hole_HW.numpy()[..., None], np.uint8(0), hint.map_HWC))
        kept = F.interpolate((~hole_HW).float()[None, None], latents.shape[-2:]).to(latents)
        return torch.cat([latents, kept], dim=1)

    def _mode(self, kind: str) -> int | None:
        modes = self.net.config.num_mode
        if modes is None:
            return None
        known = [name for name, mode in MODES.items() if mode < modes]
        if kind not in known:
            raise Mismatch(f"union ControlNet {str(self.checkpoint.path)!r} has no mode for {kind!r}: it knows {', '.join(known)}")
        return MODES[kind]


@dataclass(frozen=True, eq=False)
class SteeredFlux:
    """A ControlNet with one map; see `pipelines.family.PreparedControl`."""

    loaded: FluxControlNet
    map_1LD: Tensor
    mode: int | None
    positive_only: bool = False
    patch: int = PATCH

    @property
    def levels(self) -> int:
        """Double blocks, then single ones."""
        return len(self.loaded.net.controlnet_blocks) + len(self.loaded.net.controlnet_single_blocks)

    def residuals(self, x: Tensor, t: Tensor, text: Text) -> Residuals:
        """What to add after the transformer's blocks, unscaled."""
        net = self.loaded.net
        blocks, single = net(
            hidden_states=pack(x.to(self.loaded.place.dtype)),
            controlnet_cond=self.map_1LD,
            controlnet_mode=None if self.mode is None else torch.full((x.shape[0], 1), self.mode, device=x.device),
            return_dict=False,
            **told(x, t, text, guided=net.config.guidance_embeds),
            **self.loaded.positions(x, text),
        )
        place = "blocks" if self.loaded.hint_encoder is None else "cyclic"
        found = {place_of(place, blocks): blocks} if blocks else {}
        return found | ({place_of("single", single): single} if single else {})


@dataclass(frozen=True)
class OwnControl:
    """The channels for a map in a base model itself: nothing is loaded for them."""


@dataclass(frozen=True, eq=False)
class Channels:
    """A map in the base model's own channels; see `pipelines.family.PreparedControl`.

    A weight or a region draws its latents towards zeros. Several maps are added up: give each a region of its own.
    """

    latents_1CHW: Tensor
    positive_only: bool = False
    levels: int = 1
    patch: int = 1

    def residuals(self, x: Tensor, t: Tensor, text: Text) -> Residuals:
        """The map's latents for every row."""
        return {"channels": [self.latents_1CHW.to(x).expand(x.shape[0], -1, -1, -1)]}
