"""Z-Image in the one loop against diffusers' own pipelines: same weights, seeds and sampler, fp32 final latents within 1e-4.

diffusers runs one ControlNet here, from the first step to the last, in txt2img; the rest is held against a loop written out below.
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
from pipelines.families.zimage import ZImage
from pipelines.family import Hint, Place
from pipelines.steering import Steering, united
from tests import tinymodels_flux, tinymodels_zimage
from tests.pipelines.flow_parity import check_fewer_bits, check_region, host_reads, ours
from tests.pipelines.scenes import HEIGHT, NEGATIVE, ORACLES_OWN, PLACE, PROMPT, STEPS, WAYS, WIDTH, image, left_half, picture
from tests.pipelines.their_pipelines import assert_same, euler_by_hand, generators, means_for_samples, their_pipe

pytestmark = ORACLES_OWN

GUIDANCE, WEIGHTS = 3.0, (0.7, 0.4)
NETS: dict[str, dict[str, Any]] = {
    "net-0": {},
    "net-1": {"control_layers_places": [0, 1]},
    "hole": {"control_in_dim": 33},
    "refined": {"add_control_noise_refiner": "control_noise_refiner", "control_refiner_layers_places": [0], "control_in_dim": 33},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two ControlNets that add to different layers, and one of the second version, with channels for a hole."""
    root = tmp_path_factory.mktemp("zimage")
    tinymodels_zimage.build_base(root / "base")
    for seed, (name, config) in enumerate(NETS.items()):
        tinymodels_zimage.build_controlnet(root / name, seed=seed + 1, **config)
    return root


@pytest.fixture(scope="module")
def family(folder: Path) -> ZImage:
    """The base, loaded."""
    return ZImage.load(Folder(folder / "base"), PLACE)


def steer(family: ZImage, net: Path, i: int = 0, **how: Any) -> Steering:
    return Steering(family.prepare(family.load_control(Folder(net)), Hint(picture(i), "canny")), **how)


def their_net(folder: Path) -> Any:
    import diffusers

    net = diffusers.ZImageControlNetModel.from_pretrained(folder)
    net.gradient_checkpointing = False  # read by its forward, never set
    return net


def theirs(kind: str, folder: Path, net: str = "", **call: Any) -> Tensor:
    """Final latents (B, C, H, W) of a diffusers pipeline; scale: the usual one, theirs counts from 0."""
    scale = call.pop("scale", GUIDANCE)
    parts: dict[str, Any] = {}
    if net:
        parts["controlnet"], call["control_image"] = their_net(folder / net), image(picture(0))
    with means_for_samples():
        latents = their_pipe(kind, folder / "base", **parts)(
            PROMPT,
            negative_prompt=NEGATIVE,
            height=HEIGHT,
            width=WIDTH,
            num_inference_steps=STEPS,
            guidance_scale=scale - 1.0,
            generator=generators()[0],
            output_type="latent",
            **call,
        ).images
    assert isinstance(latents, Tensor)
    return latents


@torch.no_grad()
def reference(folder: Path, nets: Sequence[str], windows: Sequence[tuple[float, float]], way: str) -> Tensor:
    """Several ControlNets, each in its window, guided: what diffusers' loop would be."""
    import diffusers

    pipe = their_pipe("ZImagePipeline", folder / "base")
    loaded = [diffusers.ZImageControlNetModel.from_transformer(their_net(folder / net), pipe.transformer) for net in nets]
    shift, factor = pipe.vae.config.shift_factor, pipe.vae.config.scaling_factor

    def encoded(seed: int) -> Tensor:
        pixels = pipe.image_processor.preprocess(image(picture(seed)))
        return (pipe.vae.encode(pixels).latent_dist.mean - shift) * factor

    maps, texts = [encoded(i)[:, :, None] for i in range(len(nets))], [pipe.encode_prompt(words)[0] for words in (PROMPT, NEGATIVE)]

    def half(x: Tensor, t: Tensor, text: list[Tensor], share: tuple[float, float]) -> Tensor:
        told, layers = ([x[0][:, None]], (1000 - t[None]) / 1000, text), dict[int, Tensor]()
        for net, cond, weight, (begin, end) in zip(loaded, maps, WEIGHTS, windows, strict=False):
            if share[0] >= begin and share[1] <= end:
                for layer, residual in net(*told, cond, conditioning_scale=weight).items():
                    layers[layer] = layers[layer] + residual if layer in layers else residual
        return -pipe.transformer(*told, controlnet_block_samples=layers, return_dict=False)[0][0][None, :, 0]

    def velocity(x: Tensor, t: Tensor, i: int, n: int) -> Tensor:
        prompted, without = (half(x, t, text, (i / n, (i + 1) / n)) for text in texts)
        return without + GUIDANCE * (prompted - without)

    pipe.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / STEPS, STEPS))
    return euler_by_hand(pipe.scheduler, velocity, encoded(5), way)


@pytest.mark.parametrize("scale", [1.0, GUIDANCE])
def test_txt2img(scale: float, family: ZImage, folder: Path) -> None:
    assert_same(ours(family, true_scale=scale), theirs("ZImagePipeline", folder, scale=scale))


def test_several_pictures_are_those_drawn_alone(family: ZImage, folder: Path) -> None:
    controls = [steer(family, folder / "net-0")]
    both = ours(family, controls, true_scale=GUIDANCE, count=2)
    # The rows of a batch are multiplied in another order.
    torch.testing.assert_close(both[:1], ours(family, controls, true_scale=GUIDANCE), rtol=0, atol=1e-4)
    assert (both[0] - both[1]).abs().max() > 0.1


# diffusers scales what the second version's refiner adds inside the ControlNet too; the loop's weight is on what the base is given.
@pytest.mark.parametrize(("net", "weight"), [("net-0", 0.7), ("refined", 1.0)])
@pytest.mark.parametrize("scale", [1.0, GUIDANCE])
def test_a_controlnet(scale: float, net: str, weight: float, family: ZImage, folder: Path) -> None:
    """Each half of guidance is steered by what the ControlNet makes of its own prompt."""
    expected = theirs("ZImageControlNetPipeline", folder, net, scale=scale, controlnet_conditioning_scale=weight)
    got = ours(family, [steer(family, folder / net, weight=weight)], true_scale=scale)
    assert_same(got, expected)
    assert (got - ours(family, true_scale=scale)).abs().max() > 1e-2  # the control did something


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("nets", [["net-0"], ["net-0", "net-1"]], ids=len)
def test_what_diffusers_has_no_pipeline_for(nets: list[str], way: str, family: ZImage, folder: Path) -> None:
    """One ControlNet or two, each in its window."""
    windows = [(0.0, 0.6), (0.3, 1.0)]
    controls = [steer(family, folder / net, i, weight=WEIGHTS[i], start=windows[i][0], end=windows[i][1]) for i, net in enumerate(nets)]
    got = ours(family, controls, true_scale=GUIDANCE, **WAYS[way])
    assert_same(got, reference(folder, nets, windows, way))
    assert (got - ours(family, true_scale=GUIDANCE, **WAYS[way])).abs().max() > 1e-2  # the controls did something


@pytest.mark.parametrize(("net", "weight"), [("hole", 0.7), ("refined", 1.0)])
def test_a_map_and_a_hole_in_one_call(net: str, weight: float, family: ZImage, folder: Path) -> None:
    """The hole is a mask, or what is black; map and hole have channels of their own."""
    loaded = family.load_control(Folder(folder / net))
    black = np.maximum(picture(5), 1)
    black[:, : WIDTH // 2] = 0
    hints = [Hint(picture(0), "canny"), Hint(picture(5), "inpaint", left_half())]
    controls = united([Steering(family.prepare(loaded, hint), weight=weight) for hint in hints])
    assert len(controls) == 1
    pictures: dict[str, Any] = {"image": image(picture(5)), "mask_image": image(left_half())}
    expected = theirs("ZImageControlNetInpaintPipeline", folder, net, controlnet_conditioning_scale=weight, **pictures)
    got = ours(family, controls, true_scale=GUIDANCE)
    assert_same(got, expected)
    assert (got - ours(family, [Steering(family.prepare(loaded, hints[0]), weight=weight)], true_scale=GUIDANCE)).abs().max() > 1e-2
    masked, blackened = (
        family.prepare(loaded, Hint(np.maximum(picture(5), 1), "inpaint", left_half())),
        family.prepare(loaded, Hint(black, "inpaint")),
    )
    assert torch.equal(masked.map_1CHW, blackened.map_1CHW)
    with pytest.raises(Mismatch, match="takes 16 channels, for a hole it would take 33"):
        family.prepare(family.load_control(Folder(folder / "net-0")), hints[1])


def test_img2img_and_inpaint(family: ZImage, folder: Path) -> None:
    expected = theirs("ZImageImg2ImgPipeline", folder, image=image(picture(5)), strength=0.7)
    assert_same(ours(family, true_scale=GUIDANCE, image_HWC=picture(5), strength=0.7), expected)
    pictures: dict[str, Any] = {"image": image(picture(5)), "mask_image": image(left_half())}
    expected = theirs("ZImageInpaintPipeline", folder, strength=0.8, **pictures)
    assert_same(ours(family, true_scale=GUIDANCE, image_HWC=picture(5), mask_HW=left_half(), strength=0.8), expected)


@pytest.mark.parametrize("mode", ["prompt", "control", "guess"])
def test_modes_beside_one_that_steers_both_halves(mode: Any, family: ZImage, folder: Path) -> None:
    """Texts of different lengths: residuals of one half and of both are added up."""
    first, second = steer(family, folder / "net-0"), steer(family, folder / "net-1", 1)
    balanced = ours(family, [first, second], true_scale=GUIDANCE)
    other = ours(family, [first, steer(family, folder / "net-1", 1, mode=mode)], true_scale=GUIDANCE)
    assert (other - balanced).abs().max() > 1e-3


def test_a_region_holds_residuals_to_its_tokens(family: ZImage, folder: Path) -> None:
    check_region(family, folder, "0")
    assert steer(family, folder / "net-0").control.levels == 2


def test_long_prompts_say_what_was_dropped(family: ZImage) -> None:
    text = family.encode_prompt("a red sphere " * 600 + "snow")
    assert text.tokens_BLD.shape[1] == 512
    assert text.dropped.endswith("snow")


def test_no_step_waits_for_the_device(family: ZImage, folder: Path) -> None:
    assert host_reads(family, steer(family, folder / "net-0").control) == 0


def test_in_half_the_bits(family: ZImage, folder: Path) -> None:
    check_fewer_bits(family, ZImage.load(Folder(folder / "base"), Place(PLACE.device, torch.bfloat16)), folder, bound=0.05, net="0")


def test_what_does_not_fit_is_refused(family: ZImage, folder: Path, tmp_path: Path) -> None:
    tinymodels_flux.build_controlnet(tmp_path / "flux")
    tinymodels_zimage.build_controlnet(tmp_path / "wide", dim=64)
    tinymodels_zimage.build_controlnet(tmp_path / "deep", control_layers_places=[0, 7])
    tinymodels_zimage.build_controlnet(tmp_path / "thin", control_in_dim=4)
    for name, message in (
        ("flux", "is a ControlNet for FLUX.1, the base model .* is Z-Image"),
        ("wide", "dim 64, the base model .* 32"),
        ("deep", "adds to layer 7, the base model has layers 0 to 2"),
        ("thin", "takes 4 channels, the base model's latents have 16"),
    ):
        with pytest.raises(Mismatch, match=message):
            family.check_control(Folder(tmp_path / name))
    assert family.side_px == 16
    with pytest.raises(BadRequest, match="multiples of 16 pixels"):
        family.latent_shape(72, 64)
    assert ZImage.recognises(Folder(folder / "base"))
