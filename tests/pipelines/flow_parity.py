"""The one loop on a flow family, for comparisons with diffusers' own pipelines; and their pipelines without the one draw that differs."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines import samplers
from pipelines.canvas import begin
from pipelines.denoise import Plan, denoise, seeded_noise
from pipelines.family import Drawing, Family, Place, PreparedControl, Text
from pipelines.schedules import make_times
from pipelines.steering import Steering
from tests.tinymodels import SIZE_PX, control_map

PROMPT, NEGATIVE, SEED, STEPS = "a red sphere left of a blue cube", "snow at night", 7, 6
PLACE = Place(torch.device("cpu"), torch.float32)
WIDTH, HEIGHT = 96, SIZE_PX  # not square, so that rows taken for columns show


def picture(seed: int) -> NDArray[np.uint8]:
    """A picture of noise at the size that is drawn."""
    return np.concatenate([control_map(seed), control_map(seed + 100)[:, : WIDTH - SIZE_PX]], axis=1)


def left_half() -> NDArray[np.uint8]:
    """A mask: 255 on the left."""
    mask_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask_HW[:, : WIDTH // 2] = 255
    return mask_HW


def image(pixels: NDArray[np.uint8]) -> Image.Image:
    """As diffusers' pipelines take it."""
    return Image.fromarray(pixels)


def drawing(family: Family, prompt: str, guidance_scale: float, *, negative: bool = False) -> Text:
    """A prompt as the network is told it."""
    return family.bind(family.encode_prompt(prompt), Drawing(WIDTH, HEIGHT, guidance_scale, negative))


def ours(
    family: Family,
    controls: Sequence[Steering] = (),
    *,
    told_scale: float = 1.0,
    true_scale: float = 1.0,
    count: int = 1,
    strength: float = 1.0,
    image_HWC: NDArray[np.uint8] | None = None,
    mask_HW: NDArray[np.uint8] | None = None,
    **plan: Any,
) -> Tensor:
    """Final latents of the one loop. told_scale: the guidance that the network is told; true_scale: that of a second forward."""
    sampler, shift = samplers.get("euler"), family.shift(WIDTH, HEIGHT)
    times = make_times(family.path, "trailing", STEPS, sampler.grid, shift=shift.factor, terminal=shift.terminal)
    whole = Plan(
        sampler=sampler,
        times=times.tail(strength),
        positive=drawing(family, PROMPT, told_scale),
        negative=drawing(family, NEGATIVE, told_scale, negative=True) if true_scale != 1.0 else None,
        guidance_scale=true_scale,
        controls=tuple(controls),
        canvas=None if image_HWC is None else begin(family, image_HWC, mask_HW, strength=strength),
        **plan,
    )
    noise = seeded_noise([SEED + i for i in range(count)], family.latent_shape(WIDTH, HEIGHT), PLACE.device)
    return denoise(family, whole, noise, lambda i, denoised: None)


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


# What `ours` is given to draw from noise, from a picture, and in a hole of it.
WAYS: dict[str, dict[str, Any]] = {
    "txt2img": {},
    "img2img": {"image_HWC": picture(5), "strength": 0.8},
    "inpaint": {"image_HWC": picture(5), "strength": 0.8, "mask_HW": left_half()},
}


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


class HostReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often the host asks a tensor for its numbers, or for their count, which on a device waits for it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def host_reads(family: Family, control: PreparedControl) -> int:
    """How often a step waits for the device, in the control's forward and in the base's, after the first."""
    x, t = torch.randn(2, *family.latent_shape(WIDTH, HEIGHT)), torch.tensor(500.0)
    text = Text.rows([drawing(family, NEGATIVE, 1.0), drawing(family, PROMPT, 1.0)])
    reads = HostReads()
    with torch.inference_mode():
        family.predict(x, t, text, control.residuals(x, t, text))
        with reads:
            family.predict(x, t, text, control.residuals(x, t, text))
    return reads.count


def assert_same(got: Tensor, expected: Tensor) -> None:
    """Final latents within the issue's bound."""
    assert expected.std() > 0.1  # the comparison is of something
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
