"""Noise that depends on a picture's seed alone: neither the batch nor the device changes it.

Axes: B pictures, C channels, H and W latent cells.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Noise: TypeAlias = Callable[[], Tensor]

NEARLY_PARALLEL = 0.9995  # the cosine beyond which an arc is a straight line


def seeded_noise(
    seeds: Sequence[int],
    shape_CHW: tuple[int, int, int],
    device: torch.device,
    *,
    variation_seeds: Sequence[int] = (),
    variation_strength: float = 0.0,
) -> Noise:
    """Standard noise (B, C, H, W) at every call, each picture from a CPU generator of its own.

    variation_seeds: one a picture; the first noise alone is turned towards theirs, all the way at strength 1.
    """
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    variations = [torch.Generator("cpu").manual_seed(seed) for seed in variation_seeds] if variation_strength > 0.0 else []

    def noise() -> Tensor:
        rows = [torch.randn(shape_CHW, generator=generator) for generator in generators]
        if variations:
            others = [torch.randn(shape_CHW, generator=generator) for generator in variations]
            rows = [slerp(row, other, variation_strength) for row, other in zip(rows, others, strict=True)]
            variations.clear()
        drawn = torch.stack(rows)
        if device.type == "cuda":  # from pinned memory the copy does not hold up the loop
            return drawn.pin_memory().to(device, non_blocking=True)
        return drawn.to(device)

    return noise


def slerp(one_CHW: Tensor, other_CHW: Tensor, share: float) -> Tensor:
    """The point at `share` of the arc from one noise to another, column by column, so that it stays standard noise.

    Source: AUTOMATIC1111, stable-diffusion-webui, rng.py: its axis too, so that the same seeds give the same noise.
    """
    if share == 0.0:
        return one_CHW
    cosine = torch.nn.functional.cosine_similarity(one_CHW, other_CHW, dim=1, eps=0.0)
    if float(cosine.mean()) > NEARLY_PARALLEL:
        return torch.lerp(one_CHW, other_CHW, share)
    angle = torch.acos(cosine)
    whole = torch.sin(angle)
    return (torch.sin((1.0 - share) * angle) / whole).unsqueeze(1) * one_CHW + (torch.sin(share * angle) / whole).unsqueeze(1) * other_CHW
