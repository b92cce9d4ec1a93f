"""Stable Diffusion 3 and 3.5 in the one loop against diffusers' own pipelines: same weights and seeds, fp32 final latents within 1e-4."""

from pathlib import Path

import pytest
import torch

from core.errors import BadRequest
from core.request import Mode, SkipLayers
from pipelines.families.sd3 import StableDiffusion3
from pipelines.family import Hint
from pipelines.steering import level_factors
from tests.pipelines import sd3_parity
from tests.pipelines.flow_parity import GUIDANCE, drawn, ours, plan_of, steered
from tests.pipelines.scenes import HEIGHT, ORACLES_OWN, WAYS, WIDTH, image, left_half, picture
from tests.pipelines.sd3_parity import by_hand, pipeline, theirs
from tests.pipelines.their_pipelines import assert_same

pytestmark = ORACLES_OWN


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sd3_parity.build(tmp_path_factory.mktemp("sd3"))


@pytest.fixture(scope="module")
def families(models: Path) -> dict[str, StableDiffusion3]:
    return sd3_parity.load(models)


@pytest.mark.parametrize("base", ["3", "3.5", "shifting"])
def test_text_to_image(base: str, models: Path, families: dict[str, StableDiffusion3]) -> None:
    pipe = pipeline("StableDiffusion3Pipeline", models, base, [])
    assert_same(drawn(families[base], plan_of(families[base])), theirs(pipe))
    assert_same(drawn(families[base], plan_of(families[base], guidance=1.0), count=2), theirs(pipe, count=2, guidance_scale=1.0))


@pytest.mark.parametrize(
    ("base", "nets"),
    [
        ("3", ["plain"]),
        ("3", ["deep"]),
        ("3", ["plain", "plain"]),
        ("3", ["pooled"]),
        ("3.5", ["3.5"]),
        ("3.5", ["large"]),
        ("3.5", ["large", "large"]),
    ],
)
def test_controls(base: str, nets: list[str], models: Path, families: dict[str, StableDiffusion3]) -> None:
    pipe, several = pipeline("StableDiffusion3ControlNetPipeline", models, base, nets), len(nets) > 1
    maps = [image(picture(i)) for i in range(len(nets))]
    weights, starts, ends = [0.7, 0.4][: len(nets)], [0.2, 0.0][: len(nets)], [0.9, 0.5][: len(nets)]
    for window in ({}, {"start": starts, "end": ends}):
        expected = theirs(
            pipe,
            control_image=maps if several else maps[0],
            controlnet_conditioning_scale=weights if several else weights[0],
            **{f"control_guidance_{edge}": value if several else value[0] for edge, value in window.items()},
        )
        controls = steered(families[base], models, nets, weight=weights, **window)
        assert_same(drawn(families[base], plan_of(families[base], *controls)), expected)
    assert (expected - drawn(families[base], plan_of(families[base]))).abs().max() > 1e-2  # the control did something


@pytest.mark.parametrize("kind", ["canny", "tile"])
def test_large_nets_see_edges_in_a_range_of_their_own(kind: str, models: Path, families: dict[str, StableDiffusion3]) -> None:
    pixels = torch.from_numpy(picture(0)).permute(2, 0, 1)[None] / 255.0
    seen = pixels * 255.0 * 0.5 + 0.5 if kind == "canny" else pixels * 2.0 - 1.0
    pipe = pipeline("StableDiffusion3ControlNetPipeline", models, "3.5", ["large"])
    controls = steered(families["3.5"], models, ["large"], hint=Hint(picture(0), kind))
    assert_same(drawn(families["3.5"], plan_of(families["3.5"], *controls)), theirs(pipe, control_image=seen))


def test_an_inpainting_controlnet_reads_the_mask(models: Path, families: dict[str, StableDiffusion3]) -> None:
    pipe = pipeline("StableDiffusion3ControlNetInpaintingPipeline", models, "3", ["inpaint"])
    expected = theirs(pipe, control_image=image(picture(5)), control_mask=image(left_half()))
    controls = steered(families["3"], models, ["inpaint"], hint=Hint(picture(5), "inpaint", left_half()))
    assert_same(drawn(families["3"], plan_of(families["3"], *controls)), expected)
    with pytest.raises(BadRequest, match="give the request a mask"):
        steered(families["3"], models, ["inpaint"])


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("base", ["3", "shifting"])
def test_image_to_image(base: str, strength: float, models: Path, families: dict[str, StableDiffusion3]) -> None:
    pipe = pipeline("StableDiffusion3Img2ImgPipeline", models, base, [])
    expected = theirs(pipe, image=image(picture(5)), strength=strength)
    assert_same(ours(families[base], true_scale=GUIDANCE, image_HWC=picture(5), strength=strength), expected)


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("base", ["3", "3-inpaint"])
def test_inpainting(base: str, strength: float, models: Path, families: dict[str, StableDiffusion3]) -> None:
    """By blending latents, and with a transformer that reads mask and picture."""
    pipe = pipeline("StableDiffusion3InpaintPipeline", models, base, [])
    expected = theirs(pipe, image=image(picture(5)), mask_image=image(left_half()), strength=strength)
    assert_same(ours(families[base], true_scale=GUIDANCE, image_HWC=picture(5), mask_HW=left_half(), strength=strength), expected)
    assert families["3"].inpaint(picture(5), left_half()) is None


def test_perturbed_attention(models: Path, families: dict[str, StableDiffusion3]) -> None:
    pipe = pipeline("StableDiffusion3PAGPipeline", models, "3", [])
    assert_same(drawn(families["3"], plan_of(families["3"], pag_scale=2.0)), theirs(pipe, pag_scale=2.0))


@pytest.mark.parametrize(("base", "blocks"), [("3", [0]), ("3.5", [1])])
def test_skip_layer_guidance(base: str, blocks: list[int], models: Path, families: dict[str, StableDiffusion3]) -> None:
    pipe = pipeline("StableDiffusion3Pipeline", models, base, [])
    window = {"skip_layer_guidance_start": 0.01, "skip_layer_guidance_stop": 0.8}
    expected = theirs(pipe, skip_guidance_layers=blocks, skip_layer_guidance_scale=2.0, **window)
    plan = plan_of(families[base], skip=SkipLayers(blocks=tuple(blocks), scale=2.0, start=0.01, end=0.8))
    assert_same(drawn(families[base], plan), expected)
    assert (expected - drawn(families[base], plan_of(families[base]))).abs().max() > 1e-2


# What diffusers has no pipeline for.


@pytest.mark.parametrize("way", ["img2img", "inpaint"])
@pytest.mark.parametrize("nets", [["plain"], ["plain", "deep"]])
@torch.no_grad()
def test_pictures_under_controls(nets: list[str], way: str, models: Path, families: dict[str, StableDiffusion3]) -> None:
    weights = [0.6, 0.5]
    got = ours(families["3"], steered(families["3"], models, nets, weight=weights), true_scale=GUIDANCE, **WAYS[way])
    assert_same(got, by_hand(families["3"], models, nets, lambda net, level, levels: weights[net], way))


@torch.no_grad()
def test_controls_of_different_depths(models: Path, families: dict[str, StableDiffusion3]) -> None:
    """diffusers' multi-ControlNet drops the deeper net's last levels."""
    nets, weights = ["plain", "deep"], [0.6, 0.5]
    got = drawn(families["3"], plan_of(families["3"], *steered(families["3"], models, nets, weight=weights)))
    assert_same(got, by_hand(families["3"], models, nets, lambda net, level, levels: weights[net]))


@pytest.mark.parametrize("mode", ["prompt", "control", "guess"])
@torch.no_grad()
def test_modes(mode: Mode, models: Path, families: dict[str, StableDiffusion3]) -> None:
    half = torch.tensor([1.0 if mode == "prompt" else 0.0, 1.0]).reshape(2, 1, 1)
    got = drawn(families["3"], plan_of(families["3"], *steered(families["3"], models, ["deep"], mode=mode)))
    assert_same(got, by_hand(families["3"], models, ["deep"], lambda net, level, levels: level_factors(mode, levels)[level] * half))


@torch.no_grad()
def test_regions_and_layer_weights(models: Path, families: dict[str, StableDiffusion3]) -> None:
    """A mask is averaged over each token's pixels, tokens in reading order."""
    mask, own = torch.zeros(HEIGHT, WIDTH), (0.2, 0.0, 0.9)
    mask[: HEIGHT // 2, 24:] = 1.0
    tokens = mask.reshape(4, 16, 6, 16).mean(dim=(1, 3)).reshape(1, 24, 1)
    controls = steered(families["3"], models, ["deep"], mask_HW=mask, layer_weights=own, weight=0.8)
    got = drawn(families["3"], plan_of(families["3"], *controls))
    assert_same(got, by_hand(families["3"], models, ["deep"], lambda net, level, levels: 0.8 * own[level] * tokens))
