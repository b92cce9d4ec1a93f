"""Several conditions of one ControlNet: their maps as one map with more channels, in training as in rendering."""

from collections.abc import Sequence

import numpy as np

from core.control import Image


def stacked(maps_HWC: Sequence[Image], channels: Sequence[int]) -> Image:
    """Maps of one size, channel after channel: RGB uint8 (H, W, 3) each → uint8 (H, W, sum of channels).

    channels: of each map, 3 as it is or 1 for the mean of its three.
    """
    parts = [
        map_HWC if count == 3 else np.rint(map_HWC.mean(axis=2, keepdims=True)).astype(np.uint8)
        for map_HWC, count in zip(maps_HWC, channels, strict=True)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


def unstacked(stack_HWC: Image) -> list[Image]:
    """The RGB maps of a stack of nothing else."""
    return [np.ascontiguousarray(stack_HWC[..., first : first + 3]) for first in range(0, stack_HWC.shape[2], 3)]
