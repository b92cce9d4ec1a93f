"""What a request can ask beyond prompt and control, on tiny real models: where to begin, what to paint, vary, enlarge, and how the
prompt's syntax, wildcards and LoRAs reach the picture and its record."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from core.errors import BadImage, BadModel, BadRequest, Cancelled
from core.provenance import Record, read_record
from core.request import ControlUnit, Hires, Inversion, LoraUnit, RenderRequest
from pipelines.images import tensor_to_pictures
from renderer import Picture, Renderer
from tests import tinymodels

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "a red sphere left of a blue cube"
SECOND = ("[a red sphere:snow at night:2.0]", "[a red sphere:snow at night:1.0]")  # the change comes after both passes, or between them
LATER = (
    "vae",
    "shift",
    "eta",
    "true_cfg_scale",
    "pag_scale",
    "clip_skip",
    "loras",
    "init_image",
    "inversion",
    "resize",
    "strength",
    "mask",
    "paste_back",
    "hires",
    "tile_vae",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tinymodels.build_base(folder / "base")
    tinymodels.build_controlnet(folder / "controlnet-canny", folder / "base")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodels.build_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def renderer(models: Path) -> Renderer:
    return Renderer.open(str(models / "base"), device="cpu")


def request(**values: Any) -> RenderRequest:
    return RenderRequest(**({"prompt": PROMPT, "width": 64, "height": 64, "steps": 4, "seed": 7} | values))


def pixels(picture: Picture) -> Any:
    return np.asarray(picture.image).astype(int)


def one(renderer: Renderer, **values: Any) -> Picture:
    return renderer.render(request(**values))[0]


def passed(renderer: Renderer, picture: Path) -> Any:
    """A picture through the autoencoder and back."""
    family = renderer.engine.base(Path(renderer.model))
    return tensor_to_pictures(family.decode(family.encode_image(np.array(PIL.Image.open(picture)))))[0].astype(int)


def test_strength_goes_from_the_picture_to_next_to_nothing_of_it(renderer: Renderer, pictures: Path) -> None:
    """0 is the autoencoder's round trip, without a single step; between, further and further away."""
    photo = pictures / "photo.png"
    kept = passed(renderer, photo)
    drawn = [one(renderer, init_image=photo, strength=strength) for strength in (0.0, 0.25, 0.5, 1.0)]
    assert np.array_equal(pixels(drawn[0]), kept)
    distances = [np.abs(pixels(picture) - kept).mean() for picture in drawn]
    assert distances == sorted(distances)
    assert distances[1] > 0
    assert drawn[1].record.init_sha256 is not None
    steps: list[int] = []
    renderer.render(request(init_image=photo, strength=0.5), lambda step: steps.append(step.steps))
    assert steps == [2, 2]
    with pytest.raises(BadRequest, match="none is left"):
        one(renderer, init_image=photo, strength=0.1)


def test_outside_the_mask_the_picture_stays(renderer: Renderer, pictures: Path, tmp_path: Path) -> None:
    photo = np.asarray(PIL.Image.open(pictures / "photo.png")).astype(int)
    values: dict[str, Any] = {"init_image": pictures / "photo.png", "mask": pictures / "left.png"}
    for strength in (0.5, 1.0):
        pasted = one(renderer, **values, strength=strength)
        assert np.array_equal(pixels(pasted)[:, 32:], photo[:, 32:])
        assert np.abs(pixels(pasted)[:, :32] - photo[:, :32]).mean() > 5
    unpasted = one(renderer, **values, strength=1.0, paste_back=False)
    assert np.array_equal(pixels(unpasted)[:, :32], pixels(pasted)[:, :32])
    assert np.abs(pixels(unpasted)[:, 32:] - photo[:, 32:]).max() > 0
    record = read_record(pasted.save(tmp_path))
    assert record.mask_sha256 is not None
    assert record == pasted.record


def test_a_picture_begun_from_another_is_itself_in_a_batch(renderer: Renderer, pictures: Path) -> None:
    values: dict[str, Any] = {"init_image": pictures / "photo.png", "mask": pictures / "left.png", "sampler": "dpmpp_2m_sde"}
    for i, picture in enumerate(renderer.render(request(count=3, **values))):
        assert np.abs(pixels(picture) - pixels(one(renderer, seed=7 + i, **values))).max() <= 1  # batches add up in another order


def test_files_to_begin_from_are_checked(renderer: Renderer, pictures: Path, tmp_path: Path) -> None:
    PIL.Image.new("RGB", (32, 64)).save(tmp_path / "small.png")
    with pytest.raises(BadRequest, match=r"mask 'small\.png' is 32x64, its picture 64x64"):
        one(renderer, init_image=pictures / "photo.png", mask=tmp_path / "small.png")
    with pytest.raises(BadImage, match=r"init_image '.*absent.png' is not a file"):
        one(renderer, init_image=tmp_path / "absent.png")
    with pytest.raises(ValueError, match="mask without init_image"):
        request(mask=pictures / "left.png")
    with pytest.raises(ValueError, match="hires with init_image"):
        request(init_image=pictures / "photo.png", hires=Hires())


@pytest.mark.parametrize(("sampler", "strength"), [("euler", 1.0), ("heun", 0.5), ("ddim", 1.0)])
def test_a_picture_is_drawn_again_from_its_own_noise(sampler: str, strength: float) -> None:
    """With its own prompt, unguided, it comes back as the autoencoder has it: the embedded model, for random weights lead nowhere back."""
    embedded = Renderer.open("toyland", device="cpu")
    family, photo = embedded.engine.base(ROOT / "models/toyland/base"), ROOT / "examples/shapes.png"
    kept = tensor_to_pictures(family.decode(family.encode_image(np.array(PIL.Image.open(photo)))))[0].astype(int)
    values: dict[str, Any] = {"prompt": PROMPT, "init_image": photo, "sampler": sampler, "strength": strength, "steps": 12}
    back = Inversion(prompt=PROMPT)
    again, other_seed, elsewhere = (
        np.asarray(embedded.render(RenderRequest(**values | more))[0].image).astype(int)
        for more in (
            {"inversion": back, "guidance_scale": 1.0},
            {"inversion": back, "guidance_scale": 1.0, "seed": 8},
            {"inversion": Inversion(prompt="snow at night"), "guidance_scale": 1.0},
        )
    )
    assert ((again - kept) ** 2).mean() < 255**2 / 10**4.5  # 45 dB; measured: 58 at 20 steps
    assert np.array_equal(again, other_seed)
    assert ((elsewhere - kept) ** 2).mean() > ((again - kept) ** 2).mean()


def test_what_cannot_be_inverted_is_said(renderer: Renderer, pictures: Path) -> None:
    photo = pictures / "photo.png"
    with pytest.raises(BadRequest, match="'dpmpp_2m' cannot be inverted: use one of ddim, euler, heun"):
        one(renderer, init_image=photo, inversion=Inversion(), sampler="dpmpp_2m")
    with pytest.raises(BadRequest, match="cannot be walked back; set eta to 0"):
        one(renderer, init_image=photo, inversion=Inversion(), sampler="ddim", eta=0.5)
    with pytest.raises(ValueError, match="inversion without init_image"):
        request(inversion=Inversion())
    with pytest.raises(ValueError, match="inversion with mask"):
        request(init_image=photo, mask=pictures / "left.png", inversion=Inversion())


@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
def test_hires_draws_twice(upscaler: Any, renderer: Renderer, pictures: Path) -> None:
    control = ControlUnit(kind="canny", image=pictures / "photo.png")
    steps: list[tuple[int, int]] = []
    hires = Hires(scale=1.5, upscaler=upscaler, steps=6, strength=0.5)
    asked = request(hires=hires, controls=(control,), count=2)
    drawn = renderer.render(asked, lambda step: steps.append((step.index, step.steps)))
    assert steps == [(i, 7) for i in range(7)]
    assert drawn[0].image.size == (96, 96)
    assert drawn[0].maps[0].shape == (96, 96, 3)
    assert drawn[0].fidelity[0] is not None
    alone = one(renderer, seed=8, hires=hires, controls=(control,))
    assert np.abs(pixels(drawn[1]) - pixels(alone)).max() <= 1
    without = one(renderer, hires=hires.model_copy(update={"with_control": False}), controls=(control,))
    assert np.abs(pixels(without) - pixels(drawn[0])).max() > 1
    with pytest.raises(BadRequest, match="over the limit of 4096"):
        one(renderer, width=2048, height=64, hires=Hires(scale=4.0))


def test_previews_of_both_stages_have_their_size(renderer: Renderer) -> None:
    sizes: list[tuple[int, ...]] = []
    renderer.render(request(hires=Hires(scale=1.5, strength=0.5)), lambda step: sizes.append(step.preview()[0].shape))
    assert sizes == [(64, 64, 3)] * 4 + [(96, 96, 3)] * 2


def test_variations_are_between_two_seeds(renderer: Renderer) -> None:
    seed, other = one(renderer, seed=7), one(renderer, seed=40)
    assert np.array_equal(pixels(one(renderer, variation_seed=40, variation_strength=0.0)), pixels(seed))
    assert np.abs(pixels(one(renderer, variation_seed=40, variation_strength=1.0)) - pixels(other)).max() <= 1
    batch = renderer.render(request(variation_seed=40, variation_strength=0.2, count=2))
    assert [picture.record.seed for picture in batch] == [7, 7]
    alone = one(renderer, variation_seed=41, variation_strength=0.2)
    assert np.abs(pixels(batch[1]) - pixels(alone)).max() <= 1
    assert batch[1].record.file_name() == alone.record.file_name()
    assert len({picture.record.file_name() for picture in batch}) == 2
    assert "Variation seed: 41, Variation seed strength: 0.2" in batch[1].record.infotext()


def test_prompt_syntax_reaches_the_picture(renderer: Renderer) -> None:
    def drawn(prompt: str) -> Any:
        return pixels(one(renderer, prompt=prompt))

    plain = drawn("a red sphere")
    assert np.abs(drawn("a red sphere # and a remark") - plain).max() == 0
    assert np.abs(drawn("a (red:1.5) sphere") - plain).max() > 0
    assert np.abs(drawn("a red sphere AND snow at night") - plain).max() > 0
    assert np.abs(drawn("[a red sphere:snow at night:4]") - plain).max() == 0  # the change comes after the last step
    assert np.abs(drawn("[a red sphere:snow at night:2]") - plain).max() > 0
    assert np.abs(drawn("[snow at night:a red sphere:0]") - plain).max() == 0
    both = {name: pixels(one(renderer, prompt=name, hires=Hires(scale=1.5))) for name in ("a red sphere", *SECOND)}
    assert [bool(np.abs(both[name] - both["a red sphere"]).max()) for name in SECOND] == [False, True]
    with pytest.raises(BadRequest, match="add up to 0 or less"):
        drawn("a red sphere :1 AND snow :-1")


def test_wildcards_are_drawn_for_each_picture_and_recorded(renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wildcards").mkdir()
    Path("wildcards/colour.txt").write_text("red\nblue\nyellow\n")
    drawn = renderer.render(request(prompt="a __colour__ {sphere|cube}", count=6))
    prompts = [picture.record.prompt for picture in drawn]
    assert all(prompt is not None and "_" not in prompt and "{" not in prompt for prompt in prompts)
    assert len(set(prompts)) > 1
    for i in (0, 5):
        assert np.abs(pixels(drawn[i]) - pixels(one(renderer, prompt=prompts[i], seed=7 + i))).max() <= 1
        assert drawn[i].record.request.prompt == "a __colour__ {sphere|cube}"
        assert drawn[i].record.infotext().startswith(str(prompts[i]))
    with pytest.raises(BadRequest, match="did you mean 'colour'"):
        one(renderer, prompt="a __color__ sphere")


def test_wildcards_and_loras_lie_in_folders_of_several_places(
    renderer: Renderer, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the base model, in the working directory, in Limn's own folder; the first that has a name is asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIMN_MODELS", str(tmp_path / "own"))
    beside, here, own = models / "wildcards", tmp_path / "wildcards", tmp_path / "own" / "wildcards"
    for folder, name in ((beside, "beside"), (here, "here"), (own, "own")):
        folder.mkdir(parents=True)
        (folder / f"{name}.txt").write_text(name)
        (folder / "all.txt").write_text(name)
    prompt = "__beside__ __here__ __own__ __all__"
    try:
        assert renderer.render(request(prompt=prompt))[0].record.prompt == "beside here own beside"
        assert [finding.text for finding in renderer.examine(request(prompt=prompt)) if finding.error] == []
    finally:
        shutil.rmtree(beside)
    build_lora(tmp_path / "own" / "loras" / "kept.safetensors")
    assert renderer.render(request(prompt="a cube <lora:kept>"))[0].record.weights[-1].file == "kept.safetensors"


def test_embeddings_and_loras_are_recorded_with_the_pictures_that_name_them(renderer: Renderer, models: Path) -> None:
    """One that was trained on is read anew; a picture of a batch names the files that it would name alone."""
    from safetensors.torch import save_file

    file = models / "embeddings" / "my-style.safetensors"
    file.parent.mkdir()
    build_lora(models / "loras" / "own.safetensors")
    asked, drawn = request(prompt="a {cube <lora:own>|(my-style:1.2) cube}", count=6), []
    try:
        for seed in (0, 1):
            save_file({"emb_params": torch.randn(2, 32, generator=torch.Generator().manual_seed(seed))}, file)
            drawn.append(renderer.render(asked))
            for picture in drawn[-1]:
                words, named = str(picture.record.prompt), {weight.part: weight for weight in picture.record.weights[3:]}
                assert set(named) == ({"lora 0"} if "lora" in words else {"embedding 0"})
                alone = renderer.render(request(prompt=words, seed=picture.record.seed))[0].record
                assert alone.weights == picture.record.weights
                assert alone.file_name() == picture.record.file_name()
    finally:
        shutil.rmtree(file.parent)
    for before, after in zip(*drawn, strict=True):
        same = "lora" in str(before.record.prompt)
        assert (before.record.file_name() == after.record.file_name()) == same
        assert np.array_equal(pixels(before), pixels(after)) == same
    assert len({picture.record.prompt for picture in drawn[0]}) == 2


def build_lora(path: Path, seed: int = 0) -> Path:
    """A LoRA of rank 2 for the tiny UNet's cross-attention."""
    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(seed)
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v"
    path.parent.mkdir(exist_ok=True)
    tensors = {
        f"{layer}.lora_down.weight": torch.randn(2, 32, generator=random),
        f"{layer}.lora_up.weight": torch.randn(64, 2, generator=random),
    }
    save_file(tensors, path)
    return path


def test_loras_come_and_go_without_a_trace(renderer: Renderer, models: Path) -> None:
    build_lora(models / "loras" / "bold.safetensors")
    plain = pixels(one(renderer))
    named = one(renderer, prompt=PROMPT + "<lora:bold:0.8>")
    asked = one(renderer, loras=(LoraUnit(name="bold", weight=0.8),))
    assert np.abs(pixels(named) - plain).max() > 0
    assert np.array_equal(pixels(named), pixels(asked))
    assert [weight.file for weight in asked.record.weights if weight.part == "lora 0"] == ["bold.safetensors"]
    assert np.array_equal(pixels(one(renderer)), plain)
    with pytest.raises(BadRequest, match="did you mean 'bold'"):
        one(renderer, prompt="<lora:bald>")


def test_texts_are_encoded_once_however_many_requests_ask(renderer: Renderer) -> None:
    """Prompts are kept by their words and clip skip; a LoRA on the text encoder would empty the shelf."""
    family: Any = renderer.engine.base(Path(renderer.model))
    family.forget_texts()
    counts: list[int] = []
    hook = family.text_encoder.register_forward_hook(lambda *_: counts.append(1))
    for _ in range(2):
        renderer.render(request(count=2))
    assert len(counts) == 2  # prompt and negative prompt
    one(renderer, prompt=f"{PROMPT} AND {PROMPT}")
    assert len(counts) == 2
    one(renderer, negative_prompt="snow")
    assert len(counts) == 3
    hook.remove()
    with pytest.raises(BadRequest, match="clip_skip = 2: this model's text encoder allows 1 to 1"):
        one(renderer, clip_skip=2)


def test_settings_that_a_model_does_not_have_are_refused(renderer: Renderer) -> None:
    with pytest.raises(BadRequest, match=r"true_cfg_scale = 3: Stable Diffusion 1\.x or 2\.x is guided by guidance_scale"):
        one(renderer, true_cfg_scale=3.0)
    with pytest.raises(BadRequest, match=r"eta = 0\.5: euler has no such setting; leave it out, or use ddim"):
        one(renderer, eta=0.5)
    assert np.abs(pixels(one(renderer, sampler="ddim", eta=1.0)) - pixels(one(renderer, sampler="ddim"))).max() > 1
    assert np.array_equal(pixels(one(renderer, sampler="ddim", eta=0.0)), pixels(one(renderer, sampler="ddim")))


def test_what_is_left_out_is_the_models_own_and_recorded(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    family = renderer.engine.base(Path(renderer.model))
    monkeypatch.setattr(type(family), "defaults", {"width": 72, "height": 64, "steps": 3, "guidance_scale": 2.0})
    picture = renderer.render(RenderRequest(prompt=PROMPT, steps=2))[0]
    assert picture.image.size == (72, 64)
    asked = picture.record.request
    assert (asked.width, asked.steps, asked.guidance_scale) == (72, 2, 2.0)
    again = renderer.render(Record.model_validate_json(picture.record.canonical_json()).request)[0]
    assert again.record.key() == picture.record.key()


def test_cancelled_before_the_next_network(renderer: Renderer) -> None:
    family: Any = renderer.engine.base(Path(renderer.model))
    calls: list[int] = []
    hook = family.unet.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(Cancelled):
        renderer.render(request(sampler="heun"), cancelled=lambda: len(calls) == 2)
    hook.remove()
    assert len(calls) == 2


def test_cancelled_anywhere_the_next_picture_is_the_same(renderer: Renderer) -> None:
    expected, random = pixels(one(renderer)), np.random.default_rng(0)
    for _ in range(60):
        left = int(random.integers(0, 7))  # heun at 4 steps asks seven times

        def stop() -> bool:
            nonlocal left
            left -= 1
            return left < 0

        with pytest.raises(Cancelled):
            renderer.render(request(sampler="heun"), cancelled=stop)
    assert np.array_equal(pixels(one(renderer)), expected)


def test_old_records_still_load(renderer: Renderer) -> None:
    """What a request of the first version did not know, it takes as it was then."""
    values = json.loads(one(renderer).record.canonical_json())
    later = {*LATER, *(name for name in values["request"] if name.startswith(("guidance_", "variation_")) and name != "guidance_scale")}
    assert later <= values["request"].keys()
    values["request"] = {name: value for name, value in values["request"].items() if name not in later}
    for name in ("prompt", "negative_prompt", "init_sha256", "mask_sha256"):
        del values[name]
    record = Record.model_validate(values)
    assert np.array_equal(pixels(renderer.render(record.request)[0]), pixels(one(renderer)))


def test_numbers_that_are_not_finite_name_their_stage(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    family: Any = renderer.engine.base(Path(renderer.model))
    decode = family.decode
    monkeypatch.setattr(family, "decode", lambda latents: decode(latents) * float("nan"))
    with pytest.raises(BadModel, match="the picture is not finite after decoding in float32: the autoencoder's weights are damaged"):
        one(renderer)
    monkeypatch.setattr(family, "decode", lambda latents: torch.full((latents.shape[0], 3, 64, 64), -1.0))
    assert one(renderer).record.notes == ("the picture is all black",)
