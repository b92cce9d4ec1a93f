"""Makes rendered pictures worse as generated ones are: other brightness, soft edges, coarse detail, block noise, grain.

An estimator that has only seen clean renderings reads the small faults of a generated picture as shapes.

Axes: B pictures, C = 3 channels, H and W pixels; values from 0 to 1.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from training.randomness import Draws

BLUR_SIGMA_PX = 1.2
BLOCK_PX = 8  # as JPEG's
BRIGHTNESS, CONTRAST, TINT, COARSEST_STEP, GRAIN = 0.08, 0.15, 0.05, 0.25, 0.04


def degrade(x_BCHW: Tensor, draws: Draws) -> Tensor:
    """Every picture made worse in its own way, some hardly at all; H and W are multiples of 8."""

    def column(values: Tensor) -> Tensor:
        return values[:, None, None, None]

    amount = draws.uniform((6,), "degrade")
    tint = draws.uniform((3,), "tint")[:, :, None, None]
    brightness = 2 * BRIGHTNESS * (column(amount[:, 0]) - 0.5)
    contrast = 1 + 2 * CONTRAST * (column(amount[:, 1]) - 0.5)
    x = (x_BCHW - 0.5) * contrast * (1 + 2 * TINT * (tint - 0.5)) + 0.5 + brightness
    # half of the pictures stay sharp, three quarters keep their fine detail
    x = torch.lerp(x, blurred(x), column((2 * amount[:, 2] - 1).clamp(min=0)))
    x = torch.lerp(x, _coarse(x), column((4 * amount[:, 3] - 3).clamp(min=0)))
    x = blocky(x, COARSEST_STEP * (2 * amount[:, 4] - 1).clamp(min=0))
    x = x + GRAIN * column(amount[:, 5] ** 2) * draws.normal(tuple(x.shape[1:]), "grain")
    return x.clamp(0, 1)


def blurred(x_BCHW: Tensor) -> Tensor:
    """A Gaussian blur of `BLUR_SIGMA_PX`, with the border repeated."""
    reach = torch.arange(-3, 4, device=x_BCHW.device, dtype=x_BCHW.dtype)
    weights = torch.exp(-0.5 * (reach / BLUR_SIGMA_PX) ** 2)
    weights = weights / weights.sum()
    channels = x_BCHW.shape[1]
    x = functional.pad(x_BCHW, (3, 3, 3, 3), mode="replicate")
    x = functional.conv2d(x, weights.view(1, 1, 1, 7).expand(channels, 1, 1, 7), groups=channels)
    return functional.conv2d(x, weights.view(1, 1, 7, 1).expand(channels, 1, 7, 1), groups=channels)


def blocky(x_BCHW: Tensor, step_B: Tensor) -> Tensor:
    """8×8 blocks' cosine coefficients rounded to multiples of `step_B` (0 leaves the picture alone), finer for slow waves than for fast."""
    transform = _cosines().to(x_BCHW)
    count, channels, height, width = x_BCHW.shape
    blocks = x_BCHW.view(count, channels, height // BLOCK_PX, BLOCK_PX, width // BLOCK_PX, BLOCK_PX)
    coefficients = torch.einsum("ui,bchiwj,vj->bchuwv", transform, blocks, transform)
    frequency = torch.arange(BLOCK_PX, device=x_BCHW.device)
    slowness = (1 + frequency[:, None] + frequency[None]).view(1, 1, 1, BLOCK_PX, 1, BLOCK_PX) / BLOCK_PX
    step = (step_B.view(-1, 1, 1, 1, 1, 1) * slowness).clamp(min=1e-4)
    rounded = torch.round(coefficients / step) * step
    return torch.einsum("ui,bchuwv,vj->bchiwj", transform, rounded, transform).reshape(x_BCHW.shape)


def _coarse(x_BCHW: Tensor) -> Tensor:
    """Half the resolution and back."""
    return functional.interpolate(functional.avg_pool2d(x_BCHW, 2), scale_factor=2, mode="bilinear")


def _cosines() -> Tensor:
    """The orthonormal discrete cosine transform of eight values, as a matrix (frequency, place)."""
    place = torch.arange(BLOCK_PX) + 0.5
    rows = torch.cos(math.pi / BLOCK_PX * torch.arange(BLOCK_PX)[:, None] * place) * math.sqrt(2 / BLOCK_PX)
    rows[0] /= math.sqrt(2)
    return rows
