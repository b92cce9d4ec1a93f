"""FLUX.1 in the one loop against diffusers' own pipelines: same weights, seeds and sampler, fp32 final latents within 1e-4."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core.errors import BadModel, BadRequest, Mismatch
from pipelines.checkpoint import Folder
from pipelines.controlnet_flux import FluxControlNet
from pipelines.families.flux import Flux
from pipelines.family import Drawing, Hint, Place
from pipelines.steering import Steering
from pipelines.tokens import over_blocks, pack, unpack
from tests import tinymodels, tinymodels_flux
from tests.pipelines.flow_parity import check_fewer_bits, check_region, drawing, host_reads, ours
from tests.pipelines.scenes import HEIGHT, NEGATIVE, ORACLES_OWN, PLACE, PROMPT, STEPS, WAYS, WIDTH, image, left_half, picture
from tests.pipelines.their_pipelines import assert_same, euler_by_hand, generators, means_for_samples, their_pipe
from tests.tinymodels_flux import MAX_TOKENS

pytestmark = ORACLES_OWN

GUIDANCE, TRUE = 3.5, 2.5
KINDS = ("canny", "depth")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dev, schnell, a model for maps, Fill; ControlNets: two plain ones of different depth, a union one, XLabs' kind, one for holes."""
    root = tmp_path_factory.mktemp("flux")
    tinymodels_flux.build_base(root / "dev")
    tinymodels_flux.build_base(root / "schnell", guided=False)
    tinymodels_flux.build_base(root / "map", pipeline="FluxControlPipeline")
    tinymodels_flux.build_base(root / "fill", pipeline="FluxFillPipeline")
    tinymodels_flux.build_controlnet(root / "net-0", seed=1)
    tinymodels_flux.build_controlnet(root / "net-1", seed=2)
    tinymodels_flux.build_hole_controlnet(root / "hole", seed=6)
    tinymodels_flux.build_controlnet(root / "shallow", seed=3, num_layers=1, num_single_layers=0, guidance_embeds=False)
    tinymodels_flux.build_controlnet(root / "union", seed=4, num_mode=7, guidance_embeds=False)
    tinymodels_flux.build_controlnet(root / "cyclic", seed=5, num_single_layers=0, conditioning_embedding_channels=16, patch_size=2)
    return root


@cache
def load(folder: Path) -> Flux:
    return Flux.load(Folder(folder), PLACE)


def steer(family: Flux, net: Path, i: int = 0, kind: str | None = None, **how: Any) -> Steering:
    return Steering(family.prepare(family.load_control(Folder(net)), Hint(picture(i), kind or KINDS[i])), **how)


def by_net(count: int) -> dict[str, Any]:
    """What diffusers' img2img and inpainting pipelines must be told of several ControlNets, even where none has modes."""
    options = {"controlnet_conditioning_scale": [1.0] * count, "control_mode": [0] * count}
    return options if count > 1 else {"controlnet_conditioning_scale": 1.0} if count else {}


def theirs(kind: str, base: Path, nets: Sequence[Path] = (), **call: Any) -> Tensor:
    """Final latents (B, C, H, W) of a diffusers pipeline; count: pictures, maps: as many, where they are more than the networks."""
    import diffusers

    count, maps = call.pop("count", 1), call.pop("maps", 1)

    parts: dict[str, Any] = {}
    if nets:
        loaded = [diffusers.FluxControlNetModel.from_pretrained(net) for net in nets]
        images = [image(picture(i)) for i in range(max(maps, len(nets)))]
        several = len(images) > 1
        parts["controlnet"] = diffusers.FluxMultiControlNetModel(loaded) if several else loaded[0]
        call["control_image"] = images if several else images[0]
    with means_for_samples():
        tokens = their_pipe(kind, base, **parts)(
            PROMPT,
            height=HEIGHT,
            width=WIDTH,
            num_inference_steps=STEPS,
            num_images_per_prompt=count,
            generator=generators(count),
            output_type="latent",
            max_sequence_length=MAX_TOKENS,
            **({"guidance_scale": GUIDANCE} | call),
        ).images
    return unpack(tokens, HEIGHT // 8, WIDTH // 8)


@pytest.mark.parametrize("model", ["dev", "schnell"])
@pytest.mark.parametrize("count", [1, 2])
def test_txt2img(model: str, count: int, folder: Path) -> None:
    assert_same(ours(load(folder / model), told_scale=GUIDANCE, count=count), theirs("FluxPipeline", folder / model, count=count))


def test_the_told_guidance_counts_where_the_model_reads_it(folder: Path) -> None:
    dev, schnell = load(folder / "dev"), load(folder / "schnell")
    assert dev.guidance == "embedded"
    assert schnell.guidance == "none"
    assert (ours(dev, told_scale=1.0) - ours(dev, told_scale=GUIDANCE)).abs().max() > 1e-4
    assert torch.equal(ours(schnell, told_scale=1.0), ours(schnell, told_scale=GUIDANCE))


def test_true_guidance(folder: Path) -> None:
    expected = theirs("FluxPipeline", folder / "dev", negative_prompt=NEGATIVE, true_cfg_scale=TRUE)
    assert_same(ours(load(folder / "dev"), told_scale=GUIDANCE, true_scale=TRUE), expected)


@pytest.mark.parametrize("count_nets", [1, 2])
@pytest.mark.parametrize("model", ["dev", "schnell"])
def test_controlnets(model: str, count_nets: int, folder: Path) -> None:
    family, nets, weights = load(folder / model), [folder / "net-0", folder / "net-1"][:count_nets], [0.7, 0.4]
    expected = theirs("FluxControlNetPipeline", folder / model, nets, controlnet_conditioning_scale=weights[:count_nets])
    controls = [steer(family, net, i, weight=weights[i]) for i, net in enumerate(nets)]
    got = ours(family, controls, told_scale=GUIDANCE)
    assert_same(got, expected)
    assert (got - ours(family, told_scale=GUIDANCE)).abs().max() > 1e-2  # the control did something


def test_several_pictures_with_a_controlnet(folder: Path) -> None:
    family = load(folder / "dev")
    expected = theirs("FluxControlNetPipeline", folder / "dev", [folder / "net-0"], count=2, controlnet_conditioning_scale=1.0)
    assert_same(ours(family, [steer(family, folder / "net-0")], told_scale=GUIDANCE, count=2), expected)


def test_true_guidance_with_a_controlnet(folder: Path) -> None:
    """The ControlNet reads the prompt alone; its residuals steer both halves."""
    family = load(folder / "dev")
    options: dict[str, Any] = {"negative_prompt": NEGATIVE, "true_cfg_scale": TRUE, "controlnet_conditioning_scale": 1.0}
    expected = theirs("FluxControlNetPipeline", folder / "dev", [folder / "net-0"], **options)
    assert_same(ours(family, [steer(family, folder / "net-0")], told_scale=GUIDANCE, true_scale=TRUE), expected)


def test_start_end_window(folder: Path) -> None:
    family, nets, starts, ends = load(folder / "dev"), [folder / "net-0", folder / "net-1"], [0.3, 0.0], [1.0, 0.6]
    expected = theirs(
        "FluxControlNetPipeline",
        folder / "dev",
        nets,
        control_guidance_start=starts,
        control_guidance_end=ends,
        controlnet_conditioning_scale=[1.0, 1.0],
    )
    got = ours(family, [steer(family, net, i, start=starts[i], end=ends[i]) for i, net in enumerate(nets)], told_scale=GUIDANCE)
    assert_same(got, expected)
    assert (got - ours(family, [steer(family, net, i) for i, net in enumerate(nets)], told_scale=GUIDANCE)).abs().max() > 1e-2


def test_union_modes(folder: Path) -> None:
    """One union network with two maps: each kind in its own mode."""
    family, union = load(folder / "dev"), folder / "union"
    # Given one window for both, diffusers would leave the second map out.
    options: dict[str, Any] = {"control_mode": [0, 2], "controlnet_conditioning_scale": [0.8, 0.5]}
    windows: dict[str, Any] = {"control_guidance_start": [0.0, 0.0], "control_guidance_end": [1.0, 1.0]}
    expected = theirs("FluxControlNetPipeline", folder / "dev", [union], maps=2, **options, **windows)
    got = ours(family, [steer(family, union, 0, weight=0.8), steer(family, union, 1, weight=0.5)], told_scale=GUIDANCE)
    assert_same(got, expected)
    swapped = [steer(family, union, 0, "depth", weight=0.8), steer(family, union, 1, "canny", weight=0.5)]
    assert (got - ours(family, swapped, told_scale=GUIDANCE)).abs().max() > 1e-4
    with pytest.raises(Mismatch, match="no mode for 'shuffle': it knows canny"):
        steer(family, union, kind="shuffle")


def test_levels_dealt_in_turn(folder: Path) -> None:
    """XLabs' networks: an encoder for the map's pixels, and each level added to every second block."""
    family = load(folder / "dev")
    expected = theirs("FluxControlNetPipeline", folder / "dev", [folder / "cyclic"], controlnet_conditioning_scale=0.6)
    assert_same(ours(family, [steer(family, folder / "cyclic", weight=0.6)], told_scale=GUIDANCE), expected)


def test_controlnets_of_different_depths_add_up(folder: Path) -> None:
    """diffusers adds such networks' levels pairwise and drops the rest; each is spread over the blocks as if it were alone."""
    family = load(folder / "dev")
    names = ("net-0", "shallow", "cyclic")
    x, t, text = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(0)), torch.tensor(500.0), drawing(family, PROMPT, 3.5)
    one = [steer(family, folder / name).residuals(x, t, text) for name in names]
    both = {**one[0], **one[1], **one[2]}
    blocks = len(family.transformer.transformer_blocks)
    runs, cyclic = over_blocks(both, "blocks", blocks), over_blocks(both, "cyclic", blocks, cyclic=True)
    assert runs is not None
    assert cyclic is not None
    deep, shallow = one[0]["blocks/2"], one[1]["blocks/1"]
    for i, level in enumerate((0, 0, 1)):  # three blocks, two levels: runs of two
        torch.testing.assert_close(runs[i], deep[level] + shallow[0])
        assert torch.equal(cyclic[i], one[2]["cyclic/2"][i % 2])
    got = ours(family, [steer(family, folder / name) for name in names], told_scale=GUIDANCE)
    assert (got - ours(family, [steer(family, folder / "net-0")], told_scale=GUIDANCE)).abs().max() > 1e-2


@pytest.mark.parametrize("count_nets", [0, 1, 2])
def test_img2img(count_nets: int, folder: Path) -> None:
    family, nets = load(folder / "dev"), [folder / "net-0", folder / "net-1"][:count_nets]
    kind = "FluxControlNetImg2ImgPipeline" if nets else "FluxImg2ImgPipeline"
    options = by_net(count_nets)
    expected = theirs(kind, folder / "dev", nets, image=image(picture(5)), strength=0.7, **options)
    controls = [steer(family, net, i) for i, net in enumerate(nets)]
    assert_same(ours(family, controls, told_scale=GUIDANCE, image_HWC=picture(5), strength=0.7), expected)


@pytest.mark.parametrize("count_nets", [0, 1, 2])
def test_inpaint(count_nets: int, folder: Path) -> None:
    family, nets = load(folder / "dev"), [folder / "net-0", folder / "net-1"][:count_nets]
    kind = "FluxControlNetInpaintPipeline" if nets else "FluxInpaintPipeline"
    options = by_net(count_nets)
    pictures: dict[str, Any] = {"image": image(picture(5)), "mask_image": image(left_half())}
    expected = theirs(kind, folder / "dev", nets, strength=0.8, **pictures, **options)
    controls = [steer(family, net, i) for i, net in enumerate(nets)]
    got = ours(family, controls, told_scale=GUIDANCE, image_HWC=picture(5), mask_HW=left_half(), strength=0.8)
    assert_same(got, expected)


def test_fill(folder: Path) -> None:
    family = load(folder / "fill")
    pictures: dict[str, Any] = {"image": image(picture(5)), "mask_image": image(left_half())}
    expected = theirs("FluxFillPipeline", folder / "fill", guidance_scale=30.0, **pictures)
    assert_same(ours(family, told_scale=30.0, image_HWC=picture(5), mask_HW=left_half()), expected)
    assert ours(family, told_scale=30.0).isfinite().all()  # without a picture there is nothing but a hole


def test_a_map_in_channels(folder: Path) -> None:
    family = load(folder / "map")
    control = family.own_control()
    assert control is not None
    assert load(folder / "dev").own_control() is None
    prepared = family.prepare(control, Hint(picture(0), "canny"))
    expected = theirs("FluxControlPipeline", folder / "map", control_image=image(picture(0)))
    got = ours(family, [Steering(prepared)], told_scale=GUIDANCE)
    assert_same(got, expected)
    unsteered = ours(family, told_scale=GUIDANCE)
    assert (got - unsteered).abs().max() > 1e-2
    assert torch.equal(ours(family, [Steering(prepared, mask_HW=torch.zeros(HEIGHT, WIDTH))], told_scale=GUIDANCE), unsteered)


def test_a_map_in_channels_beside_a_picture(folder: Path) -> None:
    family = load(folder / "map")
    control = family.own_control()
    assert control is not None
    controls = [Steering(family.prepare(control, Hint(picture(0), "canny")))]
    pictures: dict[str, Any] = {"control_image": image(picture(0)), "image": image(picture(5)), "strength": 0.7}
    expected = theirs("FluxControlImg2ImgPipeline", folder / "map", **pictures)
    assert_same(ours(family, controls, told_scale=GUIDANCE, image_HWC=picture(5), strength=0.7), expected)
    expected = theirs("FluxControlInpaintPipeline", folder / "map", mask_image=image(left_half()), **pictures)
    assert_same(ours(family, controls, told_scale=GUIDANCE, image_HWC=picture(5), mask_HW=left_half(), strength=0.7), expected)


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
def test_a_controlnet_for_holes(way: str, folder: Path) -> None:
    """diffusers has no class for alimama's network: here is its own with a wider embedding of the map, called by hand."""
    import diffusers
    from safetensors.torch import load_file

    family, pipe = load(folder / "dev"), their_pipe("FluxPipeline", folder / "dev")
    net = diffusers.FluxControlNetModel.from_pretrained(folder / "net-0")
    net.controlnet_x_embedder = torch.nn.Linear(68, net.inner_dim)
    net.load_state_dict(load_file(folder / "hole" / "diffusion_pytorch_model.safetensors"))
    inside = torch.from_numpy(left_half() == 255)

    def encoded(pixels: Tensor) -> Tensor:
        return (pipe.vae.encode(pixels).latent_dist.mean - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor

    picture_5 = pipe.image_processor.preprocess(image(picture(5)))
    kept = (~inside)[None, None, ::8, ::8].float()
    hint = pipe._pack_latents(torch.cat([encoded(picture_5.masked_fill(inside, -1.0)), kept], dim=1), 1, 17, HEIGHT // 8, WIDTH // 8)
    embeds, pooled, text_ids = pipe.encode_prompt(PROMPT, None, max_sequence_length=MAX_TOKENS)
    ids = pipe._prepare_latent_image_ids(1, HEIGHT // 16, WIDTH // 16, "cpu", torch.float32)
    told = {"encoder_hidden_states": embeds, "pooled_projections": pooled, "txt_ids": text_ids, "img_ids": ids, "return_dict": False}

    def velocity(x: Tensor, t: Tensor, i: int, n: int) -> Tensor:
        now = {"hidden_states": pipe._pack_latents(x, 1, 16, HEIGHT // 8, WIDTH // 8), "timestep": t[None] / 1000, **told}
        blocks, single = net(controlnet_cond=hint, conditioning_scale=0.7, guidance=torch.tensor([GUIDANCE]), **now)
        given = {"controlnet_block_samples": blocks, "controlnet_single_block_samples": single}
        return unpack(pipe.transformer(guidance=torch.tensor([GUIDANCE]), **now, **given)[0], HEIGHT // 8, WIDTH // 8)

    config = pipe.scheduler.config
    mu = config.base_shift + (24 - config.base_image_seq_len) * (config.max_shift - config.base_shift) / (
        config.max_image_seq_len - config.base_image_seq_len
    )
    pipe.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / STEPS, STEPS), mu=mu)
    control = Steering(family.prepare(family.load_control(Folder(folder / "hole")), Hint(picture(5), "inpaint", left_half())), weight=0.7)
    got = ours(family, [control], told_scale=GUIDANCE, **WAYS[way])
    assert_same(got, euler_by_hand(pipe.scheduler, velocity, encoded(picture_5), way))
    assert (got - ours(family, told_scale=GUIDANCE, **WAYS[way])).abs().max() > 1e-2  # the control did something
    with pytest.raises(Mismatch, match="paints in holes, not by 'canny': give it the kind 'inpaint'"):
        steer(family, folder / "hole")


def test_a_region_holds_residuals_to_its_tokens(folder: Path) -> None:
    check_region(load(folder / "dev"), folder, "0")


@pytest.mark.parametrize("mode", ["prompt", "control", "guess"])
def test_modes_and_layer_weights(mode: Any, folder: Path) -> None:
    family = load(folder / "dev")
    balanced = ours(family, [steer(family, folder / "net-0")], told_scale=GUIDANCE, true_scale=TRUE)
    assert (ours(family, [steer(family, folder / "net-0", mode=mode)], told_scale=GUIDANCE, true_scale=TRUE) - balanced).abs().max() > 1e-3
    control = steer(family, folder / "net-0", layer_weights=(0.0, 1.0, 0.0))
    assert control.control.levels == 3
    x, t, text = torch.randn(1, 16, 8, 12), torch.tensor(500.0), drawing(family, PROMPT, 3.5)
    found = control.residuals(x, t, text)
    assert not found["blocks/2"][0].any()
    assert found["blocks/2"][1].any()
    assert not found["single/1"][0].any()


def test_the_map_is_embedded_once(folder: Path) -> None:
    family = load(folder / "dev")
    net = family.load_control(Folder(folder / "net-0"))
    assert isinstance(net, FluxControlNet)
    calls: list[int] = []
    net.embedder.register_forward_hook(lambda *_: calls.append(1))
    ours(family, [Steering(family.prepare(net, Hint(picture(0), "canny")))], told_scale=GUIDANCE, count=2)
    assert len(calls) == 1


def test_no_step_waits_for_the_device(folder: Path) -> None:
    assert host_reads(load(folder / "dev"), steer(load(folder / "dev"), folder / "net-0").control) == 0


def test_packing_is_its_own_inverse() -> None:
    latents = torch.randn(2, 16, 8, 12)
    assert torch.equal(unpack(pack(latents), 8, 12), latents)


def test_long_prompts_say_what_was_dropped(folder: Path) -> None:
    text = load(folder / "dev").encode_prompt("a red sphere " * 40 + "snow")
    assert text.tokens_BLD.shape[1] == MAX_TOKENS
    assert text.dropped.endswith("snow")


def test_sizes_that_cannot_be_cut_into_patches(folder: Path) -> None:
    assert load(folder / "dev").side_px == 16
    with pytest.raises(BadRequest, match="multiples of 16 pixels"):
        load(folder / "dev").latent_shape(72, 64)


def test_in_half_the_bits(folder: Path) -> None:
    check_fewer_bits(
        load(folder / "dev"), Flux.load(Folder(folder / "dev"), Place(PLACE.device, torch.bfloat16)), folder, bound=0.05, net="0"
    )


def test_bind_keeps_what_a_text_has(folder: Path) -> None:
    family = load(folder / "dev")
    bound = family.bind(family.encode_prompt(PROMPT), Drawing(WIDTH, HEIGHT, 2.0))
    assert bound.extra["guidance"].tolist() == [2.0]
    assert bound.pooled_BD is not None


def test_controlnets_of_others_are_refused(folder: Path, tmp_path: Path) -> None:
    family = load(folder / "dev")
    tinymodels.build_base(tmp_path / "sd")
    tinymodels.build_controlnet(tmp_path / "sd-net", tmp_path / "sd")
    tinymodels_flux.build_controlnet(tmp_path / "wide", joint_attention_dim=32)
    tinymodels_flux.build_controlnet(tmp_path / "narrow", num_attention_heads=1)
    for net, error, message in (
        ("sd-net", Mismatch, "is a ControlNet for Stable Diffusion or SDXL, the base model .* is FLUX.1"),
        ("sd", BadModel, "is a whole model"),
        ("wide", Mismatch, "joint_attention_dim 32, the base model .* 24"),
        ("narrow", Mismatch, "width 16, the base model .* 32"),
    ):
        with pytest.raises(error, match=message):
            family.check_control(Folder(tmp_path / net))


def test_recognised_by_its_transformer(folder: Path, tmp_path: Path) -> None:
    assert Flux.recognises(Folder(folder / "schnell"))
    assert not Flux.recognises(Folder(tinymodels.build_base(tmp_path / "sd")))
