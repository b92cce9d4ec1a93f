"""Tiles of one picture agree with each other and with the whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipelines.checkpoint import Folder
from pipelines.engine import TOYLAND
from pipelines.families.sd import StableDiffusion
from pipelines.family import Place
from pipelines.tiles import Held, _measure, _normalise, _small, tiled
from toyland.render import render
from toyland.scene import sample

SCENES = [(100, 384), (101, 384), (102, 256)]  # seed, pixels; the autoencoder's tile has 128


@pytest.fixture(scope="module")
def toyland() -> StableDiffusion:
    return StableDiffusion.load(Folder(TOYLAND / "base"), Place(torch.device("cpu"), torch.float32))


def scene(seed: int, size: int) -> Any:
    return np.ascontiguousarray(render(sample(seed), size).picture_HWC)


def db(got: Tensor, wanted: Tensor, power: float) -> float:
    return float(10 * torch.log10(power / ((got - wanted) ** 2).mean()))


@contextmanager
def tiled_apart(family: StableDiffusion) -> Iterator[None]:
    """diffusers' own tiles, each of which is normalised by itself."""
    family.vae.enable_tiling()
    try:
        yield
    finally:
        family.vae.disable_tiling()


def test_decoded_tiles_come_near_the_whole(toyland: StableDiffusion) -> None:
    """Measured: 38 to 40 dB; where each tile is normalised by itself 23 to 25."""
    for seed, size in SCENES:
        latents = toyland.encode_image(scene(seed, size))
        whole = toyland.decode(latents)
        with tiled(toyland):
            assert db(toyland.decode(latents), whole, 4.0) > 36.0
        with tiled_apart(toyland):
            assert db(toyland.decode(latents), whole, 4.0) < 27.0


def test_encoded_tiles_come_near_the_whole(toyland: StableDiffusion) -> None:
    """Measured against the latents' own variance: 21 to 25 dB; where each tile is normalised by itself 8 to 15."""
    for seed, size in SCENES:
        whole = toyland.encode_image(scene(seed, size))
        with tiled(toyland):
            assert db(toyland.encode_image(scene(seed, size)), whole, float(whole.var())) > 19.0
        with tiled_apart(toyland):
            assert db(toyland.encode_image(scene(seed, size)), whole, float(whole.var())) < 17.0


def test_pictures_of_a_batch_keep_to_themselves(toyland: StableDiffusion) -> None:
    latents = torch.cat([toyland.encode_image(scene(seed, 256)) for seed in (100, 102)])
    with tiled(toyland):
        together, alone = toyland.decode(latents), toyland.decode(latents[1:])
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-4)


def test_the_autoencoder_is_left_as_it_was(toyland: StableDiffusion) -> None:
    latents = toyland.encode_image(scene(100, 256))
    whole = toyland.decode(latents)
    with tiled(toyland):
        assert not torch.equal(toyland.decode(latents), whole)
    assert torch.equal(toyland.decode(latents), whole)
    assert not {"tiled_decode", "_tiled_encode"} & vars(toyland.vae).keys()
    assert not any("forward" in vars(module) for module in toyland.vae.modules() if isinstance(module, nn.GroupNorm))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("shape", [(2, 8, 5, 3), (2, 8, 15)])
def test_held_to_its_own_statistics_a_norm_is_itself(shape: tuple[int, ...], dtype: torch.dtype, bound: float) -> None:
    norm = nn.GroupNorm(4, 8).to(dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (3.0 + 2.0 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)
    held: Held = {}
    expected = _measure(norm, norm.forward, held, x)
    got = _normalise(norm, *held[norm], x)
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected, rtol=bound, atol=bound)


@pytest.mark.parametrize(
    ("shape", "side", "multiple", "small"), [((96, 96), 16, 1, (16, 16)), ((96, 40), 16, 1, (16, 7)), ((8, 800), 128, 8, (8, 128))]
)
def test_a_small_whole_has_the_shape_of_the_whole(shape: tuple[int, int], side: int, multiple: int, small: tuple[int, int]) -> None:
    assert _small(torch.zeros(1, 4, *shape), side, multiple).shape == (1, 4, *small)
