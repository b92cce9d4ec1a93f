"""SDXL in the one loop against diffusers' own pipelines: same weights, seeds and sampler, fp32 final latents within 1e-4."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core.errors import BadModel, BadRequest, Mismatch
from pipelines.checkpoint import Folder
from pipelines.controlnet import UNION_TYPES, LoadedUnion
from pipelines.denoise import Steering
from pipelines.families.sdxl import StableDiffusionXL
from pipelines.family import Drawing, Hint, Text
from pipelines.prompt import Phrase, Wording
from tests import tinymodels, tinymodels_sdxl
from tests.pipelines.unet_parity import (
    HEIGHT,
    NEGATIVE,
    PLACE,
    PROMPT,
    STEPS,
    WIDTH,
    assert_same,
    control,
    hole,
    image,
    ours,
    pixels,
    theirs,
    told,
)

# diffusers' schedulers call numpy.array on a tensor; only the oracle does, never our loop.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

WEIGHTS = (0.7, 0.4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodels_sdxl.build_base(tmp_path_factory.mktemp("sdxl") / "base")


@pytest.fixture(scope="module")
def family(base: Path) -> StableDiffusionXL:
    return StableDiffusionXL.load(Folder(base), PLACE)


@pytest.fixture(scope="module")
def nets(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sdxl-nets")
    return [tinymodels.build_controlnet(folder / f"net-{seed}", base, seed=seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def unions(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sdxl-unions")
    return [tinymodels_sdxl.build_union(folder / f"union-{seed}", base, seed=seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, channels = tmp_path_factory.mktemp("sdxl-adapters"), (*tinymodels_sdxl.WIDTHS, tinymodels_sdxl.WIDTHS[-1])
    return [
        tinymodels_sdxl.build_adapter(folder / f"adapter-{seed}", channels, kind="full_adapter_xl", in_channels=seed, seed=seed)
        for seed in (3, 1)
    ]


@pytest.fixture(scope="module")
def inpainting(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodels_sdxl.build_inpainting(tmp_path_factory.mktemp("sdxl") / "inpainting", base)


def steered(family: StableDiffusionXL, folders: Sequence[Path], **steering: Any) -> list[Steering]:
    return [control(family, folder, i, weight=WEIGHTS[i], **steering) for i, folder in enumerate(folders)]


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
def test_txt2img(sampler: str, count_nets: int, family: StableDiffusionXL, base: Path, nets: list[Path]) -> None:
    parts, scale, maps = their_nets(nets[:count_nets])
    call = scale | ({"image": maps[0] if count_nets == 1 else maps} if maps else {})
    kind = "StableDiffusionXLControlNetPipeline" if maps else "StableDiffusionXLPipeline"
    assert_same(ours(family, steered(family, nets[:count_nets]), sampler=sampler), theirs(base, kind, sampler=sampler, parts=parts, **call))


@pytest.mark.parametrize(("sampler", "count_nets"), [("euler", 0), ("euler", 1), ("ddim", 2)])
def test_img2img(sampler: str, count_nets: int, family: StableDiffusionXL, base: Path, nets: list[Path]) -> None:
    parts, scale, maps = their_nets(nets[:count_nets])
    call = scale | ({"control_image": maps[0] if count_nets == 1 else maps} if maps else {})
    kind = "StableDiffusionXLControlNetImg2ImgPipeline" if maps else "StableDiffusionXLImg2ImgPipeline"
    expected = theirs(base, kind, sampler=sampler, parts=parts, image=image(pixels(9)), strength=0.7, **call)
    assert_same(ours(family, steered(family, nets[:count_nets]), sampler=sampler, image_HWC=pixels(9), strength=0.7), expected)


@pytest.mark.parametrize("nine", [False, True])
@pytest.mark.parametrize(("count_nets", "strength"), [(0, 0.7), (0, 1.0), (1, 0.7), (2, 1.0)])
def test_inpaint(
    count_nets: int, strength: float, nine: bool, family: StableDiffusionXL, base: Path, inpainting: Path, nets: list[Path]
) -> None:
    """By blending latents, and with a UNet that reads mask and picture; ControlNets read the four channels of the latents with both."""
    parts, scale, maps = their_nets(nets[:count_nets])
    call = scale | ({"control_image": maps[0] if count_nets == 1 else maps} if maps else {})
    kind = "StableDiffusionXLControlNetInpaintPipeline" if maps else "StableDiffusionXLInpaintPipeline"
    folder = inpainting if nine else base
    model = StableDiffusionXL.load(Folder(inpainting), PLACE) if nine else family
    got = ours(model, steered(model, nets[:count_nets]), image_HWC=pixels(9), mask_HW=hole(), strength=strength)
    assert_same(got, theirs(folder, kind, parts=parts, image=image(pixels(9)), mask_image=image(hole()), strength=strength, **call))


def test_an_inpainting_model_without_a_picture_paints_all_of_it(inpainting: Path) -> None:
    model = StableDiffusionXL.load(Folder(inpainting), PLACE)
    everything = np.full((HEIGHT, WIDTH), 255, np.uint8)
    torch.testing.assert_close(ours(model), ours(model, image_HWC=pixels(9), mask_HW=everything), rtol=0, atol=1e-6)


def test_v_prediction_without_zeros_for_the_empty_prompt(tmp_path: Path, nets: list[Path]) -> None:
    folder = tinymodels_sdxl.build_base(tmp_path / "v", zeros=False, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    family = StableDiffusionXL.load(Folder(folder), PLACE)
    parts, scale, maps = their_nets(nets[:1])
    expected = theirs(folder, "StableDiffusionXLControlNetPipeline", parts=parts, image=maps[0], negative_prompt=None, **scale)
    assert_same(ours(family, steered(family, nets[:1]), negative=""), expected)


def test_an_empty_negative_prompt_is_zeros_where_the_checkpoint_says_so(family: StableDiffusionXL, base: Path) -> None:
    expected = theirs(base, "StableDiffusionXLPipeline", negative_prompt=None)
    assert_same(ours(family, negative=""), expected)
    assert told(family, "").tokens_BLD.any()  # the positive one is not
    assert (expected - theirs(base, "StableDiffusionXLPipeline", negative_prompt="")).abs().max() > 1e-2


def test_the_refiner(tmp_path: Path) -> None:
    """One text encoder, and an aesthetic score in the place of the target size: 6 for the prompt, 2.5 for the negative one."""
    folder = tinymodels_sdxl.build_base(tmp_path / "refiner", refiner=True)
    family = StableDiffusionXL.load(Folder(folder), PLACE)
    expected = theirs(folder, "StableDiffusionXLImg2ImgPipeline", image=image(pixels(9)), strength=0.5)
    assert_same(ours(family, image_HWC=pixels(9), strength=0.5), expected)
    assert told(family, NEGATIVE, negative=True).extra["time_ids"].tolist() == [[HEIGHT, WIDTH, 0, 0, 2.5]]


def test_clip_skip_counts_from_the_layer_that_the_model_reads(family: StableDiffusionXL, base: Path) -> None:
    import diffusers

    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(base)
    with torch.no_grad():
        tokens, _, pooled, _ = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False)
    text = family.encode_prompt(PROMPT)
    torch.testing.assert_close(text.tokens_BLD, tokens, rtol=0, atol=1e-5)
    torch.testing.assert_close(text.pooled_BD, pooled, rtol=0, atol=1e-5)
    with pytest.raises(BadRequest, match="clip_skip = 2: this model's text encoder allows 1 to 1"):
        family.encode_prompt(PROMPT, 2)


def test_a_long_prompt_is_filled_up_beside_a_short_one(family: StableDiffusionXL) -> None:
    long = family.encode_prompt(Wording(tuple((Phrase(words),) for words in (PROMPT, NEGATIVE, PROMPT))))
    short = family.encode_prompt(NEGATIVE)
    rows, window = Text.rows([short, long]), short.tokens_BLD.shape[1]
    assert rows.tokens_BLD.shape[1] == 3 * window
    assert rows.mask_BL is None
    empty = family.encode_prompt("").tokens_BLD[0]
    torch.testing.assert_close(rows.tokens_BLD[0], torch.cat([short.tokens_BLD[0], empty, empty]), rtol=0, atol=0)
    zeroed = family.bind(family.encode_prompt(""), Drawing(WIDTH, HEIGHT, 4.0, negative=True))
    assert not Text.rows([zeroed, family.bind(long, Drawing(WIDTH, HEIGHT, 4.0))]).tokens_BLD[0].any()


@pytest.mark.parametrize("mode", ["txt2img", "img2img", "inpaint"])
def test_two_union_controls(mode: str, family: StableDiffusionXL, base: Path, unions: list[Path]) -> None:
    """Two units of two networks, each of its own type."""
    import diffusers
    from diffusers.models.controlnets.multicontrolnet_union import MultiControlNetUnionModel

    found = MultiControlNetUnionModel([diffusers.ControlNetUnionModel.from_pretrained(folder) for folder in unions])
    call: dict[str, Any] = {"control_mode": [3, 1], "controlnet_conditioning_scale": list(WEIGHTS)}
    given: dict[str, Any] = {}
    if mode != "txt2img":
        call |= {"image": image(pixels(9)), "strength": 0.7}
        given = {"image_HWC": pixels(9), "strength": 0.7}
    if mode == "inpaint":
        call |= {"mask_image": image(hole())}
        given |= {"mask_HW": hole()}
    kind = "StableDiffusionXLControlNetUnion" + {"txt2img": "", "img2img": "Img2Img", "inpaint": "Inpaint"}[mode] + "Pipeline"
    expected = theirs(base, kind, parts={"controlnet": found}, control_image=[image(pixels(0)), image(pixels(1))], **call)
    controls = [
        control(family, folder, i, kind, weight=WEIGHTS[i]) for i, (folder, kind) in enumerate(zip(unions, ("canny", "depth"), strict=True))
    ]
    assert_same(ours(family, controls, **given), expected)


@pytest.mark.parametrize("kind", UNION_TYPES)
def test_every_union_type(kind: str, family: StableDiffusionXL, unions: list[Path]) -> None:
    """The hint taken out of the network gives what the network gave with it in, for each type."""
    import diffusers

    net = diffusers.ControlNetUnionModel.from_pretrained(unions[0])
    x, t = torch.randn((2, 4, HEIGHT // 8, WIDTH // 8), generator=torch.Generator().manual_seed(0)), torch.tensor(500.0)
    text, hint = Text.rows([told(family, PROMPT)] * 2), torch.from_numpy(pixels(0)).permute(2, 0, 1)[None].float() / 255
    types = torch.zeros(2, 8).index_fill_(1, torch.tensor(UNION_TYPES[kind]), 1.0)
    with torch.no_grad():
        down, middle = net(
            x,
            t,
            text.tokens_BLD,
            [hint.expand(2, -1, -1, -1)],
            types,
            [UNION_TYPES[kind]],
            1.0,
            added_cond_kwargs={"text_embeds": text.pooled_BD, "time_ids": text.extra["time_ids"]},
            return_dict=False,
        )
        got = family.prepare(family.load_control(Folder(unions[0])), Hint(pixels(0), kind)).residuals(x, t, text)["skips"]
    # The hint is embedded once instead of twice, so convolutions may add up in another order.
    for one, another in zip(got, [*down, middle], strict=True):
        torch.testing.assert_close(one, another, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count_adapters", [1, 2])
def test_adapters(count_adapters: int, family: StableDiffusionXL, base: Path, adapters: list[Path]) -> None:
    """The second one looks at grey."""
    import diffusers

    found = [diffusers.T2IAdapter.from_pretrained(folder) for folder in adapters[:count_adapters]]
    grey = np.repeat(pixels(1)[..., :1], 3, axis=2)
    if count_adapters == 1:
        call: dict[str, Any] = {"image": image(pixels(0)), "adapter_conditioning_scale": WEIGHTS[0], "adapter_conditioning_factor": 0.5}
        parts: dict[str, Any] = {"adapter": found[0]}
    else:
        three = diffusers.T2IAdapter(3, list(found[1].config.channels), 1, 16, "full_adapter_xl").eval()
        three.load_state_dict(found[1].state_dict() | {"adapter.conv_in.weight": _thrice(found[1].state_dict()["adapter.conv_in.weight"])})
        call = {"image": [image(pixels(0)), image(grey)], "adapter_conditioning_scale": list(WEIGHTS)}
        parts = {"adapter": diffusers.MultiAdapter([found[0], three])}
    controls = [
        Steering(
            family.prepare(family.load_control(Folder(folder)), Hint(map_HWC, "canny")),
            weight=weight,
            end=0.5 if count_adapters == 1 else 1.0,
        )
        for folder, map_HWC, weight in zip(adapters[:count_adapters], (pixels(0), grey), WEIGHTS, strict=False)
    ]
    assert_same(ours(family, controls), theirs(base, "StableDiffusionXLAdapterPipeline", parts=parts, **call))


def _thrice(weight: Tensor) -> Tensor:
    """A first convolution for three equal channels from that for one: a pixel's three shares are a third each."""
    return weight.repeat_interleave(3, 1).reshape(weight.shape[0], -1, 3, *weight.shape[2:]).permute(0, 2, 1, 3, 4).flatten(1, 2) / 3


def test_a_controlnet_a_union_and_an_adapter_together(
    family: StableDiffusionXL, base: Path, nets: list[Path], unions: list[Path], adapters: list[Path]
) -> None:
    """diffusers has no such pipeline: here is one, of its own classes."""
    import diffusers

    unet = diffusers.UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    net, union = diffusers.ControlNetModel.from_pretrained(nets[0]), diffusers.ControlNetUnionModel.from_pretrained(unions[0])
    adapter = diffusers.T2IAdapter.from_pretrained(adapters[0])
    scheduler = diffusers.EulerDiscreteScheduler.from_pretrained(base, subfolder="scheduler", timestep_spacing="linspace")
    text = Text.rows([told(family, NEGATIVE, negative=True), told(family, PROMPT)])
    extra = {"text_embeds": text.pooled_BD, "time_ids": text.extra["time_ids"]}
    maps = [(torch.from_numpy(pixels(i)).permute(2, 0, 1)[None].float() / 255).expand(2, -1, -1, -1) for i in range(3)]
    types = torch.zeros(2, 8).index_fill_(1, torch.tensor(1), 1.0)
    scheduler.set_timesteps(STEPS)
    x = torch.randn((1, 4, HEIGHT // 8, WIDTH // 8), generator=torch.Generator().manual_seed(7)) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        rows = scheduler.scale_model_input(torch.cat([x, x]), t)
        with torch.no_grad():
            one, one_mid = net(rows, t, text.tokens_BLD, maps[0], added_cond_kwargs=extra, return_dict=False)
            two, two_mid = union(rows, t, text.tokens_BLD, [maps[1]], types, [1], added_cond_kwargs=extra, return_dict=False)
            out = unet(
                rows,
                t,
                text.tokens_BLD,
                added_cond_kwargs=extra,
                down_block_additional_residuals=[0.7 * a + 0.4 * b for a, b in zip(one, two, strict=True)],
                mid_block_additional_residual=0.7 * one_mid + 0.4 * two_mid,
                down_intrablock_additional_residuals=[0.5 * feature for feature in adapter(maps[2])],
            ).sample
        negative, positive = out.chunk(2)
        x = scheduler.step(negative + 4.0 * (positive - negative), t, x).prev_sample
    controls = [
        control(family, nets[0], 0, weight=0.7),
        control(family, unions[0], 1, "depth", weight=0.4),
        control(family, adapters[0], 2, weight=0.5),
    ]
    assert_same(ours(family, controls), x)


def test_windows_and_guess_mode(family: StableDiffusionXL, base: Path, nets: list[Path]) -> None:
    parts, scale, maps = their_nets(nets[:1])
    kind, call = "StableDiffusionXLControlNetPipeline", scale | {"image": maps[0]}
    window = theirs(base, kind, parts=parts, control_guidance_start=0.2, control_guidance_end=0.7, **call)
    assert_same(ours(family, steered(family, nets[:1], start=0.2, end=0.7)), window)
    assert_same(ours(family, steered(family, nets[:1], mode="guess")), theirs(base, kind, parts=parts, guess_mode=True, **call))


def test_what_looks_at_the_map_alone_runs_once(family: StableDiffusionXL, unions: list[Path], adapters: list[Path]) -> None:
    counts = {"hint": 0, "union": 0, "adapter": 0}

    def count(module: torch.nn.Module, what: str) -> None:
        module.register_forward_hook(lambda *_: counts.update({what: counts[what] + 1}))

    union, adapter = family.load_control(Folder(unions[0])), family.load_control(Folder(adapters[0]))
    assert isinstance(union, LoadedUnion)
    count(union.hint_encoder, "hint")
    count(union.net, "union")
    count(adapter.net, "adapter")
    prepared = [family.prepare(union, Hint(pixels(0), "canny")), family.prepare(adapter, Hint(pixels(1), "canny"))]
    ours(family, [Steering(prepared[0], end=0.5), Steering(prepared[1])], count=2)
    assert counts == {"hint": 1, "union": STEPS // 2, "adapter": 1}


def test_perturbed_attention(family: StableDiffusionXL, base: Path) -> None:
    assert_same(ours(family, pag_scale=2.0), theirs(base, "StableDiffusionXLPAGPipeline", pag_scale=2.0))


def test_several_pictures_are_each_drawn_as_alone(family: StableDiffusionXL, base: Path, nets: list[Path], adapters: list[Path]) -> None:
    parts, scale, maps = their_nets(nets[:1])
    expected = theirs(base, "StableDiffusionXLControlNetPipeline", parts=parts, image=maps[0], count=2, **scale)
    assert_same(ours(family, steered(family, nets[:1]), count=2), expected)
    both = [*steered(family, nets[:1]), control(family, adapters[0], 2, mode="control")]
    assert_same(ours(family, both, count=2)[:1], ours(family, both))  # to rounding: rows of a larger batch add up in another order


@pytest.mark.parametrize("which", ["net", "union", "adapter"])
def test_masks_and_layer_weights(which: str, family: StableDiffusionXL, nets: list[Path], unions: list[Path], adapters: list[Path]) -> None:
    """At every level the masked residuals are the residuals times the mask's mean over each cell, times the level's weight."""
    folder = {"net": nets[0], "union": unions[0], "adapter": adapters[0]}[which]
    mask_HW = torch.zeros(HEIGHT, WIDTH)
    mask_HW[:, : WIDTH // 2 + 4] = 1.0
    x, text = torch.randn((1, 4, HEIGHT // 8, WIDTH // 8), generator=torch.Generator().manual_seed(0)), told(family, PROMPT)
    plain = control(family, folder)
    weights = tuple(0.1 * (level + 1) for level in range(plain.control.levels))
    masked = control(family, folder, mask_HW=mask_HW, layer_weights=weights)
    with torch.no_grad():
        ((place, whole),) = plain.residuals(x, torch.tensor(500.0), text).items()
        found = masked.residuals(x, torch.tensor(500.0), text)[place]
    assert len(whole) == plain.control.levels
    for one, another, weight in zip(found, whole, weights, strict=True):
        cells = torch.nn.functional.interpolate(mask_HW[None, None], another.shape[-2:], mode="area")
        torch.testing.assert_close(one, another * cells * weight, rtol=1e-5, atol=1e-6)
    assert (ours(family, [masked]) - ours(family, [plain])).abs().max() > 1e-3


def test_the_hole_of_an_inpainting_map(family: StableDiffusionXL, nets: list[Path], unions: list[Path]) -> None:
    """ControlNets read −1 there, union networks 0; the hole is the mask, or what is black."""
    from pipelines.controlnet import hint_pixels

    black = np.where((hole() >= 128)[..., None], np.uint8(0), np.maximum(pixels(0), 1))
    for hint in (Hint(pixels(0), "inpaint", hole()), Hint(black, "inpaint")):
        read = hint_pixels(hint, -1.0)
        assert (read[0, :, torch.from_numpy(hole() >= 128)] == -1.0).all()
        assert (read[0, :, torch.from_numpy(hole() < 128)] >= 0.0).all()
    assert (hint_pixels(Hint(black, "canny"), -1.0) >= 0.0).all()


def test_what_the_model_knows_of_itself(family: StableDiffusionXL, base: Path, inpainting: Path, tmp_path: Path) -> None:
    assert StableDiffusionXL.recognises(Folder(base))
    assert not StableDiffusionXL.recognises(Folder(tinymodels.build_base(tmp_path / "sd")))
    assert family.latent_shape(WIDTH, HEIGHT) == (4, 8, 12)
    assert family.defaults == {"width": 64, "height": 64}
    assert family.inpaint(pixels(9), hole()) is None
    assert told(family, PROMPT).extra["time_ids"].tolist() == [[HEIGHT, WIDTH, 0, 0, HEIGHT, WIDTH]]
    half = StableDiffusionXL.load(Folder(base), type(PLACE)(PLACE.device, torch.float16))
    assert (half.unet.dtype, half.vae.dtype) == (torch.float16, torch.float32)  # force_upcast


def test_controls_for_other_bases_are_refused_in_a_sentence(
    family: StableDiffusionXL, base: Path, nets: list[Path], unions: list[Path], adapters: list[Path], tmp_path: Path
) -> None:
    from pipelines.families.sd import StableDiffusion

    small = tinymodels.build_base(tmp_path / "sd")
    sd, net = StableDiffusion.load(Folder(small), PLACE), tinymodels.build_controlnet(tmp_path / "net", small)
    adapter = tinymodels_sdxl.build_adapter(tmp_path / "adapter", (32, 64))
    with pytest.raises(Mismatch, match=r"for cross-attention width 32, the base model .* has width 40: use a ControlNet .* 2048: SDXL"):
        family.check_control(Folder(net))
    for folder in (nets[0], unions[0]):
        with pytest.raises(Mismatch, match=r"is an SDXL ControlNet, the base model .* has width 32"):
            sd.check_control(Folder(folder))
    with pytest.raises(Mismatch, match=r"features of 32 channels at 1/8, 64 channels at 1/16, the base model .* takes 32 channels at 1/16"):
        family.check_control(Folder(adapter))
    with pytest.raises(Mismatch, match=r"features of 32 channels at 1/16, 32 channels at 1/16"):
        sd.check_control(Folder(adapters[0]))
    with pytest.raises(BadModel, match=r"is a whole model \(StableDiffusionXLPipeline\), not a ControlNetModel"):
        family.check_control(Folder(base))
    six = family.load_control(Folder(tinymodels_sdxl.build_union(tmp_path / "six", base, types=6)))
    with pytest.raises(
        Mismatch, match=r"control 'tile': this union ControlNet has 6 types, made for pose, .*, segmentation; use a ControlNet"
    ):
        family.prepare(six, Hint(pixels(0), "tile"))
    with pytest.raises(BadRequest, match=r"width = 88: this T2I-Adapter takes multiples of 16, for example 80"):
        family.prepare(family.load_control(Folder(adapters[0])), Hint(pixels(0)[:, :88], "canny"))


def test_parts_that_do_not_belong_together(base: Path, tmp_path: Path) -> None:
    import json
    import shutil

    folder = Path(shutil.copytree(base, tmp_path / "base"))
    config = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({key: value for key, value in config.items() if not key.endswith("encoder")}))
    with pytest.raises(Mismatch, match=r"the UNet reads text of width 40, the text encoder writes 24"):
        StableDiffusionXL.load(Folder(folder), PLACE)
    shutil.rmtree(folder / "tokenizer_2")
    with pytest.raises(BadModel, match=r"has no 'tokenizer_2': a Stable Diffusion XL model needs"):
        StableDiffusionXL.load(Folder(folder), PLACE)
