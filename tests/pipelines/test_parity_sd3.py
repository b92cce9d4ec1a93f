"""Stable Diffusion 3 and 3.5 in the one loop against diffusers' own pipelines: same weights and seeds, fp32 final latents within 1e-4."""

import inspect
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from core.errors import BadModel, BadRequest, Mismatch
from core.request import Mode
from pipelines import samplers
from pipelines.canvas import begin
from pipelines.checkpoint import Folder
from pipelines.denoise import Plan, denoise, seeded_noise
from pipelines.families.sd3 import StableDiffusion3
from pipelines.family import Hint, Place, Text
from pipelines.schedules import make_times
from pipelines.steering import Steering, level_factors
from tests import tinymodels_sd3
from tests.tinymodels import SIZE_PX, control_map

PROMPT, NEGATIVE, GUIDANCE, SEED, STEPS = "a red sphere left of a blue cube", "snow at night", 4.0, 7, 6
PLACE = Place(torch.device("cpu"), torch.float32)
SIZE = {"width": SIZE_PX, "height": SIZE_PX}

BASES: dict[str, dict[str, Any]] = {
    "3": {},
    "3.5": {"version": "3.5", "t5": False, "seed": 3},  # no T5, QK norm, a second attention
    "shifting": {"seed": 4, "use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 32},
    "3-inpaint": {"version": "3-inpaint", "seed": 5},
}
NETS: dict[str, dict[str, Any]] = {
    "plain": {"seed": 1},
    "deep": {"seed": 2, "num_layers": 3},
    "pooled": {"seed": 3, "force_zeros_for_pooled_projection": False},
    "3.5": {"seed": 4, "version": "3.5", "dual_attention_layers": (0,)},
    "large": {
        "seed": 5,
        "joint_attention_dim": None,
        "use_pos_embed": False,
        "pos_embed_type": None,
        "force_zeros_for_pooled_projection": False,
    },
    "inpaint": {"seed": 6, "extra_conditioning_channels": 1},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd3")
    for name, options in BASES.items():
        tinymodels_sd3.build_base(folder / f"base-{name}", **options)
    for name, options in NETS.items():
        tinymodels_sd3.build_controlnet(folder / f"net-{name}", **options)
    return folder


@pytest.fixture(scope="module")
def families(models: Path) -> dict[str, StableDiffusion3]:
    return {name: StableDiffusion3.load(Folder(models / f"base-{name}"), PLACE) for name in BASES}


def picture() -> NDArray[np.uint8]:
    """A picture with something in it: coloured blocks."""
    return np.kron(np.random.default_rng(5).integers(0, 256, (4, 4, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))


def paint_mask() -> NDArray[np.uint8]:
    """255 where to paint: all but a border, off the latent grid."""
    mask = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    mask[12:40, 20:] = 255
    return mask


@cache
def components(folder: Path) -> dict[str, Any]:
    """A folder's parts as diffusers loads them, once for all pipelines."""
    import diffusers

    missing = {} if (folder / "text_encoder_3").is_dir() else {"text_encoder_3": None, "tokenizer_3": None}
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(folder, local_files_only=True, **missing)
    parts: dict[str, Any] = pipe.components
    return parts


def pipeline(kind: str, models: Path, base: str, nets: list[str]) -> Any:
    """A pipeline of diffusers' over our folders."""
    import diffusers

    pipe_class = getattr(diffusers, kind)
    taken = inspect.signature(pipe_class.__init__).parameters
    parts = {name: part for name, part in components(models / f"base-{base}").items() if name in taken}
    if nets:
        loaded = [diffusers.SD3ControlNetModel.from_pretrained(models / f"net-{net}") for net in nets]
        parts["controlnet"] = loaded if len(nets) > 1 else loaded[0]
    pipe = pipe_class(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(pipe: Any, count: int = 1, **options: Any) -> Tensor:
    """Final latents of diffusers' documented pipeline."""
    latents = pipe(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_images_per_prompt=count,
        num_inference_steps=STEPS,
        generator=[torch.Generator("cpu").manual_seed(SEED + i) for i in range(count)],
        output_type="latent",
        **({"guidance_scale": GUIDANCE} | SIZE | options),
    ).images
    assert isinstance(latents, Tensor)
    return latents


def steered(family: StableDiffusion3, models: Path, nets: list[str], **steering: Any) -> tuple[Steering, ...]:
    """Controls, each with a map of its own; steering: one value for all, or a list with one for each."""
    controls = []
    for i, net in enumerate(nets):
        own = {key: value[i] if isinstance(value, list) else value for key, value in steering.items()}
        hint = own.pop("hint", Hint(control_map(i), "tile"))
        controls.append(Steering(family.prepare(family.load_control(Folder(models / f"net-{net}")), hint), **own))
    return tuple(controls)


def plan_of(family: StableDiffusion3, *controls: Steering, guidance: float = GUIDANCE, strength: float = 1.0, **options: Any) -> Plan:
    spec, shift = samplers.get("euler"), family.shift(**SIZE)
    times = make_times(family.path, "uniform", STEPS, spec.grid, shift=shift.factor, terminal=shift.terminal).tail(strength)
    negative = family.encode_prompt(NEGATIVE) if guidance != 1.0 else None
    return Plan(spec, times, family.encode_prompt(PROMPT), negative, guidance, controls, **options)


def drawn(family: StableDiffusion3, plan: Plan, count: int = 1) -> Tensor:
    noise = seeded_noise([SEED + i for i in range(count)], family.latent_shape(**SIZE), PLACE.device)
    return denoise(family, plan, noise, lambda i, denoised: None)


def assert_same(got: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.1  # the comparison is of something
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)  # the bound


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
    maps = [PIL.Image.fromarray(control_map(i)) for i in range(len(nets))]
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
    pixels = torch.from_numpy(control_map(0)).permute(2, 0, 1)[None] / 255.0
    seen = pixels * 255.0 * 0.5 + 0.5 if kind == "canny" else pixels * 2.0 - 1.0
    pipe = pipeline("StableDiffusion3ControlNetPipeline", models, "3.5", ["large"])
    controls = steered(families["3.5"], models, ["large"], hint=Hint(control_map(0), kind))
    assert_same(drawn(families["3.5"], plan_of(families["3.5"], *controls)), theirs(pipe, control_image=seen))


def test_an_inpainting_controlnet_reads_the_mask(models: Path, families: dict[str, StableDiffusion3]) -> None:
    pipe = pipeline("StableDiffusion3ControlNetInpaintingPipeline", models, "3", ["inpaint"])
    expected = theirs(pipe, control_image=PIL.Image.fromarray(picture()), control_mask=PIL.Image.fromarray(paint_mask()))
    controls = steered(families["3"], models, ["inpaint"], hint=Hint(picture(), "inpaint", paint_mask()))
    assert_same(drawn(families["3"], plan_of(families["3"], *controls)), expected)
    with pytest.raises(BadRequest, match="give the request a mask"):
        steered(families["3"], models, ["inpaint"])


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("base", ["3", "shifting"])
def test_image_to_image(base: str, strength: float, models: Path, families: dict[str, StableDiffusion3]) -> None:
    """diffusers is given the latents: from a picture it draws twice from the generator, once for the autoencoder's sample."""
    family = families[base]
    pipe = pipeline("StableDiffusion3Img2ImgPipeline", models, base, [])
    expected = theirs(pipe, image=family.encode_image(picture()), strength=strength)
    assert_same(drawn(family, plan_of(family, strength=strength, canvas=begin(family, picture(), strength=strength))), expected)


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting(strength: float, models: Path, families: dict[str, StableDiffusion3]) -> None:
    family = families["3"]
    pipe, latents = pipeline("StableDiffusion3InpaintPipeline", models, "3", []), family.encode_image(picture())
    expected = theirs(pipe, image=latents, mask_image=PIL.Image.fromarray(paint_mask()), masked_image_latents=latents, strength=strength)
    canvas = begin(family, picture(), paint_mask(), strength=strength)
    assert_same(drawn(family, plan_of(family, strength=strength, canvas=canvas)), expected)


def test_an_inpainting_checkpoint(models: Path, families: dict[str, StableDiffusion3]) -> None:
    family = families["3-inpaint"]
    pipe = pipeline("StableDiffusion3InpaintPipeline", models, "3-inpaint", [])
    expected = theirs(pipe, image=PIL.Image.fromarray(picture()), mask_image=PIL.Image.fromarray(paint_mask()), strength=1.0)
    assert_same(drawn(family, plan_of(family, canvas=begin(family, picture(), paint_mask()))), expected)
    assert families["3"].inpaint(picture(), paint_mask()) is None


def test_perturbed_attention(models: Path, families: dict[str, StableDiffusion3]) -> None:
    pipe = pipeline("StableDiffusion3PAGPipeline", models, "3", [])
    assert_same(drawn(families["3"], plan_of(families["3"], pag_scale=2.0)), theirs(pipe, pag_scale=2.0))


# What diffusers has no pipeline for.


def by_hand(
    family: StableDiffusion3, models: Path, nets: list[str], factor: Any, *, mask: Tensor | None = None, strength: float = 1.0
) -> Tensor:
    """Euler's method over the networks themselves. factor(net, level, levels): what the tokens of (negative, prompt) are multiplied with.

    Below strength 1 it starts from `picture()`, which stays where mask is 0.
    """
    import diffusers

    loaded = [diffusers.SD3ControlNetModel.from_pretrained(models / f"net-{net}") for net in nets]
    maps = [torch.from_numpy(control_map(i)).permute(2, 0, 1)[None] / 255.0 * 2.0 - 1.0 for i in range(len(nets))]
    hints = [family.vae.encode(one).latent_dist.mean * family.vae.config.scaling_factor for one in maps]
    texts = [family.encode_prompt(NEGATIVE), family.encode_prompt(PROMPT)]
    tokens, pooled = torch.cat([text.tokens_BLD for text in texts]), torch.cat([text.pooled_BD for text in texts])
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(models / "base-3", subfolder="scheduler")
    scheduler.set_timesteps(STEPS)
    first = int(STEPS - STEPS * strength)
    scheduler.set_begin_index(first)
    start, noise = family.encode_image(picture()), torch.randn((1, 16, 8, 8), generator=torch.Generator("cpu").manual_seed(SEED))
    x = (1.0 - scheduler.sigmas[first]) * start + scheduler.sigmas[first] * noise if strength < 1.0 else noise
    blocks = len(family.transformer.transformer_blocks)
    for t, sigma in zip(scheduler.timesteps[first:], scheduler.sigmas[first + 1 :], strict=True):
        rows, t_rows = torch.cat([x, x]), t.expand(2)
        added = [torch.zeros(2, 16, tinymodels_sd3.WIDTH) for _ in range(blocks)]
        for i, (net, hint) in enumerate(zip(loaded, hints, strict=True)):
            found = net(rows, hint.repeat(2, 1, 1, 1), 1.0, tokens, torch.zeros_like(pooled), t_rows, return_dict=False)[0]
            for block in range(blocks):
                level = int(block / (blocks / len(found)))
                added[block] = added[block] + factor(i, level, len(found)) * found[level]
        without, prompted = family.transformer(rows, tokens, pooled, t_rows, added, return_dict=False)[0].chunk(2)
        x = scheduler.step(without + GUIDANCE * (prompted - without), t, x, return_dict=False)[0]
        if mask is not None:
            x = mask * x + (1.0 - mask) * ((1.0 - sigma) * start + sigma * noise)
    return x


@pytest.mark.parametrize("inpaint", [False, True])
@pytest.mark.parametrize("nets", [["plain"], ["plain", "deep"]])
@torch.no_grad()
def test_pictures_under_controls(nets: list[str], inpaint: bool, models: Path, families: dict[str, StableDiffusion3]) -> None:
    family, weights = families["3"], [0.6, 0.5]
    canvas = begin(family, picture(), paint_mask() if inpaint else None, strength=0.7)
    got = drawn(family, plan_of(family, *steered(family, models, nets, weight=weights), strength=0.7, canvas=canvas))
    mask = torch.from_numpy(paint_mask()[None, None, ::8, ::8] / 255.0).float() if inpaint else None
    assert_same(got, by_hand(family, models, nets, lambda net, level, levels: weights[net], mask=mask, strength=0.7))


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
    mask, own = torch.zeros(SIZE_PX, SIZE_PX), (0.2, 0.0, 0.9)
    mask[: SIZE_PX // 2, 24:] = 1.0
    tokens = mask.reshape(4, 16, 4, 16).mean(dim=(1, 3)).reshape(1, 16, 1)
    controls = steered(families["3"], models, ["deep"], mask_HW=mask, layer_weights=own, weight=0.8)
    got = drawn(families["3"], plan_of(families["3"], *controls))
    assert_same(got, by_hand(families["3"], models, ["deep"], lambda net, level, levels: 0.8 * own[level] * tokens))


def test_each_picture_of_a_batch_is_the_one_drawn_alone(models: Path, families: dict[str, StableDiffusion3]) -> None:
    plan = plan_of(families["3"], *steered(families["3"], models, ["plain"], mode="control"))
    noise = seeded_noise([SEED + 1], families["3"].latent_shape(**SIZE), PLACE.device)
    alone = denoise(families["3"], plan, noise, lambda i, denoised: None)
    torch.testing.assert_close(drawn(families["3"], plan, count=2)[1:], alone, rtol=0, atol=1e-5)  # another batch size adds up otherwise


def test_a_map_is_encoded_and_embedded_once(models: Path, families: dict[str, StableDiffusion3]) -> None:
    """Once a picture, the same whatever the global generator holds, and the net is asked inside its window alone."""
    family, calls = families["3"], dict.fromkeys(("encode", "embed", "net"), 0)
    net = family.load_control(Folder(models / "net-plain"))

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    hooks = [
        family.vae.encoder.register_forward_hook(count("encode")),
        net.hint_embedding.register_forward_hook(count("embed")),
        net.net.register_forward_hook(count("net")),
    ]
    control = family.prepare(net, Hint(control_map(0), "tile"))
    first = drawn(family, plan_of(family, Steering(control, start=0.3, end=0.8)))
    assert calls == {"encode": 1, "embed": 1, "net": 2}
    torch.manual_seed(99)
    again = Steering(family.prepare(net, Hint(control_map(0), "tile")), start=0.3, end=0.8)
    assert torch.equal(first, drawn(family, plan_of(family, again)))
    drawn(family, plan_of(family, Steering(control, weight=0.0)))
    assert calls["net"] == 4
    for hook in hooks:
        hook.remove()


def test_prompts_longer_than_a_window(families: dict[str, StableDiffusion3]) -> None:
    """CLIP reads all of it, in windows; a shorter negative prompt is filled with the empty prompt's."""
    family = families["3"]
    long = "a red sphere left of a blue cube on grass at sunset, " * 20
    text = family.encode_prompt(long)
    windows = (text.tokens_BLD.shape[1] - 256) // 77
    assert windows > 1
    assert text.tokens_BLD.shape[1] == windows * 77 + 256
    assert text.dropped  # by T5
    plan = replace(plan_of(family), positive=text)
    assert drawn(family, plan).isfinite().all()
    assert family.encode_prompt("").empty


def test_a_checkpoint_whose_t5_was_not_fetched_is_whole(models: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "base"
    shutil.copytree(models / "base-3", folder, ignore=shutil.ignore_patterns("text_encoder_3", "tokenizer_3"))
    family = StableDiffusion3.load(Folder(folder), PLACE)
    assert "text_encoder_3" not in family.networks()
    assert family.encode_prompt(PROMPT).tokens_BLD[:, 77:].abs().max() == 0.0
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(BadModel, match=r"has no 'text_encoder_2': a Stable Diffusion 3 or 3.5 model needs transformer"):
        StableDiffusion3.load(Folder(folder), PLACE)


def test_sizes_the_transformer_cannot_draw(families: dict[str, StableDiffusion3]) -> None:
    assert families["3"].latent_shape(192, 96) == (16, 12, 24)
    for width in (72, 208):
        with pytest.raises(BadRequest, match=rf"width = {width}: this model draws in patches of 16 pixels; give a multiple up to 192"):
            families["3"].latent_shape(width, 64)


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        (Mismatch, {"_class_name": "ControlNetModel"}, r"is a ControlNet for Stable Diffusion or SDXL, .* is Stable Diffusion 3"),
        (Mismatch, {"_class_name": "T2IAdapter"}, r"is a T2I-Adapter"),
        (BadModel, {"_class_name": "SD3Transformer2DModel"}, r"is SD3Transformer2DModel, not a SD3ControlNetModel"),
        (Mismatch, {"_class_name": "SD3ControlNetModel"}, r"has width 1152, the base model .* 32: use a ControlNet trained for this base"),
        (Mismatch, {"qk_norm": "rms_norm"}, r"has qk_norm rms_norm, the base model .* None"),
        (Mismatch, {"joint_attention_dim": 64}, r"has joint_attention_dim 64, the base model .* 48"),
        (Mismatch, {"in_channels": 4}, r"has in_channels 4, the base model .* 16"),
    ],
)
def test_controlnets_that_do_not_fit(
    kind: type[Exception], config: dict[str, Any], message: str, models: Path, tmp_path: Path, families: dict[str, StableDiffusion3]
) -> None:
    import json

    own = {} if "_class_name" in config else json.loads((models / "net-plain" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(own | config))
    with pytest.raises(kind, match=message):
        families["3"].check_control(Folder(tmp_path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fewer_bits(dtype: torch.dtype, models: Path, families: dict[str, StableDiffusion3]) -> None:
    """All parts take what the others give, whatever they compute in; bfloat16 differs by about 1 % of the deviation here."""
    family = StableDiffusion3.load(Folder(models / "base-3"), replace(PLACE, dtype=dtype))
    canvas = begin(family, picture(), strength=0.7)
    got = drawn(family, plan_of(family, *steered(family, models, ["plain"], weight=0.5), strength=0.7, canvas=canvas))
    expected = drawn(
        families["3"], plan_of(families["3"], *steered(families["3"], models, ["plain"], weight=0.5), strength=0.7, canvas=canvas)
    )
    assert got.dtype == torch.float32
    assert (got - expected).std() < 0.03 * expected.std()
    assert family.decode(got).isfinite().all()


class HostReads(TorchDispatchMode):
    """Counts how often a number is fetched from a tensor, which on a device waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device(models: Path, families: dict[str, StableDiffusion3]) -> None:
    """A network's output and a ControlNet's residuals are asked for without reading a number back."""
    family = families["3"]
    control, text = steered(family, models, ["plain"])[0].control, plan_of(family).positive
    x, t = torch.randn(1, *family.latent_shape(**SIZE)), torch.tensor(500.0)
    assert isinstance(text, Text)
    with torch.inference_mode(), HostReads() as reads:
        family.predict(x, t, text, control.residuals(x, t, text))
    assert reads.count == 0
