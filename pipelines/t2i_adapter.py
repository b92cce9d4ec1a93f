"""T2I-Adapters: small networks that look at the map alone, so their features are computed once a picture and added at every step.

Features go to "features": what is added inside the UNet's down blocks, and for SDXL to its middle, outermost first.
Source: Mou et al., T2I-Adapter, 2023.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from core.errors import BadRequest, Mismatch
from pipelines.checkpoint import Checkpoint
from pipelines.controlnet import HOLE, hint_pixels
from pipelines.family import Hint, Place, Residuals, Text

FADE = (0.25, 0.62, 0.825, 1.0)  # of the four features in sd-webui-controlnet's unbalanced modes, outermost first
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as pictures are turned to grey everywhere


def check_adapter(checkpoint: Checkpoint, unet: Mapping[str, Any], cell_px: int, base: str) -> None:
    """
    Raises:
        Mismatch: the adapter's features have no place in this UNet.
    """
    features = adapter_features(checkpoint.config(""))
    places = unet_places(unet, cell_px)
    if features != places[: len(features)]:
        raise Mismatch(
            f"T2I-Adapter {str(checkpoint.path)!r} makes features of {_shown(features)}, the base model {base!r} takes {_shown(places)}: "
            "use an adapter trained for this base"
        )


def check_size(size: tuple[int, int], cell: int) -> None:
    """
    Raises:
        BadRequest: width or height, in pixels, do not divide into an adapter's cells.
    """
    for name, length in zip(("width", "height"), size, strict=True):
        if length % cell:
            raise BadRequest(f"{name} = {length}: this T2I-Adapter takes multiples of {cell}, for example {length // cell * cell or cell}")


class LoadedAdapter:
    """A T2I-Adapter on its place."""

    def __init__(self, net: Any, place: Place) -> None:
        self.net, self.place = net, place

    def prepare(self, hint: Hint) -> "SteeredAdapter":
        """The features of a map.

        Raises:
            BadRequest: the picture's size does not divide into the adapter's cells.
        """
        pixels_BCHW = hint_pixels(hint, HOLE)
        check_size((pixels_BCHW.shape[-1], pixels_BCHW.shape[-2]), int(self.net.downscale_factor))
        if int(self.net.config.in_channels) == 1:
            pixels_BCHW = (pixels_BCHW * pixels_BCHW.new_tensor(LUMINANCE)[:, None, None]).sum(dim=1, keepdim=True)
        return SteeredAdapter(tuple(self.net(pixels_BCHW.to(self.place.device, self.place.dtype))))


@dataclass(frozen=True, eq=False)
class SteeredAdapter:
    """An adapter's features of one map, (1, C, H, W) each; see `pipelines.family.PreparedControl`."""

    features: tuple[Tensor, ...]

    @property
    def positive_only(self) -> bool:
        """Features steer both halves of guidance."""
        return False

    @property
    def levels(self) -> int:
        """One for each block of the UNet's encoder, and for SDXL its middle."""
        return len(self.features)

    @property
    def patch(self) -> int:
        """Features are feature maps."""
        return 1

    @property
    def fade(self) -> tuple[float, ...]:
        """See `pipelines.steering.Fades`; published adapters make four features, others fade as ControlNets do."""
        return FADE if self.levels == len(FADE) else ()

    def residuals(self, x_BCHW: Tensor, t: Tensor, text: Text) -> Residuals:
        """The features, the same at every step; unscaled."""
        return {"features": [feature.expand(x_BCHW.shape[0], -1, -1, -1) for feature in self.features]}


def adapter_features(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """(channels, pixels to a cell) of the features that an adapter makes."""
    kind, channels = (
        str(config.get("adapter_type", "full_adapter")),
        [int(width) for width in config.get("channels", (320, 640, 1280, 1280))],
    )
    cell = int(config.get("downscale_factor", 8))
    if kind == "full_adapter_xl":  # its third block alone shrinks
        return [(width, cell * (2 if i > 1 else 1)) for i, width in enumerate(channels)]
    if kind == "light_adapter":
        channels = [*channels, channels[-1]]
    return [(width, cell * 2**i) for i, width in enumerate(channels)]


def unet_places(unet: Mapping[str, Any], cell_px: int) -> list[tuple[int, int]]:
    """(channels, pixels to a cell) where a UNet takes features: blocks with attention before they shrink, others after; and the middle."""
    kinds, widths = list(unet["down_block_types"]), list(unet["block_out_channels"])
    last = len(kinds) - 1
    places = [
        (int(width), cell_px * 2 ** (i if "CrossAttn" in kind else min(i + 1, last)))
        for i, (kind, width) in enumerate(zip(kinds, widths, strict=True))
    ]
    return [*places, (int(widths[-1]), cell_px * 2**last)]


def _shown(levels: list[tuple[int, int]]) -> str:
    return ", ".join(f"{width} channels at 1/{cell}" for width, cell in levels)
