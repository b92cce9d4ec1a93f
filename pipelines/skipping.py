"""Skip-layer guidance: away from what a transformer draws without some of its blocks.

Source: Stability AI's sd3.5 (SkipLayerCFGDenoiser), 2024, for SD 3.5 medium; Hyung et al., Spatiotemporal Skip Guidance, 2024, for why.
Axes: B rows, L tokens, D width.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import BadRequest, Mismatch
from core.request import SkipLayers
from pipelines.attention import replaced
from pipelines.family import Family
from pipelines.lora_names import DENOISERS


def skips(skip: SkipLayers, step: int, steps: int) -> bool:
    """Whether step `step` is guided so, as diffusers' pipeline for SD3 counts: between its fractions of the steps, without the bounds."""
    return skip.scale != 0.0 and skip.start * steps < step < skip.end * steps


def idle_skip(skip: SkipLayers, steps: int) -> str | None:
    """What is wrong with a window that acts in none of the steps, as a sentence; None for others, and where nothing is asked for."""
    if skip.scale == 0.0 or steps == 0 or any(skips(skip, step, steps) for step in range(steps)):
        return None
    return f"skip-layer guidance from {skip.start:g} to {skip.end:g} acts in none of the {steps} steps: widen its window"


def skipped_blocks(family: Family, skip: SkipLayers) -> list[nn.Module]:
    """The family's blocks that are to be left out.

    Raises:
        BadRequest: it has fewer, or would have none left.
        Mismatch: it has no blocks that could be left out.
    """
    if not family.skippable:
        raise Mismatch(f"{family.title} has no skip-layer guidance, which is for transformers: leave skip_layers out")
    network = next(network for name, network in family.networks().items() if name in DENOISERS)
    blocks: list[nn.Module] = [block for name in family.skippable for block in getattr(network, name)]
    if skip.blocks[-1] >= len(blocks):
        raise BadRequest(f"skip_layers.blocks = {skip.blocks[-1]}: this model has blocks 0 to {len(blocks) - 1}")
    if len(skip.blocks) == len(blocks):
        raise BadRequest(f"skip_layers.blocks: these are all {len(blocks)} of this model: name some")
    return [blocks[index] for index in skip.blocks]


@contextmanager
def passed_by(blocks: list[nn.Module], rows: range) -> Iterator[None]:
    """These rows leave a transformer's blocks as they came; the others go through them."""
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(replaced(block, _passed_by(block.forward, slice(rows.start, rows.stop))))
        yield


def _passed_by(forward: Callable[..., Any], rows: slice) -> Callable[..., Any]:
    """A block gives (text, picture), each (B, L, D), or the picture alone, which is what it takes first."""
    taken = inspect.signature(forward)

    def passing(*arguments: Any, **options: Any) -> Any:
        given = taken.bind(*arguments, **options).arguments
        picture = next(iter(given.values()))
        out = forward(*arguments, **options)
        if not isinstance(out, tuple):
            return _kept(out, picture, rows)
        return _kept(out[0], given["encoder_hidden_states"], rows), _kept(out[1], picture, rows)

    return passing


def _kept(out: Tensor | None, states: Tensor, rows: slice) -> Tensor | None:
    """A block's output with these rows as they came; None for what the last block no longer gives."""
    return None if out is None else torch.cat([out[: rows.start], states[rows], out[rows.stop :]])
