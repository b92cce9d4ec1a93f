"""Qwen-Image in the one loop against diffusers' own pipelines: same weights, seeds and sampler, fp32 final latents within 1e-4.

diffusers runs one ControlNet here, from pure noise; the rest is held against a loop written out below.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core.errors import BadRequest, Mismatch
from pipelines.checkpoint import Folder
from pipelines.families.qwenimage import FRAME, QwenImage
from pipelines.family import Hint, Place
from pipelines.prompt import parse
from pipelines.steering import Steering
from pipelines.tokens import unpack
from tests import tinymodels_flux, tinymodels_qwenimage
from tests.pipelines.flow_parity import check_fewer_bits, check_region, host_reads, ours
from tests.pipelines.scenes import HEIGHT, NEGATIVE, ORACLES_OWN, PLACE, PROMPT, STEPS, WAYS, WIDTH, image, left_half, picture
from tests.pipelines.their_pipelines import assert_same, euler_by_hand, generators, means_for_samples, their_pipe

pytestmark = ORACLES_OWN

GUIDANCE, WEIGHTS = 3.0, (0.7, 0.4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two ControlNets of different depth, and one for inpainting."""
    root = tmp_path_factory.mktemp("qwenimage")
    tinymodels_qwenimage.build_base(root / "base")
    tinymodels_qwenimage.build_controlnet(root / "net-0", seed=1)
    tinymodels_qwenimage.build_controlnet(root / "net-1", seed=2, num_layers=1)
    tinymodels_qwenimage.build_controlnet(root / "hole", seed=3, extra_condition_channels=4)
    return root


@pytest.fixture(scope="module")
def family(folder: Path) -> QwenImage:
    """The base, loaded."""
    return QwenImage.load(Folder(folder / "base"), PLACE)


def steer(family: QwenImage, net: Path, i: int = 0, **how: Any) -> Steering:
    return Steering(family.prepare(family.load_control(Folder(net)), Hint(picture(i), "canny")), **how)


def qwen_pipe(kind: str, folder: Path, **parts: Any) -> Any:
    """A diffusers pipeline that drops as many tokens as the tiny tokenizer has before a prompt, where the real one has 34."""
    pipe = their_pipe(kind, folder / "base", **parts)
    pipe.prompt_template_encode_start_idx = len(pipe.tokenizer(FRAME[0]).input_ids)
    return pipe


def theirs(kind: str, folder: Path, net: str = "", **call: Any) -> Tensor:
    """Final latents (B, C, H, W) of a diffusers pipeline; maps: how many the network is given."""
    import diffusers

    maps = call.pop("maps", 1)
    parts: dict[str, Any] = {}
    if net:
        loaded = diffusers.QwenImageControlNetModel.from_pretrained(folder / net)
        images = [image(picture(i)) for i in range(maps)]
        parts["controlnet"] = diffusers.QwenImageMultiControlNetModel([loaded]) if maps > 1 else loaded
        call["control_image"] = images if maps > 1 else images[0]
    count = call.get("num_images_per_prompt", 1)
    with means_for_samples():
        tokens = qwen_pipe(kind, folder, **parts)(
            PROMPT,
            negative_prompt=NEGATIVE,
            height=HEIGHT,
            width=WIDTH,
            num_inference_steps=STEPS,
            generator=generators(count) if count > 1 else generators()[0],
            output_type="latent",
            **({"true_cfg_scale": GUIDANCE} | call),
        ).images
    return unpack(tokens, HEIGHT // 8, WIDTH // 8)


@torch.no_grad()
def reference(folder: Path, nets: Sequence[str], windows: Sequence[tuple[float, float]], way: str) -> Tensor:
    """Several ControlNets, each in its window, guided: what diffusers' loop would be."""
    import diffusers

    pipe = qwen_pipe("QwenImagePipeline", folder)
    loaded = [diffusers.QwenImageControlNetModel.from_pretrained(folder / net) for net in nets]
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1, 1) for values in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std))

    def packed(x: Tensor) -> Tensor:
        return pipe._pack_latents(x[:, None], 1, 16, HEIGHT // 8, WIDTH // 8)

    def encoded(seed: int) -> Tensor:
        pixels = pipe.image_processor.preprocess(image(picture(seed)))[:, :, None]
        return ((pipe.vae.encode(pixels).latent_dist.mean - mean) / std)[:, :, 0]

    maps, texts = [packed(encoded(i)) for i in range(len(nets))], [pipe.encode_prompt(words)[0] for words in (PROMPT, NEGATIVE)]

    def velocity(x: Tensor, t: Tensor, i: int, n: int) -> Tensor:
        told = {
            "hidden_states": packed(x),
            "timestep": t[None] / 1000,
            "img_shapes": [(1, HEIGHT // 16, WIDTH // 16)],
            "return_dict": False,
        }
        blocks = [torch.zeros(1)] * 3
        for net, cond, weight, (begin, end) in zip(loaded, maps, WEIGHTS, windows, strict=False):
            if i / n >= begin and (i + 1) / n <= end:
                levels = net(controlnet_cond=cond, conditioning_scale=weight, encoder_hidden_states=texts[0], **told)
                blocks = [block + levels[j // -(-3 // len(levels))] for j, block in enumerate(blocks)]
        prompted, without = (pipe.transformer(encoder_hidden_states=text, controlnet_block_samples=blocks, **told)[0] for text in texts)
        guided = without + GUIDANCE * (prompted - without)
        return unpack(guided * (prompted.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)), HEIGHT // 8, WIDTH // 8)

    config = pipe.scheduler.config
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    mu = config.base_shift + (HEIGHT * WIDTH // 256 - config.base_image_seq_len) * slope
    pipe.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / STEPS, STEPS), mu=mu)
    return euler_by_hand(pipe.scheduler, velocity, encoded(5), way)


@pytest.mark.parametrize("scale", [1.0, GUIDANCE])
def test_txt2img(scale: float, family: QwenImage, folder: Path) -> None:
    """With guidance too: the guided output has the length of the prompt's own, token by token."""
    assert_same(ours(family, true_scale=scale), theirs("QwenImagePipeline", folder, true_cfg_scale=scale))


def test_several_pictures(family: QwenImage, folder: Path) -> None:
    assert_same(ours(family, true_scale=GUIDANCE, count=2), theirs("QwenImagePipeline", folder, num_images_per_prompt=2))


@pytest.mark.parametrize("scale", [1.0, GUIDANCE])
def test_a_controlnet_in_its_window(scale: float, family: QwenImage, folder: Path) -> None:
    options: dict[str, Any] = {"controlnet_conditioning_scale": 0.7, "control_guidance_start": 0.3, "control_guidance_end": 0.9}
    expected = theirs("QwenImageControlNetPipeline", folder, "net-0", true_cfg_scale=scale, **options)
    got = ours(family, [steer(family, folder / "net-0", weight=0.7, start=0.3, end=0.9)], true_scale=scale)
    assert_same(got, expected)
    assert (got - ours(family, true_scale=scale)).abs().max() > 1e-2  # the control did something


def test_one_network_with_two_maps(family: QwenImage, folder: Path) -> None:
    # Given one window for both, diffusers would leave the second map out.
    options: dict[str, Any] = {"control_guidance_start": [0.0, 0.0], "control_guidance_end": [1.0, 1.0]}
    options["controlnet_conditioning_scale"] = [0.7, 0.4]
    expected = theirs("QwenImageControlNetPipeline", folder, "net-0", maps=2, **options)
    controls = [steer(family, folder / "net-0", i, weight=weight) for i, weight in enumerate((0.7, 0.4))]
    assert_same(ours(family, controls, true_scale=GUIDANCE), expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("nets", [["net-0"], ["net-0", "net-1"]], ids=len)
def test_what_diffusers_has_no_pipeline_for(nets: list[str], way: str, family: QwenImage, folder: Path) -> None:
    """One ControlNet or two of different depths, each in its window."""
    windows = [(0.0, 0.6), (0.3, 1.0)]
    controls = [steer(family, folder / net, i, weight=WEIGHTS[i], start=windows[i][0], end=windows[i][1]) for i, net in enumerate(nets)]
    got = ours(family, controls, true_scale=GUIDANCE, **WAYS[way])
    assert_same(got, reference(folder, nets, windows, way))
    assert (got - ours(family, true_scale=GUIDANCE, **WAYS[way])).abs().max() > 1e-2  # the controls did something


def test_img2img_and_inpaint(family: QwenImage, folder: Path) -> None:
    expected = theirs("QwenImageImg2ImgPipeline", folder, image=image(picture(5)), strength=0.7)
    assert_same(ours(family, true_scale=GUIDANCE, image_HWC=picture(5), strength=0.7), expected)
    pictures: dict[str, Any] = {"image": image(picture(5)), "mask_image": image(left_half())}
    expected = theirs("QwenImageInpaintPipeline", folder, strength=0.8, **pictures)
    assert_same(ours(family, true_scale=GUIDANCE, image_HWC=picture(5), mask_HW=left_half(), strength=0.8), expected)


def test_a_controlnet_for_inpainting(family: QwenImage, folder: Path) -> None:
    expected = theirs("QwenImageControlNetInpaintPipeline", folder, "hole", control_mask=image(left_half()))
    net = family.load_control(Folder(folder / "hole"))
    prepared = family.prepare(net, Hint(picture(0), "inpaint", left_half()))
    assert_same(ours(family, [Steering(prepared)], true_scale=GUIDANCE), expected)
    black = picture(0).copy()
    black[:, : WIDTH // 2] = 0
    assert torch.equal(net.features(Hint(black, "inpaint")), net.features(Hint(picture(0), "inpaint", left_half())))


def test_pictures_and_latents(family: QwenImage, folder: Path) -> None:
    latents = family.encode_image(picture(0))
    assert latents.shape == (1, *family.latent_shape(WIDTH, HEIGHT))
    pipe = qwen_pipe("QwenImagePipeline", folder)
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1, 1) for values in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std))
    with torch.no_grad():
        expected = pipe.vae.decode(latents[:, :, None] * std + mean, return_dict=False)[0][:, :, 0]
    torch.testing.assert_close(family.decode(latents), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["prompt", "control", "guess"])
def test_modes(mode: Any, family: QwenImage, folder: Path) -> None:
    balanced = ours(family, [steer(family, folder / "net-0")], true_scale=GUIDANCE)
    assert (ours(family, [steer(family, folder / "net-0", mode=mode)], true_scale=GUIDANCE) - balanced).abs().max() > 1e-3


def test_a_region_holds_residuals_to_its_tokens(family: QwenImage, folder: Path) -> None:
    check_region(family, folder, "0")
    assert steer(family, folder / "net-0").control.levels == 2


def test_weights_and_long_prompts(family: QwenImage) -> None:
    plain, weighted = family.encode_prompt(PROMPT), family.encode_prompt(parse("(a red sphere:2) left", 1).parts[0].at(0))
    assert plain.dropped == ""
    unweighted = family.encode_prompt("a red sphere left")
    ratio = weighted.tokens_BLD / unweighted.tokens_BLD
    words = len(family.tokenizer("a red sphere").input_ids)
    torch.testing.assert_close(ratio[0, :words], torch.full_like(ratio[0, :words], 2.0))
    torch.testing.assert_close(ratio[0, words:], torch.ones_like(ratio[0, words:]))
    broken = family.encode_prompt(parse("a red sphere BREAK (left:2)", 1).parts[0].at(0)).tokens_BLD / unweighted.tokens_BLD
    torch.testing.assert_close(broken[0, :words], torch.ones_like(broken[0, :words]))  # words on both sides of a BREAK stay apart
    left = len(family.tokenizer(" left").input_ids)
    torch.testing.assert_close(broken[0, words : words + left], torch.full_like(broken[0, words : words + left], 2.0))
    long = family.encode_prompt("a red sphere " * 600 + "snow")
    assert long.tokens_BLD.shape[1] == 512
    assert long.dropped.endswith("snow")


def test_no_step_waits_for_the_device(family: QwenImage, folder: Path) -> None:
    assert host_reads(family, steer(family, folder / "net-0").control) == 0


def test_in_half_the_bits(family: QwenImage, folder: Path) -> None:
    check_fewer_bits(family, QwenImage.load(Folder(folder / "base"), Place(PLACE.device, torch.bfloat16)), folder, bound=0.05, net="0")


def test_what_does_not_fit_is_refused(family: QwenImage, folder: Path, tmp_path: Path) -> None:
    tinymodels_flux.build_controlnet(tmp_path / "flux")
    tinymodels_qwenimage.build_controlnet(tmp_path / "narrow", num_attention_heads=1)
    with pytest.raises(Mismatch, match=r"is a ControlNet for FLUX.1, the base model .* is Qwen-Image"):
        family.check_control(Folder(tmp_path / "flux"))
    with pytest.raises(Mismatch, match=r"width 16, the base model .* 32"):
        family.check_control(Folder(tmp_path / "narrow"))
    assert family.side_px == 16
    with pytest.raises(BadRequest, match="multiples of 16 pixels"):
        family.latent_shape(72, 64)
    assert QwenImage.recognises(Folder(folder / "base"))
