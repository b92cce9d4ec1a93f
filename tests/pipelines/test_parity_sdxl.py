"""SDXL in the one loop against diffusers' own pipelines: same weights, seeds and sampler, fp32 final latents within 1e-4."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.errors import BadModel, BadRequest, Mismatch
from pipelines.checkpoint import Folder
from pipelines.denoise import Steering
from pipelines.families.sdxl import StableDiffusionXL
from pipelines.family import Drawing, Text
from pipelines.prompt import Phrase, Wording
from tests import tinymodels, tinymodels_sdxl
from tests.pipelines.scenes import HEIGHT, NEGATIVE, ORACLES_OWN, PLACE, PROMPT, WIDTH, image
from tests.pipelines.scenes import picture as pixels
from tests.pipelines.their_pipelines import assert_same
from tests.pipelines.unet_parity import control, hole, ours, theirs, told

pytestmark = ORACLES_OWN

WEIGHTS = (0.7, 0.4)


@pytest.fixture(scope="module")
def inpainting(sdxl_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodels_sdxl.build_inpainting(tmp_path_factory.mktemp("sdxl") / "inpainting", sdxl_base)


def steered(sdxl: StableDiffusionXL, folders: Sequence[Path], **steering: Any) -> list[Steering]:
    return [control(sdxl, folder, i, weight=WEIGHTS[i], **steering) for i, folder in enumerate(folders)]


def their_nets(folders: Sequence[Path]) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
    """Parts and settings of a pipeline with ControlNets, and their maps."""
    import diffusers

    if not folders:
        return {}, {}, []
    found = [diffusers.ControlNetModel.from_pretrained(folder) for folder in folders]
    weights = list(WEIGHTS[: len(found)])
    one = len(found) == 1
    scale = {"controlnet_conditioning_scale": weights[0] if one else weights}
    return {"controlnet": found[0] if one else found}, scale, [image(pixels(i)) for i in range(len(found))]


@pytest.mark.parametrize(("sampler", "count_nets"), [("euler", 0), ("euler", 1), ("euler", 2), ("ddim", 2), ("dpmpp_2m", 2)])
def test_txt2img(sampler: str, count_nets: int, sdxl: StableDiffusionXL, sdxl_base: Path, sdxl_nets: list[Path]) -> None:
    parts, scale, maps = their_nets(sdxl_nets[:count_nets])
    call = scale | ({"image": maps[0] if count_nets == 1 else maps} if maps else {})
    kind = "StableDiffusionXLControlNetPipeline" if maps else "StableDiffusionXLPipeline"
    assert_same(
        ours(sdxl, steered(sdxl, sdxl_nets[:count_nets]), sampler=sampler), theirs(sdxl_base, kind, sampler=sampler, parts=parts, **call)
    )


@pytest.mark.parametrize(("sampler", "count_nets"), [("euler", 0), ("euler", 1), ("ddim", 2)])
def test_img2img(sampler: str, count_nets: int, sdxl: StableDiffusionXL, sdxl_base: Path, sdxl_nets: list[Path]) -> None:
    parts, scale, maps = their_nets(sdxl_nets[:count_nets])
    call = scale | ({"control_image": maps[0] if count_nets == 1 else maps} if maps else {})
    kind = "StableDiffusionXLControlNetImg2ImgPipeline" if maps else "StableDiffusionXLImg2ImgPipeline"
    expected = theirs(sdxl_base, kind, sampler=sampler, parts=parts, image=image(pixels(9)), strength=0.7, **call)
    assert_same(ours(sdxl, steered(sdxl, sdxl_nets[:count_nets]), sampler=sampler, image_HWC=pixels(9), strength=0.7), expected)


@pytest.mark.parametrize("nine", [False, True])
@pytest.mark.parametrize(("count_nets", "strength"), [(0, 0.7), (0, 1.0), (1, 0.7), (2, 1.0)])
def test_inpaint(
    count_nets: int, strength: float, nine: bool, sdxl: StableDiffusionXL, sdxl_base: Path, inpainting: Path, sdxl_nets: list[Path]
) -> None:
    """By blending latents, and with a UNet that reads mask and picture; ControlNets read the four channels of the latents with both."""
    parts, scale, maps = their_nets(sdxl_nets[:count_nets])
    call = scale | ({"control_image": maps[0] if count_nets == 1 else maps} if maps else {})
    kind = "StableDiffusionXLControlNetInpaintPipeline" if maps else "StableDiffusionXLInpaintPipeline"
    folder = inpainting if nine else sdxl_base
    model = StableDiffusionXL.load(Folder(inpainting), PLACE) if nine else sdxl
    got = ours(model, steered(model, sdxl_nets[:count_nets]), image_HWC=pixels(9), mask_HW=hole(), strength=strength)
    assert_same(got, theirs(folder, kind, parts=parts, image=image(pixels(9)), mask_image=image(hole()), strength=strength, **call))


def test_an_inpainting_model_without_a_picture_paints_all_of_it(inpainting: Path) -> None:
    model = StableDiffusionXL.load(Folder(inpainting), PLACE)
    everything = np.full((HEIGHT, WIDTH), 255, np.uint8)
    torch.testing.assert_close(ours(model), ours(model, image_HWC=pixels(9), mask_HW=everything), rtol=0, atol=1e-6)


def test_v_prediction_without_zeros_for_the_empty_prompt(tmp_path: Path, sdxl_nets: list[Path]) -> None:
    folder = tinymodels_sdxl.build_base(tmp_path / "v", zeros=False, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    family = StableDiffusionXL.load(Folder(folder), PLACE)
    parts, scale, maps = their_nets(sdxl_nets[:1])
    # DDIM, for Euler's method begins zero SNR with latents of 4096, which diffusers' fp32 rounds by the bound itself
    call = {"image": maps[0], "negative_prompt": None, "sampler": "ddim"}
    expected = theirs(folder, "StableDiffusionXLControlNetPipeline", parts=parts, **call, **scale)
    assert_same(ours(family, steered(family, sdxl_nets[:1]), negative="", sampler="ddim"), expected)


def test_an_empty_negative_prompt_is_zeros_where_the_checkpoint_says_so(sdxl: StableDiffusionXL, sdxl_base: Path) -> None:
    expected = theirs(sdxl_base, "StableDiffusionXLPipeline", negative_prompt=None)
    assert_same(ours(sdxl, negative=""), expected)
    assert told(sdxl, "").tokens_BLD.any()  # the positive one is not
    assert (expected - theirs(sdxl_base, "StableDiffusionXLPipeline", negative_prompt="")).abs().max() > 1e-2


def test_the_refiner(tmp_path: Path) -> None:
    """One text encoder, and an aesthetic score in the place of the target size: 6 for the prompt, 2.5 for the negative one."""
    folder = tinymodels_sdxl.build_base(tmp_path / "refiner", refiner=True)
    family = StableDiffusionXL.load(Folder(folder), PLACE)
    expected = theirs(folder, "StableDiffusionXLImg2ImgPipeline", image=image(pixels(9)), strength=0.5)
    assert_same(ours(family, image_HWC=pixels(9), strength=0.5), expected)
    assert told(family, NEGATIVE, negative=True).extra["time_ids"].tolist() == [[HEIGHT, WIDTH, 0, 0, 2.5]]


def test_clip_skip_counts_from_the_layer_that_the_model_reads(sdxl: StableDiffusionXL, sdxl_base: Path) -> None:
    import diffusers

    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(sdxl_base)
    with torch.no_grad():
        tokens, _, pooled, _ = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False)
    text = sdxl.encode_prompt(PROMPT)
    torch.testing.assert_close(text.tokens_BLD, tokens, rtol=0, atol=1e-5)
    torch.testing.assert_close(text.pooled_BD, pooled, rtol=0, atol=1e-5)
    with pytest.raises(BadRequest, match="clip_skip = 2: this model's text encoder allows 1 to 1"):
        sdxl.encode_prompt(PROMPT, 2)


def test_a_long_prompt_is_filled_up_beside_a_short_one(sdxl: StableDiffusionXL) -> None:
    long = sdxl.encode_prompt(Wording(tuple((Phrase(words),) for words in (PROMPT, NEGATIVE, PROMPT))))
    short = sdxl.encode_prompt(NEGATIVE)
    rows, window = Text.rows([short, long]), short.tokens_BLD.shape[1]
    assert rows.tokens_BLD.shape[1] == 3 * window
    assert rows.mask_BL is None
    empty = sdxl.encode_prompt("").tokens_BLD[0]
    torch.testing.assert_close(rows.tokens_BLD[0], torch.cat([short.tokens_BLD[0], empty, empty]), rtol=0, atol=0)
    zeroed = sdxl.bind(sdxl.encode_prompt(""), Drawing(WIDTH, HEIGHT, 4.0, negative=True))
    assert not Text.rows([zeroed, sdxl.bind(long, Drawing(WIDTH, HEIGHT, 4.0))]).tokens_BLD[0].any()


def test_windows_and_guess_mode(sdxl: StableDiffusionXL, sdxl_base: Path, sdxl_nets: list[Path]) -> None:
    parts, scale, maps = their_nets(sdxl_nets[:1])
    kind, call = "StableDiffusionXLControlNetPipeline", scale | {"image": maps[0]}
    window = theirs(sdxl_base, kind, parts=parts, control_guidance_start=0.2, control_guidance_end=0.7, **call)
    assert_same(ours(sdxl, steered(sdxl, sdxl_nets[:1], start=0.2, end=0.7)), window)
    assert_same(ours(sdxl, steered(sdxl, sdxl_nets[:1], mode="guess")), theirs(sdxl_base, kind, parts=parts, guess_mode=True, **call))


def test_perturbed_attention(sdxl: StableDiffusionXL, sdxl_base: Path) -> None:
    assert_same(ours(sdxl, pag_scale=1.0), theirs(sdxl_base, "StableDiffusionXLPAGPipeline", pag_scale=1.0))


def test_several_pictures_are_each_drawn_as_alone(
    sdxl: StableDiffusionXL, sdxl_base: Path, sdxl_nets: list[Path], sdxl_adapters: list[Path]
) -> None:
    parts, scale, maps = their_nets(sdxl_nets[:1])
    expected = theirs(sdxl_base, "StableDiffusionXLControlNetPipeline", parts=parts, image=maps[0], count=2, **scale)
    assert_same(ours(sdxl, steered(sdxl, sdxl_nets[:1]), count=2), expected)
    both = [*steered(sdxl, sdxl_nets[:1]), control(sdxl, sdxl_adapters[0], 2, mode="control")]
    assert_same(ours(sdxl, both, count=2)[:1], ours(sdxl, both))  # to rounding: rows of a larger batch add up in another order


def test_what_the_model_knows_of_itself(sdxl: StableDiffusionXL, sdxl_base: Path, inpainting: Path, tmp_path: Path) -> None:
    assert StableDiffusionXL.recognises(Folder(sdxl_base))
    assert not StableDiffusionXL.recognises(Folder(tinymodels.build_base(tmp_path / "sd")))
    assert sdxl.latent_shape(WIDTH, HEIGHT) == (4, 8, 12)
    assert sdxl.defaults == {"width": 64, "height": 64}
    assert sdxl.inpaint(pixels(9), hole()) is None
    assert told(sdxl, PROMPT).extra["time_ids"].tolist() == [[HEIGHT, WIDTH, 0, 0, HEIGHT, WIDTH]]
    half = StableDiffusionXL.load(Folder(sdxl_base), type(PLACE)(PLACE.device, torch.float16))
    assert (half.unet.dtype, half.vae.dtype) == (torch.float16, torch.float32)  # force_upcast


def test_parts_that_do_not_belong_together(sdxl_base: Path, tmp_path: Path) -> None:
    import json
    import shutil

    folder = Path(shutil.copytree(sdxl_base, tmp_path / "base"))
    config = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({key: value for key, value in config.items() if not key.endswith("encoder")}))
    with pytest.raises(Mismatch, match=r"the UNet reads text of width 40, the text encoder writes 24"):
        StableDiffusionXL.load(Folder(folder), PLACE)
    shutil.rmtree(folder / "tokenizer_2")
    with pytest.raises(BadModel, match=r"has no 'tokenizer_2': a Stable Diffusion XL model needs"):
        StableDiffusionXL.load(Folder(folder), PLACE)
