"""Union ControlNets and T2I-Adapters of SDXL, alone and mixed, against diffusers; and which controls a model refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core.errors import BadModel, BadRequest, Mismatch
from core.request import ControlUnit
from pipelines import samplers
from pipelines.checkpoint import Folder
from pipelines.controlnet import UNION_TYPES, JoinedUnion, LoadedUnion
from pipelines.denoise import Steering
from pipelines.families.sdxl import StableDiffusionXL
from pipelines.family import Hint, Text
from pipelines.planning import Given, Stage, with_controls
from pipelines.schedules import make_times
from pipelines.steering import united
from tests import tinymodels, tinymodels_sdxl
from tests.pipelines.scenes import HEIGHT, NEGATIVE, ORACLES_OWN, PLACE, PROMPT, STEPS, WIDTH, image
from tests.pipelines.scenes import picture as pixels
from tests.pipelines.their_pipelines import assert_same
from tests.pipelines.unet_parity import GUIDANCE, control, hole, ours, theirs, told

pytestmark = ORACLES_OWN

WEIGHTS = (0.7, 0.4)


def by_way(way: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """A pipeline of diffusers, and what it and we are given to draw from noise, from a picture, or in a hole of it."""
    call: dict[str, Any] = {} if way == "txt2img" else {"image": image(pixels(9)), "strength": 0.7}
    given: dict[str, Any] = {} if way == "txt2img" else {"image_HWC": pixels(9), "strength": 0.7}
    if way == "inpaint":
        call, given = call | {"mask_image": image(hole())}, given | {"mask_HW": hole()}
    name = {"txt2img": "", "img2img": "Img2Img", "inpaint": "Inpaint"}[way]
    return f"StableDiffusionXLControlNetUnion{name}Pipeline", call, given


@pytest.mark.parametrize("way", ["txt2img", "img2img", "inpaint"])
def test_two_union_networks(way: str, sdxl: StableDiffusionXL, sdxl_base: Path, sdxl_unions: list[Path]) -> None:
    """Two units of two networks, each of its own type."""
    import diffusers
    from diffusers.models.controlnets.multicontrolnet_union import MultiControlNetUnionModel

    found = MultiControlNetUnionModel([diffusers.ControlNetUnionModel.from_pretrained(folder) for folder in sdxl_unions])
    pipeline, call, given = by_way(way)
    call |= {"control_mode": [3, 1], "controlnet_conditioning_scale": list(WEIGHTS)}
    expected = theirs(sdxl_base, pipeline, parts={"controlnet": found}, control_image=[image(pixels(0)), image(pixels(1))], **call)
    controls = [
        control(sdxl, folder, i, kind, weight=WEIGHTS[i])
        for i, (folder, kind) in enumerate(zip(sdxl_unions, ("canny", "depth"), strict=True))
    ]
    assert united(controls) == tuple(controls)
    assert_same(ours(sdxl, controls, **given), expected)


@pytest.mark.parametrize("way", ["txt2img", "img2img", "inpaint"])
@pytest.mark.parametrize("kinds", [("canny", "depth"), ("pose", "canny", "canny")])
def test_maps_of_several_kinds_in_one_call(
    kinds: tuple[str, ...], way: str, sdxl: StableDiffusionXL, sdxl_base: Path, sdxl_unions: list[Path]
) -> None:
    """One union network fuses them itself, each with its weight, and is called once a step."""
    import diffusers

    weights, modes = [0.7, 0.4, 0.9][: len(kinds)], [UNION_TYPES[kind] for kind in kinds]
    pipeline, call, given = by_way(way)
    call |= {"control_mode": modes, "controlnet_conditioning_scale": weights}
    net, maps = diffusers.ControlNetUnionModel.from_pretrained(sdxl_unions[0]), [image(pixels(i)) for i in range(len(kinds))]
    loaded, calls = sdxl.load_control(Folder(sdxl_unions[0])), list[int]()
    loaded.net.register_forward_hook(lambda *_: calls.append(1))
    hints = [Hint(pixels(i), kind) for i, kind in enumerate(kinds)]
    controls = united([Steering(sdxl.prepare(loaded, hint), weight=weight) for hint, weight in zip(hints, weights, strict=True)])
    assert len(controls) == 1
    got = ours(sdxl, controls, **given)
    assert len(calls) == (STEPS if way == "txt2img" else int(STEPS * 0.7))
    assert_same(got, theirs(sdxl_base, pipeline, parts={"controlnet": net}, control_image=maps, **call))


def test_planning_gives_maps_to_one_call(sdxl: StableDiffusionXL, sdxl_unions: list[Path]) -> None:
    loaded, sampler = sdxl.load_control(Folder(sdxl_unions[0])), samplers.get("euler")
    stage = Stage(WIDTH, HEIGHT, sampler, make_times(sdxl.path, "uniform", STEPS, sampler.grid))
    units = [ControlUnit(kind=kind, image=Path("map.png"), weight=weight) for kind, weight in (("canny", 0.7), ("depth", 0.4))]
    (both,) = with_controls(stage, sdxl, [Given(unit, loaded, Hint(pixels(0), unit.kind), "hash") for unit in units]).controls
    assert isinstance(both.control, JoinedUnion)
    assert [weight for _, weight in both.control.parts] == [0.7, 0.4]


def test_controls_that_act_differently_are_a_call_each(sdxl: StableDiffusionXL, sdxl_unions: list[Path]) -> None:
    loaded, left = sdxl.load_control(Folder(sdxl_unions[0])), torch.zeros(HEIGHT, WIDTH)
    left[:, : WIDTH // 2] = 1.0
    canny, depth, pose = (sdxl.prepare(loaded, Hint(pixels(i), kind)) for i, kind in enumerate(("canny", "depth", "pose")))
    differences: tuple[dict[str, Any], ...] = ({"end": 0.5}, {"mode": "prompt"}, {"mask_HW": left}, {"weight": 0.0})
    for other in (*differences, {"layer_weights": (0.5,) * canny.levels}):
        found = united([Steering(canny), Steering(depth, **other), Steering(pose)])
        assert [len(one.control.parts) if isinstance(one.control, JoinedUnion) else 1 for one in found] == [2, 1]
    assert len(united([Steering(canny, mask_HW=left), Steering(depth, mask_HW=left.clone())])) == 1
    stranger = sdxl.prepare(sdxl.load_control(Folder(sdxl_unions[1])), Hint(pixels(1), "depth"))
    assert len(united([Steering(canny), Steering(stranger)])) == 2


@pytest.mark.parametrize("kind", UNION_TYPES)
def test_every_union_type(kind: str, sdxl: StableDiffusionXL, sdxl_unions: list[Path]) -> None:
    """The hint taken out of the network gives what the network gave with it in, for each type."""
    import diffusers

    net = diffusers.ControlNetUnionModel.from_pretrained(sdxl_unions[0])
    x, t = torch.randn((2, 4, HEIGHT // 8, WIDTH // 8), generator=torch.Generator().manual_seed(0)), torch.tensor(500.0)
    text, hint = Text.rows([told(sdxl, PROMPT)] * 2), torch.from_numpy(pixels(0)).permute(2, 0, 1)[None].float() / 255
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
        got = sdxl.prepare(sdxl.load_control(Folder(sdxl_unions[0])), Hint(pixels(0), kind)).residuals(x, t, text)["skips"]
    # The hint is embedded once instead of twice, so convolutions may add up in another order.
    for one, another in zip(got, [*down, middle], strict=True):
        torch.testing.assert_close(one, another, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count_adapters", [1, 2])
def test_adapters(count_adapters: int, sdxl: StableDiffusionXL, sdxl_base: Path, sdxl_adapters: list[Path]) -> None:
    """The second one looks at grey."""
    import diffusers

    found = [diffusers.T2IAdapter.from_pretrained(folder) for folder in sdxl_adapters[:count_adapters]]
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
            sdxl.prepare(sdxl.load_control(Folder(folder)), Hint(map_HWC, "canny")),
            weight=weight,
            end=0.5 if count_adapters == 1 else 1.0,
        )
        for folder, map_HWC, weight in zip(sdxl_adapters[:count_adapters], (pixels(0), grey), WEIGHTS, strict=False)
    ]
    assert_same(ours(sdxl, controls), theirs(sdxl_base, "StableDiffusionXLAdapterPipeline", parts=parts, **call))


def _thrice(weight: Tensor) -> Tensor:
    """A first convolution for three equal channels from that for one: a pixel's three shares are a third each."""
    return weight.repeat_interleave(3, 1).reshape(weight.shape[0], -1, 3, *weight.shape[2:]).permute(0, 2, 1, 3, 4).flatten(1, 2) / 3


def test_a_controlnet_a_union_and_an_adapter_together(
    sdxl: StableDiffusionXL, sdxl_base: Path, sdxl_nets: list[Path], sdxl_unions: list[Path], sdxl_adapters: list[Path]
) -> None:
    """diffusers has no such pipeline: here is one, of its own classes."""
    import diffusers

    unet = diffusers.UNet2DConditionModel.from_pretrained(sdxl_base, subfolder="unet")
    net, union = diffusers.ControlNetModel.from_pretrained(sdxl_nets[0]), diffusers.ControlNetUnionModel.from_pretrained(sdxl_unions[0])
    adapter = diffusers.T2IAdapter.from_pretrained(sdxl_adapters[0])
    scheduler = diffusers.EulerDiscreteScheduler.from_pretrained(sdxl_base, subfolder="scheduler", timestep_spacing="linspace")
    text = Text.rows([told(sdxl, NEGATIVE, negative=True), told(sdxl, PROMPT)])
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
        x = scheduler.step(negative + GUIDANCE * (positive - negative), t, x).prev_sample
    controls = [
        control(sdxl, sdxl_nets[0], 0, weight=0.7),
        control(sdxl, sdxl_unions[0], 1, "depth", weight=0.4),
        control(sdxl, sdxl_adapters[0], 2, weight=0.5),
    ]
    assert_same(ours(sdxl, controls), x)


def test_what_looks_at_the_map_alone_runs_once(sdxl: StableDiffusionXL, sdxl_unions: list[Path], sdxl_adapters: list[Path]) -> None:
    counts = {"hint": 0, "union": 0, "adapter": 0}

    def count(module: torch.nn.Module, what: str) -> None:
        module.register_forward_hook(lambda *_: counts.update({what: counts[what] + 1}))

    union, adapter = sdxl.load_control(Folder(sdxl_unions[0])), sdxl.load_control(Folder(sdxl_adapters[0]))
    assert isinstance(union, LoadedUnion)
    count(union.hint_encoder, "hint")
    count(union.net, "union")
    count(adapter.net, "adapter")
    prepared = [sdxl.prepare(union, Hint(pixels(0), "canny")), sdxl.prepare(adapter, Hint(pixels(1), "canny"))]
    ours(sdxl, [Steering(prepared[0], end=0.5), Steering(prepared[1])], count=2)
    assert counts == {"hint": 1, "union": STEPS // 2, "adapter": 1}


@pytest.mark.parametrize("which", ["net", "union", "adapter"])
def test_masks_and_layer_weights(
    which: str, sdxl: StableDiffusionXL, sdxl_nets: list[Path], sdxl_unions: list[Path], sdxl_adapters: list[Path]
) -> None:
    """At every level the masked residuals are the residuals times the mask's mean over each cell, times the level's weight."""
    folder = {"net": sdxl_nets[0], "union": sdxl_unions[0], "adapter": sdxl_adapters[0]}[which]
    mask_HW = torch.zeros(HEIGHT, WIDTH)
    mask_HW[:, : WIDTH // 2 + 4] = 1.0
    x, text = torch.randn((1, 4, HEIGHT // 8, WIDTH // 8), generator=torch.Generator().manual_seed(0)), told(sdxl, PROMPT)
    plain = control(sdxl, folder)
    weights = tuple(0.1 * (level + 1) for level in range(plain.control.levels))
    masked = control(sdxl, folder, mask_HW=mask_HW, layer_weights=weights)
    with torch.no_grad():
        ((place, whole),) = plain.residuals(x, torch.tensor(500.0), text).items()
        found = masked.residuals(x, torch.tensor(500.0), text)[place]
    assert len(whole) == plain.control.levels
    for one, another, weight in zip(found, whole, weights, strict=True):
        cells = torch.nn.functional.interpolate(mask_HW[None, None], another.shape[-2:], mode="area")
        torch.testing.assert_close(one, another * cells * weight, rtol=1e-5, atol=1e-6)
    assert (ours(sdxl, [masked]) - ours(sdxl, [plain])).abs().max() > 1e-3


def test_the_hole_of_an_inpainting_map(sdxl: StableDiffusionXL, sdxl_nets: list[Path], sdxl_unions: list[Path]) -> None:
    """ControlNets read −1 there, union networks 0; the hole is the mask, or what is black."""
    from pipelines.controlnet import hint_pixels

    black = np.where((hole() >= 128)[..., None], np.uint8(0), np.maximum(pixels(0), 1))
    for hint in (Hint(pixels(0), "inpaint", hole()), Hint(black, "inpaint")):
        read = hint_pixels(hint, -1.0)
        assert (read[0, :, torch.from_numpy(hole() >= 128)] == -1.0).all()
        assert (read[0, :, torch.from_numpy(hole() < 128)] >= 0.0).all()
    assert (hint_pixels(Hint(black, "canny"), -1.0) >= 0.0).all()


def test_controls_for_other_bases_are_refused_in_a_sentence(
    sdxl: StableDiffusionXL, sdxl_base: Path, sdxl_nets: list[Path], sdxl_unions: list[Path], sdxl_adapters: list[Path], tmp_path: Path
) -> None:
    from pipelines.families.sd import StableDiffusion

    small = tinymodels.build_base(tmp_path / "sd")
    sd, net = StableDiffusion.load(Folder(small), PLACE), tinymodels.build_controlnet(tmp_path / "net", small)
    adapter = tinymodels_sdxl.build_adapter(tmp_path / "adapter", (32, 64))
    with pytest.raises(Mismatch, match=r"for cross-attention width 32, the base model .* has width 40: use a ControlNet .* 2048: SDXL"):
        sdxl.check_control(Folder(net))
    for folder in (sdxl_nets[0], sdxl_unions[0]):
        with pytest.raises(Mismatch, match=r"is an SDXL ControlNet, the base model .* has width 32"):
            sd.check_control(Folder(folder))
    with pytest.raises(Mismatch, match=r"features of 32 channels at 1/8, 64 channels at 1/16, the base model .* takes 32 channels at 1/16"):
        sdxl.check_control(Folder(adapter))
    with pytest.raises(Mismatch, match=r"features of 32 channels at 1/16, 32 channels at 1/16"):
        sd.check_control(Folder(sdxl_adapters[0]))
    with pytest.raises(BadModel, match=r"is a whole model \(StableDiffusionXLPipeline\), not a ControlNetModel"):
        sdxl.check_control(Folder(sdxl_base))
    six = sdxl.load_control(Folder(tinymodels_sdxl.build_union(tmp_path / "six", sdxl_base, types=6)))
    with pytest.raises(
        Mismatch, match=r"control 'tile': this union ControlNet has 6 types, made for pose, .*, segmentation; use a ControlNet"
    ):
        sdxl.prepare(six, Hint(pixels(0), "tile"))
    with pytest.raises(BadRequest, match=r"width = 88: this T2I-Adapter takes multiples of 16, for example 80"):
        sdxl.prepare(sdxl.load_control(Folder(sdxl_adapters[0])), Hint(pixels(0)[:, :88], "canny"))
