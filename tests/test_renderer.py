"""One request in, finished pictures out, on tiny real models: seeds, batches, controls, counts, cancellation, records, errors."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import controls
from core.errors import BadImage, BadModel, BadRequest, Cancelled, Mismatch, UserError
from core.provenance import read_record
from core.request import ControlUnit, RenderRequest
from pipelines import engine as engines
from renderer import Picture, Renderer, Step
from tests import tinymodels

PROMPT = "a red sphere left of a blue cube"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with its ControlNets for canny and depth beside it, and one for another width."""
    folder = tmp_path_factory.mktemp("models")
    tinymodels.build_base(folder / "base")
    for seed, kind in enumerate(("canny", "depth")):
        tinymodels.build_controlnet(folder / f"controlnet-{kind}", folder / "base", seed=seed + 1)
    tinymodels.build_base(folder / "wide", width=48)
    tinymodels.build_controlnet(folder / "wide-net", folder / "wide")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files to control with: a photo-like picture, a ready map and a mask of the left half."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    blocks = np.kron(random.integers(0, 256, (8, 8, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
    PIL.Image.fromarray(blocks).save(folder / "photo.png")
    PIL.Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / "depth.png")
    half = np.zeros((64, 64), np.uint8)
    half[:, :32] = 255
    PIL.Image.fromarray(half).save(folder / "left.png")
    return folder


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
    import renderer as module

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

    def on_step(step: Step) -> None:
        seen.append(step)
        previews.append(step.preview()[0])

    finished = renderer.render(request(), on_step)[0]
    assert [(step.index, step.steps) for step in seen] == [(i, 4) for i in range(4)]
    assert all(preview.shape == (64, 64, 3) and preview.dtype == np.uint8 for preview in previews)
    # The last step goes all the way to the denoised estimate.
    assert np.abs(previews[-1].astype(int) - pixels(finished)).max() <= 1


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
    assert record.controls[0].params == {"low": 50, "high": 200}
    assert record.controls[1].params == {}
    edges = controls.get("canny")
    score = edges.compare(picture.maps[0], np.asarray(picture.image), edges.parse_params({"low": 50}))
    assert score is not None
    assert picture.fidelity[0] == score
    assert record.controls[0].fidelity is not None
    assert record.controls[0].fidelity.value == score.value


def test_a_long_prompt_is_reported_not_hidden(renderer: Renderer) -> None:
    notes = renderer.render(request(steps=1, prompt="sphere " * 100 + "cube"))[0].record.notes
    assert len(notes) == 1
    assert notes[0].startswith("the prompt is longer than the text encoder takes; dropped: ")
    assert notes[0].endswith("cube'")


def test_requests_choose_their_model(renderer: Renderer, models: Path) -> None:
    own = renderer.render(request())[0]
    assert own.record.request.model == str(models / "base")
    other = renderer.render(request(model=str(models / "wide")))[0]
    assert other.record.request.model == str(models / "wide")
    assert np.abs(pixels(own) - pixels(other)).max() > 5


def test_sizes_that_are_no_square(renderer: Renderer, pictures: Path) -> None:
    picture = renderer.render(request(width=72, height=104, controls=(canny(pictures),)))[0]
    assert picture.image.size == (72, 104)


def broken_copy(models: Path, tmp_path: Path, name: str = "base") -> Path:
    return Path(shutil.copytree(models / name, tmp_path / name))


def refused(expected: type[UserError], words: str, model: str | Path, **values: Any) -> None:
    """One line that says `words`, and nothing but that error."""
    with pytest.raises(expected, match=words) as caught:
        Renderer.open(str(model), device="cpu").render(request(model=str(model), **values))
    assert "\n" not in str(caught.value)


def test_models_that_are_not_there(models: Path, tmp_path: Path) -> None:
    refused(BadModel, r"no model '/nowhere'", "/nowhere")
    refused(BadModel, r"model_index.json' is missing", tmp_path)
    refused(BadModel, r"hub model 'owner/name' cannot be fetched", "owner/name")
    refused(BadModel, r"is a single file", models / "base" / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "model.pkl"])
def test_pickles_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    refused(BadModel, r"is a pickle file, and reading one can run any code: use the model's safetensors version", tmp_path / name)


def test_weights_only_as_pickle_are_refused(models: Path, tmp_path: Path) -> None:
    base = broken_copy(models, tmp_path)
    weights = base / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    refused(BadModel, r"has weights only as diffusion_pytorch_model.bin, a pickle", base)


def test_damaged_models(models: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = broken_copy(models, tmp_path)
    for part, name in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        weights = base / part / f"{name}.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[: len(whole) // 2])
        refused(BadModel, rf"{part}/{name}.safetensors' are damaged or cut short", base)
        weights.write_bytes(b"not safetensors at all")
        refused(BadModel, rf"{part}/{name}.safetensors' are damaged or cut short", base)
        tensors = load_file(models / "base" / part / f"{name}.safetensors")
        first = sorted(tensors)[0]
        save_file({key: value for key, value in tensors.items() if key != first}, weights, metadata={"format": "pt"})
        refused(BadModel, rf"{part}/{name}.safetensors' lack 1 tensors \({first}\)", base)
        cut = {key: value[:1].clone() if key == first else value for key, value in tensors.items()}
        save_file(cut, weights, metadata={"format": "pt"})
        refused(BadModel, rf"{part}/{name}.safetensors' do not fit their config.json", base)
        weights.unlink()
        refused(BadModel, rf"no weights in .*{part}'", base)
        weights.write_bytes(whole)
    (base / "unet" / "config.json").write_text("{")
    refused(BadModel, r"unet/config.json' is damaged \(not JSON\)", base)
    shutil.rmtree(base / "tokenizer")
    refused(BadModel, r"has no 'tokenizer' folder", base)


def test_parts_that_do_not_belong_together(models: Path, tmp_path: Path) -> None:
    base = broken_copy(models, tmp_path)
    shutil.rmtree(base / "text_encoder")
    shutil.copytree(models / "wide" / "text_encoder", base / "text_encoder")
    refused(Mismatch, r"the UNet reads text of width 32, the text encoder writes 48", base)


def test_models_of_other_families(models: Path, tmp_path: Path) -> None:
    base = broken_copy(models, tmp_path)
    index = json.loads((base / "model_index.json").read_text())
    index |= {"_class_name": "StableDiffusionXLPipeline", "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}
    (base / "model_index.json").write_text(json.dumps(index))
    refused(BadModel, r"is StableDiffusionXLPipeline: known families are sd", base)


def test_epsilon_on_a_table_that_ends_in_noise(models: Path, tmp_path: Path) -> None:
    base = broken_copy(models, tmp_path)
    config = json.loads((base / "scheduler" / "scheduler_config.json").read_text())
    (base / "scheduler" / "scheduler_config.json").write_text(json.dumps(config | {"rescale_betas_zero_snr": True}))
    refused(Mismatch, r"ends in pure noise, where epsilon says nothing", base)


def test_controlnets_that_do_not_fit(models: Path, pictures: Path, tmp_path: Path) -> None:
    base = models / "base"
    refused(Mismatch, r"cross-attention width 48, .* has width 32", base, controls=(canny(pictures, model=str(models / "wide-net")),))
    refused(BadModel, r"is UNet2DConditionModel, not a ControlNetModel", base, controls=(canny(pictures, model=str(base / "unet")),))
    other = broken_copy(models, tmp_path, "controlnet-canny")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"block_out_channels": [32, 96]}))
    refused(Mismatch, r"block_out_channels \[32, 96\], the base model \[32, 64\]", base, controls=(canny(pictures, model=str(other)),))
    (other / "config.json").write_text(json.dumps(config | {"addition_embed_type": "text_time"}))
    refused(Mismatch, r"is an SDXL ControlNet", base, controls=(canny(pictures, model=str(other)),))
    (tmp_path / "net.pth").write_bytes(b"")
    refused(BadModel, r"is a pickle file", base, controls=(canny(pictures, model=str(tmp_path / "net.pth")),))
    pose = ControlUnit(kind="pose", image=pictures / "depth.png", ready=True)
    refused(UserError, r"pose", base, controls=(pose,))  # no ControlNet beside the model, and nothing can be fetched


def test_controls_that_cannot_be_used(models: Path, pictures: Path, tmp_path: Path) -> None:
    base = models / "base"
    refused(
        BadImage,
        r"control 0 \(canny\): image '.*none.png' is not a file",
        base,
        controls=(ControlUnit(kind="canny", image=tmp_path / "none.png"),),
    )
    refused(BadImage, r"mask '.*none.png' is not a file", base, controls=(canny(pictures, mask=tmp_path / "none.png"),))
    refused(
        BadRequest,
        r"unknown control 'cany': did you mean 'canny'",
        base,
        controls=(ControlUnit(kind="cany", image=pictures / "photo.png"),),
    )
    refused(BadRequest, r"unknown canny setting 'lo'", base, controls=(canny(pictures, params={"lo": 3}),))
    (tmp_path / "no-picture.png").write_text("hello")
    refused(BadImage, r"no-picture.png", base, controls=(ControlUnit(kind="canny", image=tmp_path / "no-picture.png"),))


def test_settings_that_cannot_be_used(models: Path) -> None:
    refused(BadRequest, r"unknown sampler 'eular': did you mean 'euler'\?", models / "base", sampler="eular")
    refused(BadRequest, r"unknown schedule 'carras': did you mean 'karras'\?", models / "base", schedule="carras")
    refused(BadRequest, r"steps = 1000: .* at most 999", models / "base", sampler="dpmpp_2m", steps=1000)
    with pytest.raises(BadRequest, match=r"device 'abacus' is not on this machine"):
        Renderer.open(str(models / "base"), device="abacus")
    with pytest.raises(BadRequest, match=r"unknown dtype 'float23'"):
        Renderer.open(str(models / "base"), device="cpu", dtype="float23")


def test_weights_in_half_precision_are_cast_up(models: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = broken_copy(models, tmp_path)
    for weights in base.glob("*/*.safetensors"):
        save_file({key: value.half() for key, value in load_file(weights).items()}, weights, metadata={"format": "pt"})
    family: Any = Renderer.open(str(base), device="cpu").engine.base(base)
    for network in (family.unet, family.vae, family.text_encoder):
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_numbers_that_overflow_are_named(models: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = broken_copy(models, tmp_path)
    for part, stage in (("vae", "not finite after decoding"), ("unet", "not finite after denoising")):
        weights = base / part / "diffusion_pytorch_model.safetensors"
        tensors = load_file(weights)
        last = "decoder.conv_out.bias" if part == "vae" else "conv_out.bias"
        save_file(tensors | {last: torch.full_like(tensors[last], torch.nan)}, weights, metadata={"format": "pt"})
        refused(BadModel, stage, base)


def test_models_are_loaded_once_and_the_oldest_go(models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pipelines.families.sd import StableDiffusion

    loaded: list[Path] = []
    load = StableDiffusion.load.__func__  # type: ignore[attr-defined]

    def counted(cls: Any, folder: Path, place: Any) -> Any:
        loaded.append(folder)
        return load(cls, folder, place)

    monkeypatch.setattr(StableDiffusion, "load", classmethod(counted))
    engine = engines.Engine(engines.choose_place("cpu"))
    third = broken_copy(models, tmp_path)
    for folder in (models / "base", models / "wide", models / "base", third, models / "base", models / "wide"):
        engine.base(folder)
    assert loaded == [models / "base", models / "wide", third, models / "wide"]


def test_toyland_without_its_files_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engines, "TOYLAND", tmp_path)
    with pytest.raises(BadModel, match=r"embedded model is missing .* restore models/toyland"):
        Renderer.open("toyland", device="cpu")
