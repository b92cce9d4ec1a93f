"""When memory runs out, wherever it does; when numbers overflow; and how near tiles and previews come to the autoencoder."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.errors import BadModel, LimnError, OutOfMemory
from core.request import ControlUnit, Hires, RenderRequest
from pipelines import memory
from pipelines.checkpoint import Folder
from pipelines.families.sd import StableDiffusion
from pipelines.family import Place
from pipelines.images import picture_to_tensor
from pipelines.memory import HALVED, OFFLOADED, TILED, decode, frugally, offloaded
from pipelines.preview import TinyPreview, default_preview, linear_preview, previews, synthetic_pictures
from renderer import Picture, Renderer
from tests import tinymodels
from toyland.render import render
from toyland.scene import sample

ROOT = Path(__file__).parents[2]
NO_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tinymodels.build_base(folder / "base")
    tinymodels.build_controlnet(folder / "controlnet-canny", folder / "base")
    tinymodels.build_pictures(folder)
    return folder


@pytest.fixture(scope="module")
def renderer(models: Path) -> Renderer:
    return Renderer.open(str(models / "base"), device="cpu")


@pytest.fixture
def family(models: Path) -> StableDiffusion:
    return StableDiffusion.load(Folder(models / "base"), Place(torch.device("cpu"), torch.float32))


def request(models: Path, **values: Any) -> RenderRequest:
    control = ControlUnit(kind="canny", image=models / "photo.png")
    return RenderRequest(
        **(
            {
                "prompt": "a cube",
                "width": 64,
                "height": 64,
                "steps": 2,
                "count": 2,
                "controls": (control,),
                "init_image": models / "photo.png",
            }
            | values
        )
    )


# Everywhere that memory is asked for while a request is drawn: (its name, the object, the function).
def points(renderer: Renderer, models: Path) -> dict[str, tuple[Any, str]]:
    family: Any = renderer.base(str(models / "base"))
    net: Any = renderer.engine.control(family, models / "controlnet-canny")
    return {
        "text": (family.text_encoder, "forward"),
        "hint": (net.hint_encoder, "forward"),
        "controlnet": (net.net, "forward"),
        "unet": (family.unet, "forward"),
        "encode": (family.vae, "encode"),
        "decode": (family.vae, "decode"),
    }


POINTS = ("text", "hint", "controlnet", "unet", "encode", "decode")


@contextmanager
def running_out(point: tuple[Any, str], when: Callable[[int, int], bool]) -> Iterator[list[int]]:
    """A function that finds no memory when(its how-manieth call, its rows); yields the rows of every call."""
    owner, name = point
    original, calls = getattr(owner, name), list[int]()

    def greedy(*arguments: Any, **options: Any) -> Any:
        first = next((value for value in (*arguments, *options.values()) if isinstance(value, Tensor)), torch.empty(0))
        calls.append(first.shape[0])
        if when(len(calls), first.shape[0]):
            raise torch.OutOfMemoryError(NO_MEMORY)
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, greedy)
        yield calls


def differences(some: list[Picture], others: list[Picture]) -> int:
    return max(
        int(np.abs(np.asarray(one.image).astype(int) - np.asarray(other.image)).max()) for one, other in zip(some, others, strict=True)
    )


@pytest.mark.parametrize("name", POINTS)
def test_wherever_memory_runs_out_it_is_said_in_one_line(name: str, renderer: Renderer, models: Path) -> None:
    renderer.base(str(models / "base")).forget_texts()
    with running_out(points(renderer, models)[name], lambda call, rows: True), pytest.raises(OutOfMemory) as caught:
        renderer.render(request(models))
    assert str(caught.value).startswith("no memory ")
    assert "\n" not in str(caught.value)
    assert NO_MEMORY not in str(caught.value)
    assert len(renderer.render(request(models))) == 2  # and the next request is drawn as if nothing had been


@pytest.mark.parametrize("name", ["controlnet", "unet", "encode", "decode"])
def test_once_is_got_over_and_changes_nothing(name: str, renderer: Renderer, models: Path) -> None:
    expected = renderer.render(request(models))
    with running_out(points(renderer, models)[name], lambda call, rows: call == 1):
        got = renderer.render(request(models))
    assert differences(got, expected) <= 1  # smaller batches add up in another order
    assert got[0].record.notes in [(HALVED.format(count=1),), (TILED,)]


@pytest.mark.parametrize(("name", "most"), [("unet", 2), ("controlnet", 2), ("decode", 1)])
def test_batches_are_halved_until_they_fit(name: str, most: int, renderer: Renderer, models: Path) -> None:
    """Rows are pictures, or twice as many under guidance."""
    asked = request(models, count=5, init_image=None)
    expected = renderer.render(asked)
    with running_out(points(renderer, models)[name], lambda call, rows: rows > most) as calls:
        got = renderer.render(asked)
    assert differences(got, expected) <= 1
    assert [picture.record.seed for picture in got] == [0, 1, 2, 3, 4]
    assert max(row for row in calls if row <= most) == most
    assert set(got[0].record.notes) == {HALVED.format(count=count) for count in (3, 2, 1)}


def test_the_rungs_come_in_order_and_are_recorded(renderer: Renderer, models: Path) -> None:
    family: Any = renderer.base(str(models / "base"))
    seen: list[tuple[bool, bool]] = []
    original = family.unet.forward

    def greedy(*arguments: Any, **options: Any) -> Any:
        seen.append((family.vae.use_tiling, hasattr(family.vae, "_hf_hook")))
        if len(seen) < 3:
            raise MemoryError
        return original(*arguments, **options)

    asked = request(models, count=1, init_image=None)
    expected = renderer.render(asked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family.unet, "forward", greedy)
        got = renderer.render(asked)
    assert seen[:3] == [(False, False), (True, False), (True, True)]
    assert not family.vae.use_tiling
    assert not hasattr(family.vae, "_hf_hook")
    assert got[0].record.notes == (OFFLOADED,)
    assert differences(got, expected) == 0


def test_the_message_names_a_size_that_fits(renderer: Renderer, models: Path) -> None:
    family: Any = renderer.base(str(models / "base"))
    original = family.unet.forward

    def greedy(sample: Tensor, *arguments: Any, **options: Any) -> Any:
        if sample[0, 0].numel() > 100:
            raise torch.OutOfMemoryError(NO_MEMORY)
        return original(sample, *arguments, **options)

    asked = request(models, width=128, height=128, count=1, init_image=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family.unet, "forward", greedy)
        with pytest.raises(OutOfMemory, match="no memory for 1 pictures of 128x128 on cpu: 72x72 fits without controls"):
            renderer.render(asked)
        smaller = asked.model_copy(update={"width": 72, "height": 72, "controls": ()})
        assert len(renderer.render(smaller)) == 1


def test_other_errors_are_not_swallowed(family: StableDiffusion) -> None:
    def broken(rows: range) -> Tensor:
        raise RuntimeError("something else")

    for count in (1, 3):
        with pytest.raises(RuntimeError, match="something else"):
            frugally(broken, range(count), family, [])


@pytest.mark.parametrize("stage", ["controlnet", "unet", "decode"])
@pytest.mark.parametrize("step", range(3))
def test_not_a_number_is_caught_whatever_made_it(stage: str, step: int, renderer: Renderer, models: Path) -> None:
    owner, name = points(renderer, models)[stage]
    original, calls = getattr(owner, name), [0]

    def spoil(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value / 0.0
        return type(value)(spoil(one) for one in value) if isinstance(value, (tuple, list)) else value

    def broken(*arguments: Any, **options: Any) -> Any:
        found = original(*arguments, **options)
        calls[0] += 1
        return spoil(found) if stage == "decode" or calls[0] == step + 1 else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, broken)
        with pytest.raises(BadModel, match=f"the {'picture is' if stage == 'decode' else 'latents are'} not finite after de"):
            renderer.render(request(models, steps=3, init_image=None))


def test_an_autoencoder_that_overflows_in_half_precision_is_asked_in_float32(family: StableDiffusion) -> None:
    """Its decoder is made to leave float16's range, and nothing else."""
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        family.vae.decoder.conv_in.weight *= 3e4
    notes: list[str] = []
    expected = decode(family, latents, notes=notes)
    assert notes == []
    family.vae.half()
    before = [weight.clone() for weight in family.vae.parameters()]
    got = decode(family, latents, notes=notes)
    assert notes == ["the autoencoder overflowed in float16: decoded in float32"]
    assert all(torch.equal(one, other) for one, other in zip(before, family.vae.parameters(), strict=True))
    assert (got - expected).abs().mean() < 0.05  # its weights have been rounded to float16
    with torch.no_grad():
        family.vae.decoder.conv_out.weight.fill_(float("nan"))
    with pytest.raises(BadModel, match="not finite after decoding in float16 and in float32: the autoencoder's weights are damaged"):
        decode(family, latents, notes=[])


def test_waiting_networks_come_back(family: StableDiffusion) -> None:
    text = family.encode_prompt("a cube")
    x, t = torch.randn(1, 4, 8, 8), torch.tensor(500.0)
    expected = family.predict(x, t, text, None), family.decode(x)
    with offloaded(family):
        got = family.predict(x, t, text, None), family.decode(x)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)
    assert not any("_hf_hook" in vars(network) for network in family.networks().values())


@pytest.fixture(scope="module")
def toyland() -> StableDiffusion:
    return StableDiffusion.load(Folder(ROOT / "models" / "toyland" / "base"), Place(torch.device("cpu"), torch.float32))


def scene(seed: int, size: int) -> Any:
    return np.ascontiguousarray(render(sample(seed), size).picture_HWC)


def test_tiles_are_chosen_by_size(renderer: Renderer, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family: Any = renderer.base(str(models / "base"))
    seen: list[bool] = []
    original = family.vae.decode
    monkeypatch.setattr(family.vae, "decode", lambda *a, **o: (seen.append(family.vae.use_tiling), original(*a, **o))[1])
    for tiles, limit in (("auto", 64 * 64 + 1), ("auto", 64 * 64), ("off", 0), ("on", 2**30)):
        monkeypatch.setattr("pipelines.passes.TILED_FROM_PX", limit)
        renderer.render(request(models, count=1, steps=1, tile_vae=tiles, init_image=None))
    assert seen == [False, True, False, True]


def test_the_linear_preview_shows_the_colours_of_the_embedded_model(toyland: StableDiffusion) -> None:
    """On pictures it was not fitted on: its mean error is under half the difference between two pictures (measured: 25 of 69 levels)."""
    preview = linear_preview(toyland)
    assert preview is linear_preview(toyland)  # fitted once
    unseen = [scene(seed, 128) for seed in range(100, 106)]
    latents = torch.cat([toyland.encode_image(picture) for picture in unseen])
    shown = np.stack(previews(preview, latents, 128, 128)).astype(float)
    wanted = np.stack(unseen).astype(float)
    assert np.abs(shown - wanted).mean() < 0.5 * np.abs(wanted - np.roll(wanted, 1, axis=0)).mean()


def test_small_autoencoders_show_the_steps_themselves(toyland: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = toyland.encode_image(scene(100, 64))
    assert torch.equal(default_preview(toyland)(latents), toyland.decode(latents))
    monkeypatch.setattr("pipelines.preview.SMALL_AUTOENCODER", 1000)
    assert default_preview(toyland) is linear_preview(toyland)


def test_the_linear_fit_is_exact_where_the_autoencoder_is_linear(family: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents made linearly from the mean colours are turned back into them."""
    mixing = torch.randn((4, 3), generator=torch.Generator().manual_seed(1))

    def encode(image_HWC: Any) -> Tensor:
        colours = nn.functional.interpolate(picture_to_tensor(image_HWC)[None], scale_factor=1 / 8, mode="area")
        return torch.einsum("bdhw,cd->bchw", colours, mixing) + 0.5

    monkeypatch.setattr(family, "encode_image", encode)
    preview = linear_preview(family)
    picture = synthetic_pictures(7, 64)[6]
    colours = nn.functional.interpolate(picture_to_tensor(picture)[None], scale_factor=1 / 8, mode="area")
    torch.testing.assert_close(preview(encode(picture)), colours, rtol=0, atol=1e-4)


def test_a_tiny_decoder_shows_the_steps_where_one_is_given(models: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)
    )
    tiny.save_pretrained(tmp_path / "tiny")
    renderer = Renderer.open(str(models / "base"), device="cpu", preview=str(tmp_path / "tiny"))
    assert isinstance(renderer.preview, TinyPreview)
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(renderer.preview(latents), tiny.eval().decode(latents).sample)
    shown: list[Any] = []
    renderer.render(request(models, count=1), lambda step: shown.append(step.preview()[0].shape))
    assert set(shown) == {(64, 64, 3)}
    with pytest.raises(LimnError, match="not an AutoencoderTiny"):
        Renderer.open(str(models / "base"), device="cpu", preview=str(models / "controlnet-canny"))


def test_memory_that_runs_out_between_the_passes(renderer: Renderer, models: Path) -> None:
    asked = request(models, count=2, init_image=None, hires=Hires(scale=1.5, upscaler="lanczos"))
    expected = renderer.render(asked)
    with ExitStack() as stack:
        stack.enter_context(running_out(points(renderer, models)["encode"], lambda call, rows: call == 1))
        got = renderer.render(asked)
    assert differences(got, expected) <= 1
    assert memory.is_out_of_memory(MemoryError())
