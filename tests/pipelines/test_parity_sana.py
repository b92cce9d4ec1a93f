"""Sana in the one loop against diffusers' own pipelines: same weights, seeds and sampler, fp32 final latents within 1e-4.

diffusers has text to image, and one ControlNet without a window; the rest is held against the networks called by hand.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core.errors import BadModel, Mismatch
from core.request import Mode
from pipelines.checkpoint import Folder
from pipelines.families.sana import Sana
from pipelines.images import tensor_to_pictures
from pipelines.prompt import parse, plain
from pipelines.steering import level_factors
from tests import tinymodels_sana
from tests.pipelines.flow_parity import (
    GUIDANCE,
    check_batch,
    check_embedded_once,
    check_fewer_bits,
    check_misfit,
    drawing,
    drawn,
    host_reads,
    ours,
    plan_of,
    steered,
)
from tests.pipelines.scenes import HEIGHT, NEGATIVE, ORACLES_OWN, PLACE, PROMPT, STEPS, WAYS, WIDTH, image, picture
from tests.pipelines.their_pipelines import assert_same, euler_by_hand, generators, their_pipe

pytestmark = ORACLES_OWN

BASES = ("solver", "euler")  # by the scheduler the checkpoint comes with


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sana")
    tinymodels_sana.build_base(folder / "base-solver")
    # A learned variance, a scale of time and positions, as checkpoints of several ages have them.
    later = {"out_channels": 8, "interpolation_scale": 1, "qk_norm": "rms_norm_across_heads"}
    tinymodels_sana.build_base(folder / "base-euler", seed=2, flow_match=True, **later)
    tinymodels_sana.build_controlnet(folder / "net-plain")
    tinymodels_sana.build_controlnet(folder / "net-deep", seed=3, num_layers=3, interpolation_scale=1)
    return folder


@pytest.fixture(scope="module")
def families(models: Path) -> dict[str, Sana]:
    return {name: Sana.load(Folder(models / f"base-{name}"), PLACE) for name in BASES}


def theirs(kind: str, base: Path, net: Path | None = None, count: int = 1, **options: Any) -> Any:
    """What diffusers' documented pipeline draws: final latents, if nothing else is asked for."""
    import diffusers

    parts = {} if net is None else {"controlnet": diffusers.SanaControlNetModel.from_pretrained(net)}
    call: dict[str, Any] = {"guidance_scale": GUIDANCE, "output_type": "latent", "width": WIDTH, "height": HEIGHT, **options}
    return their_pipe(kind, base, **parts)(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_images_per_prompt=count,
        num_inference_steps=STEPS,
        generator=generators(count),
        use_resolution_binning=False,
        **call,
    ).images


@pytest.mark.parametrize("base", BASES)
def test_text_to_image(base: str, models: Path, families: dict[str, Sana]) -> None:
    folder = models / f"base-{base}"
    assert_same(ours(families[base], true_scale=GUIDANCE), theirs("SanaPipeline", folder))
    assert_same(ours(families[base], count=2), theirs("SanaPipeline", folder, count=2, guidance_scale=1.0))


@pytest.mark.parametrize("net", ["plain", "deep"])
@pytest.mark.parametrize("base", BASES)
def test_one_control(base: str, net: str, models: Path, families: dict[str, Sana]) -> None:
    call = {"control_image": image(picture(0)), "controlnet_conditioning_scale": 0.7}
    got = ours(families[base], steered(families[base], models, [net], weight=0.7), true_scale=GUIDANCE)
    assert_same(got, theirs("SanaControlNetPipeline", models / f"base-{base}", models / f"net-{net}", **call))
    assert (got - ours(families[base], true_scale=GUIDANCE)).abs().max() > 1e-2  # the control did something


@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
def test_perturbed_attention(guidance: float, models: Path, families: dict[str, Sana]) -> None:
    """On the base without QK norm, which diffusers' processors for it leave out."""
    got = ours(families["solver"], true_scale=guidance, pag_scale=2.0, count=2)
    assert_same(got, theirs("SanaPAGPipeline", models / "base-solver", count=2, guidance_scale=guidance, pag_scale=2.0))
    assert (got - ours(families["solver"], true_scale=guidance, count=2)).abs().max() > 1e-2  # it did something


def test_pictures_and_latents(models: Path, families: dict[str, Sana]) -> None:
    """Decoding and encoding are diffusers' as well."""
    family, folder = families["euler"], models / "base-euler"
    expected = np.asarray(theirs("SanaPipeline", folder, output_type="pil")[0])
    got = tensor_to_pictures(family.decode(ours(family, true_scale=GUIDANCE)))[0]
    assert np.abs(got.astype(int) - expected).max() <= 1  # rounding of a half
    pixels = torch.from_numpy(picture(5)).permute(2, 0, 1)[None] / 127.5 - 1.0
    expected = their_pipe("SanaPipeline", folder).vae.encode(pixels).latent.detach() * 0.41407
    torch.testing.assert_close(family.encode_image(picture(5)), expected, rtol=0, atol=1e-5)


# What diffusers has no pipeline for.

Factor = Callable[[int, int, int, int], Any]


def by_hand(family: Sana, models: Path, nets: list[str], factor: Factor, way: str = "txt2img") -> Tensor:
    """Euler's method over the networks themselves, on the base "euler". factor(net, step, level, levels): what the tokens of (negative,
    prompt) are multiplied with.
    """
    import diffusers

    loaded = [diffusers.SanaControlNetModel.from_pretrained(models / f"net-{net}") for net in nets]
    maps = [torch.from_numpy(picture(i)).permute(2, 0, 1)[None] / 127.5 - 1.0 for i in range(len(nets))]
    hints = [family.vae.encode(one).latent * family.vae.config.scaling_factor for one in maps]
    texts = [drawing(family, NEGATIVE, GUIDANCE, negative=True), drawing(family, PROMPT, GUIDANCE)]
    tokens, mask = torch.cat([text.tokens_BLD for text in texts]), torch.cat([text.mask() for text in texts])

    def velocity(x: Tensor, t: Tensor, step: int, n: int) -> Tensor:
        rows, t_rows, added = torch.cat([x, x]), t.expand(2), [torch.zeros(2, 96, 16)] * 3
        for i, (net, hint) in enumerate(zip(loaded, hints, strict=True)):
            found = net(rows, tokens, t_rows, hint.repeat(2, 1, 1, 1), encoder_attention_mask=mask, return_dict=False)[0]
            for level, one in enumerate(found):
                added[level] = added[level] + factor(i, step, level, len(found)) * one
        options: dict[str, Any] = {"controlnet_block_samples": added, "encoder_attention_mask": mask, "return_dict": False}
        without, prompted = family.transformer(rows, tokens, t_rows, **options)[0][:, :4].chunk(2)
        return without + GUIDANCE * (prompted - without)

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(models / "base-euler", subfolder="scheduler")
    scheduler.set_timesteps(STEPS)
    return euler_by_hand(scheduler, velocity, family.encode_image(picture(5)), way)


@torch.no_grad()
def test_several_controls_with_windows(models: Path, families: dict[str, Sana]) -> None:
    nets, weights, starts, ends = ["plain", "deep"], [0.6, 0.5], [0.3, 0.0], [1.0, 0.5]
    controls = steered(families["euler"], models, nets, weight=weights, start=starts, end=ends)

    def factor(net: int, step: int, level: int, levels: int) -> float:
        return weights[net] * (step / STEPS >= starts[net] and (step + 1) / STEPS <= ends[net])

    assert_same(drawn(families["euler"], plan_of(families["euler"], *controls)), by_hand(families["euler"], models, nets, factor))


@pytest.mark.parametrize("mode", ["prompt", "control", "guess"])
@torch.no_grad()
def test_modes(mode: Mode, models: Path, families: dict[str, Sana]) -> None:
    half = torch.tensor([1.0 if mode == "prompt" else 0.0, 1.0]).reshape(2, 1, 1)
    got = drawn(families["euler"], plan_of(families["euler"], *steered(families["euler"], models, ["deep"], mode=mode)))
    expected = by_hand(families["euler"], models, ["deep"], lambda net, step, level, levels: level_factors(mode, levels)[level] * half)
    assert_same(got, expected)


@torch.no_grad()
def test_regions_and_layer_weights(models: Path, families: dict[str, Sana]) -> None:
    """A mask is averaged over each token's pixels, tokens in reading order."""
    mask, own = torch.zeros(HEIGHT, WIDTH), (0.2, 0.0, 0.9)
    mask[: HEIGHT // 2, 20:] = 1.0
    tokens = mask.reshape(8, 8, 12, 8).mean(dim=(1, 3)).reshape(1, 96, 1)
    controls = steered(families["euler"], models, ["deep"], mask_HW=mask, layer_weights=own, weight=0.8)
    got = drawn(families["euler"], plan_of(families["euler"], *controls))
    assert_same(got, by_hand(families["euler"], models, ["deep"], lambda net, step, level, levels: 0.8 * own[level] * tokens))


@pytest.mark.parametrize("way", ["img2img", "inpaint"])
@pytest.mark.parametrize("nets", [[], ["plain"], ["plain", "deep"]])
@torch.no_grad()
def test_from_a_picture(nets: list[str], way: str, models: Path, families: dict[str, Sana]) -> None:
    weights = [0.6, 0.5]
    got = ours(families["euler"], steered(families["euler"], models, nets, weight=weights), true_scale=GUIDANCE, **WAYS[way])
    assert_same(got, by_hand(families["euler"], models, nets, lambda net, step, level, levels: weights[net], way))


def test_a_map_is_encoded_and_embedded_once(models: Path, families: dict[str, Sana]) -> None:
    check_embedded_once(families["euler"], families["euler"].load_control(Folder(models / "net-plain")), families["euler"].vae.encoder)


def test_each_picture_of_a_batch_is_the_one_drawn_alone(models: Path, families: dict[str, Sana]) -> None:
    check_batch(families["euler"], steered(families["euler"], models, ["plain"]))


def test_weights_of_words(families: dict[str, Sana]) -> None:
    """A weight multiplies the states of its word's tokens alone."""
    family = families["solver"]
    wording = parse("a red (sphere:1.5) on grass", 1).parts[0].at(0)
    assert wording.text == "a red sphere on grass"
    weighted, even = family.encode_prompt(wording), family.encode_prompt(plain(wording.text))
    ratio = (weighted.tokens_BLD / even.tokens_BLD)[0].mean(dim=-1)
    assert set(ratio.round(decimals=3).tolist()) == {1.0, 1.5}
    assert 1 <= int((ratio > 1.2).sum()) <= len("sphere ")


def test_what_does_not_fit_is_named(families: dict[str, Sana]) -> None:
    text = families["solver"].encode_prompt("a red sphere on grass " * 200)
    assert text.dropped.endswith("grass")
    assert text.tokens_BLD.shape[1] == 300
    assert families["solver"].encode_prompt("").empty


def test_models_that_cannot_be_drawn_with(models: Path, tmp_path: Path) -> None:
    import shutil

    def changed(part: str, **entries: Any) -> Folder:
        folder = tmp_path / part
        shutil.copytree(models / "base-solver", folder)
        file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | entries))
        return Folder(folder)

    with pytest.raises(BadModel, match=r"is Sana-Sprint, which is sampled in another way"):
        Sana.load(changed("transformer", guidance_embeds=True), PLACE)
    with pytest.raises(Mismatch, match=r"is DPMSolverMultistepScheduler without flow: Sana is sampled as a flow"):
        Sana.load(changed("scheduler", use_flow_sigmas=False), PLACE)


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        (Mismatch, {"_class_name": "SD3ControlNetModel"}, r"is a ControlNet for Stable Diffusion 3, .* is Sana"),
        (BadModel, {"_class_name": "SanaTransformer2DModel"}, r"is SanaTransformer2DModel, not a SanaControlNetModel"),
        (Mismatch, {"_class_name": "SanaControlNetModel"}, r"has width 2240, the base model .* 16: use a ControlNet trained for this base"),
        (Mismatch, {"caption_channels": 64}, r"has caption_channels 64, the base model .* 32"),
        (Mismatch, {"num_layers": 4}, r"has 4 layers, the base model takes at most 3"),
    ],
)
def test_controlnets_that_do_not_fit(
    kind: type[Exception], config: dict[str, Any], message: str, models: Path, tmp_path: Path, families: dict[str, Sana]
) -> None:
    check_misfit(families["euler"], models / "net-plain", tmp_path, config, (kind, message))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fewer_bits(dtype: torch.dtype, models: Path, families: dict[str, Sana]) -> None:
    check_fewer_bits(families["euler"], Sana.load(Folder(models / "base-euler"), replace(PLACE, dtype=dtype)), models, bound=0.03)


def test_no_step_waits_for_the_device(models: Path, families: dict[str, Sana]) -> None:
    assert host_reads(families["euler"], steered(families["euler"], models, ["plain"])[0].control) == 0
