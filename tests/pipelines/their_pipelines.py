"""diffusers' own pipelines over tiny models, without the one draw that differs; and what they do around their networks, by hand."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from tests.pipelines.scenes import HEIGHT, SEED, STEPS, WAYS, WIDTH


@cache
def _their_parts(base: Path) -> dict[str, Any]:
    import diffusers

    return dict(diffusers.DiffusionPipeline.from_pretrained(base, local_files_only=True).components)


def their_pipe(kind: str, base: Path, **more: Any) -> Any:
    """A diffusers pipeline over the parts in a folder, which are read once, with a scheduler of its own."""
    import diffusers

    pipeline, parts = getattr(diffusers, kind), _their_parts(base)
    takes = inspect.signature(pipeline.__init__).parameters
    scheduler = type(parts["scheduler"]).from_config(parts["scheduler"].config)
    pipe = pipeline(**{name: part for name, part in parts.items() if name in takes} | {"scheduler": scheduler} | more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generators(count: int = 1) -> list[torch.Generator]:
    """One for each picture, as we draw."""
    return [torch.Generator("cpu").manual_seed(SEED + i) for i in range(count)]


@contextmanager
def means_for_samples() -> Iterator[None]:
    """diffusers draws the latents of pictures and maps from the generator that the noise comes from; we take their mean."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    with mock.patch.object(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode()):
        yield


@torch.no_grad()
def euler_by_hand(scheduler: Any, velocity: Callable[[Tensor, Tensor, int, int], Tensor], start: Tensor, way: str) -> Tensor:
    """What a pipeline of diffusers does around its networks, where it has none.

    scheduler: with its timesteps set; velocity(x, t, i, n): the guided one, at step i of n; start: the latents of the way's picture.
    """
    noise = torch.randn(start.shape, generator=generators()[0])
    first = int(STEPS - STEPS * WAYS[way].get("strength", 1.0))
    scheduler.set_begin_index(first)
    timesteps, sigmas = scheduler.timesteps[first:], scheduler.sigmas[first:]
    mask = torch.from_numpy(WAYS[way].get("mask_HW", np.full((HEIGHT, WIDTH), 255))[None, None, :: HEIGHT // start.shape[2]] >= 128)
    mask = mask[..., :: WIDTH // start.shape[3]].float()
    x = noise if way == "txt2img" else (1.0 - sigmas[0]) * start + sigmas[0] * noise
    for i, (t, sigma) in enumerate(zip(timesteps, sigmas[1:], strict=True)):
        x = scheduler.step(velocity(x, t, i, len(timesteps)), t, x, return_dict=False)[0]
        x = mask * x + (1.0 - mask) * ((1.0 - sigma) * start + sigma * noise)
    return x


def assert_same(got: Tensor, expected: Tensor) -> None:
    """Final latents within the issue's bound."""
    assert expected.std() > 0.1  # the comparison is of something
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
