"""One request in, finished pictures out, on tiny real models: seeds, batches, controls, counts, cancellation, records, errors."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import controls
from core.errors import Cancelled, OutOfMemory
from core.provenance import read_record
from core.request import ControlUnit, RenderRequest
from pipelines import engine as engines
from renderer import Picture, Renderer, Step
from tests import tinymodels

PROMPT = "a red sphere left of a blue cube"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodels.build_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodels.build_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def renderer(models: Path) -> Renderer:
    return Renderer.open(str(models / "base"), device="cpu")


@pytest.fixture
def calls(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """How often ControlNets, hint encoders and text encoders really ran, counted by forward hooks."""
    from pipelines.families.sd import LoadedControlNet

    counts = {"controlnet": 0, "hint": 0, "text": 0, "unet": 0}
    hooks: list[Any] = []

    def count(module: torch.nn.Module, what: str) -> None:
        def hook(*_: Any) -> None:
            counts[what] += 1

        hooks.append(module.register_forward_hook(hook))

    made = LoadedControlNet.__init__

    def counted(self: LoadedControlNet, *arguments: Any) -> None:
        made(self, *arguments)
        count(self.net, "controlnet")
        count(self.hint_encoder, "hint")

    monkeypatch.setattr(LoadedControlNet, "__init__", counted)
    fresh = Renderer.open(renderer.model, device="cpu")
    monkeypatch.setattr(renderer, "engine", fresh.engine)
    family: Any = fresh.engine.base(Path(renderer.model))
    count(family.text_encoder, "text")
    count(family.unet, "unet")
    yield counts
    for hook in hooks:
        hook.remove()


def request(**values: Any) -> RenderRequest:
    return RenderRequest(**({"prompt": PROMPT, "width": 64, "height": 64, "steps": 4, "seed": 7} | values))


def canny(pictures: Path, **values: Any) -> ControlUnit:
    return ControlUnit(kind="canny", image=pictures / "photo.png", **values)


def depth(pictures: Path, **values: Any) -> ControlUnit:
    return ControlUnit(kind="depth", image=pictures / "depth.png", ready=True, **values)


def pixels(picture: Picture) -> Any:
    return np.asarray(picture.image).astype(int)


def assert_close(one: Picture, another: Picture) -> None:
    """Equal to rounding: batches of other sizes add up in another order, which may tip a level of 255 over."""
    assert np.abs(pixels(one) - pixels(another)).max() <= 1


def test_the_same_request_gives_the_same_bytes(renderer: Renderer, pictures: Path, tmp_path: Path) -> None:
    asked = request(controls=(canny(pictures),))
    paths = [renderer.render(asked)[0].save(tmp_path / name) for name in "ab"]
    assert paths[0].name == paths[1].name
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral"])
def test_picture_i_is_seed_plus_i_alone(renderer: Renderer, pictures: Path, sampler: str) -> None:
    together = renderer.render(request(count=3, sampler=sampler, controls=(canny(pictures),)))
    assert [picture.record.seed for picture in together] == [7, 8, 9]
    for i, picture in enumerate(together):
        assert_close(picture, renderer.render(request(seed=7 + i, sampler=sampler, controls=(canny(pictures),)))[0])
    assert np.abs(pixels(together[0]) - pixels(together[1])).max() > 20


def test_batches_are_bounded_and_change_nothing(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    from renderer import job as module

    steps: list[range] = []
    whole = renderer.render(request(count=5, steps=2), lambda step: steps.append(step.pictures))
    assert set(steps) == {range(5)}
    monkeypatch.setitem(module._BATCH_PX, "cpu", 2 * 64 * 64)
    parts = renderer.render(request(count=5, steps=2), lambda step: steps.append(step.pictures))
    assert steps[2:] == [range(2)] * 2 + [range(2, 4)] * 2 + [range(4, 5)] * 2
    for one, another in zip(whole, parts, strict=True):
        assert_close(one, another)


def test_prompt_negative_and_control_matter(renderer: Renderer, pictures: Path) -> None:
    plain = pixels(renderer.render(request())[0])
    for other in (
        request(prompt="a person on snow at night"),
        request(negative_prompt="grass"),
        request(guidance_scale=1.0),
        request(controls=(canny(pictures),)),
    ):
        assert np.abs(pixels(renderer.render(other)[0]) - plain).max() > 5


def test_a_control_runs_in_its_window_only(renderer: Renderer, pictures: Path, calls: dict[str, int]) -> None:
    renderer.render(request(steps=10, controls=(canny(pictures, start=0.2, end=0.7),)))
    assert calls == {"controlnet": 5, "hint": 1, "text": 2, "unet": 10}


def test_a_control_without_weight_is_not_run(renderer: Renderer, pictures: Path, calls: dict[str, int]) -> None:
    with_nothing = renderer.render(request(controls=(canny(pictures, weight=0.0),)))[0]
    assert calls["controlnet"] == 0
    assert np.array_equal(pixels(with_nothing), pixels(renderer.render(request())[0]))


def test_hints_are_embedded_once_per_unique_image(renderer: Renderer, pictures: Path, calls: dict[str, int]) -> None:
    twice = (canny(pictures, end=0.5), canny(pictures, start=0.5), depth(pictures))
    renderer.render(request(count=3, controls=twice))
    assert calls["hint"] == 2
    assert calls["controlnet"] == 2 + 2 + 4
    assert calls["text"] == 2  # prompt and negative prompt, once for all pictures


def test_two_controls_are_summed(renderer: Renderer, pictures: Path) -> None:
    """Each half of a control's weight twice is the control once, since residuals add up linearly."""
    once = renderer.render(request(controls=(canny(pictures, weight=0.8),)))[0]
    halves = renderer.render(request(controls=(canny(pictures, weight=0.4), canny(pictures, weight=0.4))))[0]
    assert_close(once, halves)


def test_region_mask(renderer: Renderer, pictures: Path) -> None:
    everywhere = np.full((64, 64), 255, np.uint8)
    PIL.Image.fromarray(everywhere).save(pictures / "white.png")
    PIL.Image.fromarray(255 - everywhere).save(pictures / "black.png")
    full, plain = (pixels(renderer.render(request(controls=units))[0]) for units in ((canny(pictures),), ()))
    masked = {
        name: pixels(renderer.render(request(controls=(canny(pictures, mask=pictures / f"{name}.png"),)))[0])
        for name in ("white", "black", "left")
    }
    assert np.array_equal(masked["white"], full)
    assert np.array_equal(masked["black"], plain)
    assert np.abs(masked["left"] - full).max() > 5
    assert np.abs(masked["left"] - plain).max() > 5


def test_modes_differ(renderer: Renderer, pictures: Path) -> None:
    drawn = [
        pixels(renderer.render(request(controls=(canny(pictures, mode=mode),)))[0]) for mode in ("balanced", "prompt", "control", "guess")
    ]
    for i, one in enumerate(drawn):
        for another in drawn[i + 1 :]:
            assert np.abs(one - another).max() > 1


def test_every_step_can_be_previewed(renderer: Renderer) -> None:
    seen: list[Step] = []
    previews: list[Any] = []
    decoded: list[Any] = []

    def on_step(step: Step) -> None:
        seen.append(step)
        previews.append(step.preview()[0])
        decoded.append(step.decode()[0])

    finished = renderer.render(request(), on_step)[0]
    assert [(step.index, step.steps) for step in seen] == [(i, 4) for i in range(4)]
    assert all(preview.shape == (64, 64, 3) and preview.dtype == np.uint8 for preview in previews)
    # The last step goes all the way to the denoised estimate.
    assert np.abs(decoded[-1].astype(int) - pixels(finished)).max() <= 1


def test_cancelled_within_a_step_and_nothing_is_left_behind(renderer: Renderer, calls: dict[str, int]) -> None:
    before = renderer.render(request())[0]
    calls["unet"] = 0

    def on_step(step: Step) -> None:
        if step.index == 1:
            raise Cancelled("stopped by the test")

    with pytest.raises(Cancelled):
        renderer.render(request(), on_step)
    assert calls["unet"] == 2
    assert np.array_equal(pixels(renderer.render(request())[0]), pixels(before))


def test_running_out_of_memory_is_explained(renderer: Renderer) -> None:
    """The allocator's own error, whoever meets it while drawing; other errors pass through."""

    def greedy(step: Step) -> None:
        torch.empty(1 << 50)

    with pytest.raises(OutOfMemory, match=r"no memory for 1 pictures of 64x64 on cpu: no smaller size fits either; use a smaller"):
        renderer.render(request(), greedy)
    with pytest.raises(OutOfMemory, match=r"no memory for 1 pictures of 128x96 on cpu: 104x80 fits without controls"):
        renderer.render(request(width=128, height=96), greedy)

    def broken(step: Step) -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        renderer.render(request(), broken)


def test_record_and_fidelity(renderer: Renderer, models: Path, pictures: Path, tmp_path: Path) -> None:
    asked = request(count=2, controls=(canny(pictures, params={"low": 50}), depth(pictures)))
    picture = renderer.render(asked)[1]
    record = read_record(picture.save(tmp_path))
    assert record == picture.record
    assert record.request == asked.model_copy(update={"model": str(models / "base")})
    assert (record.index, record.seed) == (1, 8)
    assert [(weight.part, weight.file) for weight in record.weights] == [
        ("base", "unet/diffusion_pytorch_model.safetensors"),
        ("base", "vae/diffusion_pytorch_model.safetensors"),
        ("base", "text_encoder/model.safetensors"),
        ("control 0", "diffusion_pytorch_model.safetensors"),
        ("control 1", "diffusion_pytorch_model.safetensors"),
    ]
    assert record.controls[0].params == controls.get("canny").parse_params({"low": 50, "high": 200}).model_dump(mode="json")
    assert record.controls[1].params == {}
    edges = controls.get("canny")
    score = edges.compare(picture.maps[0], np.asarray(picture.image), edges.parse_params({"low": 50}))
    assert score is not None
    assert picture.fidelity[0] == score
    assert record.controls[0].fidelity is not None
    assert record.controls[0].fidelity.value == score.value


def test_a_long_prompt_is_read_to_its_end(renderer: Renderer) -> None:
    long = "sphere " * 100
    one, other = (renderer.render(request(steps=2, prompt=long + end))[0] for end in ("cube", "grass"))
    assert one.record.notes == ()
    assert np.abs(pixels(one) - pixels(other)).max() > 0


def test_requests_choose_their_model(renderer: Renderer, models: Path) -> None:
    own = renderer.render(request())[0]
    assert own.record.request.model == str(models / "base")
    other = renderer.render(request(model=str(models / "wide")))[0]
    assert other.record.request.model == str(models / "wide")
    assert np.abs(pixels(own) - pixels(other)).max() > 5


def test_sizes_that_are_no_square(renderer: Renderer, pictures: Path) -> None:
    picture = renderer.render(request(width=72, height=104, controls=(canny(pictures),)))[0]
    assert picture.image.size == (72, 104)


def test_weights_in_half_precision_are_cast_up(models: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = Path(shutil.copytree(models / "base", tmp_path / "base"))
    for weights in base.glob("*/*.safetensors"):
        save_file({key: value.half() for key, value in load_file(weights).items()}, weights, metadata={"format": "pt"})
    family: Any = Renderer.open(str(base), device="cpu").engine.base(base)
    for network in (family.unet, family.vae, family.text_encoder):
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_models_are_loaded_once_and_the_oldest_go(models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pipelines.families.sd import StableDiffusion

    loaded: list[Path] = []
    load = StableDiffusion.load.__func__  # type: ignore[attr-defined]

    def counted(cls: Any, checkpoint: Any, place: Any) -> Any:
        loaded.append(checkpoint.path)
        return load(cls, checkpoint, place)

    monkeypatch.setattr(StableDiffusion, "load", classmethod(counted))
    engine = engines.Engine(engines.choose_place("cpu"))
    third = Path(shutil.copytree(models / "base", tmp_path / "base"))
    for folder in (models / "base", models / "wide", models / "base", third, models / "base", models / "wide"):
        engine.base(folder)
    assert loaded == [models / "base", models / "wide", third, models / "wide"]
