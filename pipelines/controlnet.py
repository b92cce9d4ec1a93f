"""ControlNets of the UNet families: `ControlNetModel`, and `ControlNetUnionModel`, one network for many kinds of control.

The hint encoder is taken out of the network, so that it runs once a picture and not at every step. Residuals go to "skips": the UNet's
skip connections, outermost first, and its middle last. Axes: B rows, C channels, H and W pixels or latent cells, K kinds.
Source: Zhang et al., Adding Conditional Control to Text-to-Image Diffusion Models, 2023; xinsir6, ControlNetPlus, 2024.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import Mismatch
from pipelines.family import Hint, Place, PreparedControl, Residuals, Text
from pipelines.images import condition_to_tensor, hole_of

# The place that each kind has in a union network's control type; networks of six types end before tile.
UNION_TYPES: Mapping[str, int] = {
    "pose": 0,
    "depth": 1,
    "softedge": 2,
    "scribble": 2,
    "canny": 3,
    "lineart": 3,
    "lines": 3,
    "normal": 4,
    "segmentation": 5,
    "tile": 6,
    "blur": 6,
    "inpaint": 7,
}
# What inpainting ControlNets read where the hole is: ControlNet 1.1's; the union network's.
HOLE, UNION_HOLE = -1.0, 0.0


def added_conditions(text: Text) -> dict[str, Tensor] | None:
    """What SDXL's networks are told beside the tokens: the pooled prompt and the sizes; None for SD."""
    if text.pooled_BD is None or "time_ids" not in text.extra:
        return None
    return {"text_embeds": text.pooled_BD, "time_ids": text.extra["time_ids"]}


def hint_pixels(hint: Hint, hole: float) -> Tensor:
    """A control map as networks take it, (1, 3, H, W) in [0, 1]; where an inpainting map has its hole, `hole`.

    The hole is the hint's mask, or without one what is black.
    """
    pixels_BCHW = condition_to_tensor(hint.map_HWC)[None]
    if hint.kind != "inpaint" and hint.mask_HW is None:
        return pixels_BCHW
    return pixels_BCHW.masked_fill(hole_of(hint.map_HWC, hint.mask_HW), hole)


class LoadedControlNet:
    """A ControlNet whose hint encoder has been taken out."""

    def __init__(self, net: Any, place: Place) -> None:
        self.net, self.place = net, place
        self.hint_encoder: nn.Module = net.controlnet_cond_embedding
        self.flipped = net.config.controlnet_conditioning_channel_order == "bgr"
        net.controlnet_cond_embedding = nn.Identity()

    def embed(self, map_BCHW: Tensor) -> Tensor:
        """The hint's embedding (B, C, H, W) of maps in [0, 1]."""
        pixels = map_BCHW.to(self.place.device, self.place.dtype)
        embedding: Tensor = self.hint_encoder(pixels.flip(1) if self.flipped else pixels)
        # The network turns the channels of whatever it is given as a hint; turned twice they are as they were.
        return embedding.flip(1) if self.flipped else embedding

    def prepare(self, hint: Hint) -> "SteeredControlNet":
        """The network with a map, embedded here, once."""
        return SteeredControlNet(self, self.embed(hint_pixels(hint, HOLE)))


@dataclass(frozen=True, eq=False)
class SteeredControlNet:
    """A ControlNet with one map; see `pipelines.family.PreparedControl`."""

    loaded: LoadedControlNet
    hint_BCHW: Tensor

    @property
    def network(self) -> nn.Module:
        """The ControlNet, which reads the text as the UNet does."""
        return self.loaded.net  # type: ignore[no-any-return]  # diffusers is untyped

    @property
    def positive_only(self) -> bool:
        """Pooled ControlNets (shuffle) are made to steer the prompt's half of guidance alone."""
        return bool(self.loaded.net.config.global_pool_conditions)

    @property
    def levels(self) -> int:
        """Skip connections, and the middle."""
        return len(self.loaded.net.config.get("residual_channels") or (*self.loaded.net.controlnet_down_blocks, None))

    @property
    def patch(self) -> int:
        """Residuals are feature maps."""
        return 1

    def residuals(self, x_BCHW: Tensor, t: Tensor, text: Text) -> Residuals:
        """What to add to the UNet's skip connections and to its middle; unscaled."""
        down, middle = self.loaded.net(
            x_BCHW.to(self.loaded.place.dtype),
            t,
            encoder_hidden_states=text.tokens_BLD,
            added_cond_kwargs=added_conditions(text),
            return_dict=False,
            **self.condition(x_BCHW.shape[0]),
        )
        return {"skips": [*down, middle]}

    def condition(self, rows: int) -> dict[str, Any]:
        """The network's own arguments for its map."""
        return {"controlnet_cond": self.hint_BCHW}


class LoadedUnion(LoadedControlNet):
    """A union ControlNet; controls that act alike are one call of it, as the `control_mode` lists of diffusers' pipelines."""

    def prepare(self, hint: Hint) -> "SteeredUnion":
        """The network with a map and the type that the map's kind has in it.

        Raises:
            Mismatch: the network was not made for this kind.
        """
        types = int(self.net.config.num_control_type)
        index = UNION_TYPES.get(hint.kind, types)
        if index >= types:
            known = ", ".join(kind for kind, one in UNION_TYPES.items() if one < types)
            raise Mismatch(
                f"control {hint.kind!r}: this union ControlNet has {types} types, made for {known}; use a ControlNet of that kind"
            )
        type_1K = torch.zeros((1, types), device=self.place.device, dtype=self.place.dtype)
        type_1K[0, index] = 1.0
        return SteeredUnion(self, self.embed(hint_pixels(hint, UNION_HOLE)), index, type_1K)


@dataclass(frozen=True, eq=False)
class SteeredUnion(SteeredControlNet):
    """A union ControlNet with one map of one kind."""

    index: int
    type_1K: Tensor

    def condition(self, rows: int) -> dict[str, Any]:
        """See `SteeredControlNet.condition`."""
        return {
            "controlnet_cond": [self.hint_BCHW.expand(rows, -1, -1, -1)],
            "control_type": self.type_1K.expand(rows, -1),
            "control_type_idx": [self.index],
            "conditioning_scale": 1.0,
        }

    def join(self, weight: float, other: PreparedControl, other_weight: float) -> "tuple[JoinedUnion, float] | None":
        """Both in one call, each with its weight inside the network; None for maps of different networks."""
        if not isinstance(other, SteeredUnion) or other.loaded is not self.loaded:
            return None
        return JoinedUnion(self.loaded, self.hint_BCHW, ((self, weight), (other, other_weight))), 1.0


@dataclass(frozen=True, eq=False)
class JoinedUnion(SteeredControlNet):
    """A union ControlNet with several maps, which it fuses before its first block, and the weight of each."""

    parts: tuple[tuple[SteeredUnion, float], ...]

    def condition(self, rows: int) -> dict[str, Any]:
        """See `SteeredControlNet.condition`."""
        types = torch.stack([part.type_1K for part, _ in self.parts]).amax(dim=0)
        return {
            "controlnet_cond": [part.hint_BCHW.expand(rows, -1, -1, -1) for part, _ in self.parts],
            "control_type": types.expand(rows, -1),
            "control_type_idx": [part.index for part, _ in self.parts],
            "conditioning_scale": [weight for _, weight in self.parts],
        }

    def join(self, weight: float, other: PreparedControl, other_weight: float) -> "tuple[JoinedUnion, float] | None":
        """See `SteeredUnion.join`."""
        if not isinstance(other, SteeredUnion) or other.loaded is not self.loaded:
            return None
        return replace(self, parts=(*self.parts, (other, other_weight))), weight
