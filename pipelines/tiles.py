"""The autoencoder in overlapping tiles, whose normalisation is the whole picture's.

GroupNorm measures its means and variances on all that it is given, so that tiles of sky and tiles of grass, each normalised by itself, come
out in other colours than the whole. Here they are measured once, on the whole made as small as one tile, and held for every tile.

Axes: B batch, C channels, H, W of what is cut into tiles, g groups.
Source: pkuliyi2015, "Tiled VAE", multidiffusion-upscaler-for-automatic1111, 2023, whose fast mode estimates them from a small picture too.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.attention import replaced
from pipelines.family import Family

Held = dict[nn.GroupNorm, tuple[Tensor, Tensor]]  # means and variances, each (B, g)


@contextmanager
def tiled(family: Family) -> Iterator[None]:
    """The autoencoder works in overlapping tiles, where it can."""
    network: Any = family.vae
    if not hasattr(network, "enable_tiling") or getattr(network, "use_tiling", False):
        yield
        return
    network.enable_tiling()
    try:
        with ExitStack() as stack:
            if any(isinstance(module, nn.GroupNorm) for module in network.modules()):
                decoding = _Alike(network.decoder, network.tiled_decode, network._decode, network.tile_latent_min_size, 1)
                encoding = _Alike(network.encoder, network._tiled_encode, network._encode, network.tile_sample_min_size, family.side_px)
                stack.enter_context(_method(network, "tiled_decode", decoding))
                stack.enter_context(_method(network, "_tiled_encode", encoding))
            yield
    finally:
        network.disable_tiling()


@contextmanager
def _method(network: nn.Module, name: str, method: Callable[..., Any]) -> Iterator[None]:
    setattr(network, name, method)
    try:
        yield
    finally:
        delattr(network, name)


@dataclass(frozen=True)
class _Alike:
    """One half of an autoencoder in tiles, every GroupNorm of which is held to what it is on a small whole.

    in_tiles, at_once: diffusers' own methods. side: of a tile. multiple: what the sides of the half's input are multiples of.
    """

    half: nn.Module
    in_tiles: Callable[..., Any]
    at_once: Callable[[Tensor], Any]
    side: int
    multiple: int

    def __call__(self, whole_BCHW: Tensor, **options: Any) -> Any:
        norms = [module for module in self.half.modules() if isinstance(module, nn.GroupNorm)]
        held: Held = {}
        with ExitStack() as stack:
            for norm in norms:
                stack.enter_context(replaced(norm, partial(_measure, norm, norm.forward, held)))
            self.at_once(_small(whole_BCHW, self.side, self.multiple))
        with ExitStack() as stack:
            for norm in norms:
                stack.enter_context(replaced(norm, partial(_normalise, norm, *held[norm])))
            return self.in_tiles(whole_BCHW, **options)


def _small(whole_BCHW: Tensor, side: int, multiple: int) -> Tensor:
    """The whole at its own shape, its longer side that of a tile."""
    height, width = whole_BCHW.shape[-2:]
    share = side / max(height, width) / multiple
    size = [max(1, round(length * share)) * multiple for length in (height, width)]
    return F.interpolate(whole_BCHW.float(), size, mode="area").to(whole_BCHW.dtype)


def _measure(norm: nn.GroupNorm, forward: Callable[[Tensor], Tensor], held: Held, x: Tensor) -> Tensor:
    groups_BgN = x.float().reshape(x.shape[0], norm.num_groups, -1)
    held[norm] = groups_BgN.mean(-1), groups_BgN.var(-1, unbiased=False)
    return forward(x)


def _normalise(norm: nn.GroupNorm, mean_Bg: Tensor, variance_Bg: Tensor, x: Tensor) -> Tensor:
    each = norm.num_channels // norm.num_groups
    scale_BC = (variance_Bg + norm.eps).rsqrt().repeat_interleave(each, 1) * norm.weight.float()
    shift_BC = norm.bias.float() - mean_Bg.repeat_interleave(each, 1) * scale_BC
    shape = (*scale_BC.shape, *[1] * (x.dim() - 2))
    out: Tensor = torch.addcmul(shift_BC.view(shape), x.float(), scale_BC.view(shape)).to(x.dtype)
    return out
