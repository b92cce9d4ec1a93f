"""Between latents and the tokens of a transformer: patches in reading order, and residuals spread over its blocks."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

PATCH = 2  # latent cells to a side of a token


def pack(latents_BCHW: Tensor) -> Tensor:
    """Latents as tokens (B, H/2·W/2, 4·C): each holds the four cells of a patch, channel by channel."""
    b, c, h, w = latents_BCHW.shape
    patches = latents_BCHW.reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // PATCH) * (w // PATCH), c * PATCH * PATCH)


def unpack(tokens_BLC: Tensor, height: int, width: int) -> Tensor:
    """Tokens as latents (B, C, height, width): `pack` read backwards."""
    b, _, c = tokens_BLC.shape
    patches = tokens_BLC.reshape(b, height // PATCH, width // PATCH, c // PATCH**2, PATCH, PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(b, c // PATCH**2, height, width)


def over_blocks(residuals: Mapping[str, Sequence[Tensor]], place: str, blocks: int, *, cyclic: bool = False) -> list[Tensor] | None:
    """What to add after each of a transformer's blocks, or None: residuals lie in `<place>/<count>`, one place for every count of levels.

    Each level serves a run of blocks, all runs of one length (the last may be shorter); cyclic: the levels are dealt out in turn.
    """
    total: list[Tensor] | None = None
    for name, levels in residuals.items():
        if name.partition("/")[0] != place or not levels or not blocks:
            continue
        run = math.ceil(blocks / len(levels))
        own = [levels[i % len(levels) if cyclic else i // run] for i in range(blocks)]
        total = own if total is None else [a + b for a, b in zip(total, own, strict=True)]
    return total


def place_of(place: str, levels: Sequence[Tensor]) -> str:
    """The place of a ControlNet's residuals, so that ControlNets of different depths can be added up."""
    return f"{place}/{len(levels)}"
