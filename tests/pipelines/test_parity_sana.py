"""Sana in the one loop against diffusers' own pipelines: same weights, seeds and sampler, fp32 final latents within 1e-4.

diffusers has text to image, and one ControlNet without a window; the rest is held against the networks called by hand.
"""

import json
from collections.abc import Callable
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

from core.errors import BadModel, Mismatch
from core.request import Mode
from pipelines import samplers
from pipelines.canvas import begin
from pipelines.checkpoint import Folder
from pipelines.denoise import Plan, denoise, seeded_noise
from pipelines.families.sana import Sana
from pipelines.family import Drawing, Hint, Place, Text
from pipelines.images import tensor_to_pictures
from pipelines.prompt import parse, plain
from pipelines.schedules import make_times
from pipelines.steering import Steering, level_factors
from tests import tinymodels_sana

PROMPT, NEGATIVE, GUIDANCE, SEED, STEPS = "A red sphere left of a blue cube", "snow at night", 4.0, 7, 6
PLACE = Place(torch.device("cpu"), torch.float32)
WIDTH, HEIGHT = 96, 64  # not square, so that rows taken for columns show
SIZE = {"width": WIDTH, "height": HEIGHT}
BASES = ("solver", "euler")  # by the scheduler the checkpoint comes with

# diffusers' schedulers call numpy.array on a tensor; only the oracle does, never our loop.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")


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


def picture() -> NDArray[np.uint8]:
    """A picture with something in it: coloured blocks."""
    return np.kron(np.random.default_rng(5).integers(0, 256, (4, 6, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))


def drawn_map(seed: int) -> NDArray[np.uint8]:
    """A map of noise at the size that is drawn."""
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def paint_mask() -> NDArray[np.uint8]:
    """255 where to paint."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[12:40, 20:] = 255
    return mask


@cache
def pipeline(models: Path, base: str, net: str | None, kind: str = "") -> Any:
    """A pipeline of diffusers' over our folders."""
    import diffusers

    parts = {} if net is None else {"controlnet": diffusers.SanaControlNetModel.from_pretrained(models / f"net-{net}")}
    name = kind or ("SanaPipeline" if net is None else "SanaControlNetPipeline")
    pipe = getattr(diffusers, name).from_pretrained(models / f"base-{base}", local_files_only=True, **parts)
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
        use_resolution_binning=False,
        output_type="latent",
        **({"guidance_scale": GUIDANCE} | SIZE | options),
    ).images
    assert isinstance(latents, Tensor)
    return latents


def text_of(family: Sana, prompt: str, negative: bool = False) -> Text:
    return family.bind(family.encode_prompt(prompt), Drawing(WIDTH, HEIGHT, GUIDANCE, negative))


def steered(family: Sana, models: Path, nets: list[str], **steering: Any) -> tuple[Steering, ...]:
    """Controls, each with a map of its own; steering: one value for all, or a list with one for each."""
    controls = []
    for i, net in enumerate(nets):
        own = {key: value[i] if isinstance(value, list) else value for key, value in steering.items()}
        controls.append(Steering(family.prepare(family.load_control(Folder(models / f"net-{net}")), Hint(drawn_map(i), "canny")), **own))
    return tuple(controls)


def plan_of(family: Sana, *controls: Steering, guidance: float = GUIDANCE, strength: float = 1.0, **options: Any) -> Plan:
    spec, shift, schedule = samplers.get(family.defaults["sampler"]), family.shift(**SIZE), family.defaults["schedule"]
    times = make_times(family.path, schedule, STEPS, spec.grid, shift=shift.factor, terminal=shift.terminal).tail(strength)
    negative = text_of(family, NEGATIVE, negative=True) if guidance != 1.0 else None
    return Plan(spec, times, text_of(family, PROMPT), negative, guidance, controls, **options)


def drawn(family: Sana, plan: Plan, count: int = 1) -> Tensor:
    noise = seeded_noise([SEED + i for i in range(count)], family.latent_shape(**SIZE), PLACE.device)
    return denoise(family, plan, noise, lambda i, denoised: None)


def assert_same(got: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.1  # the comparison is of something
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)  # the bound


@pytest.mark.parametrize("base", BASES)
def test_text_to_image(base: str, models: Path, families: dict[str, Sana]) -> None:
    family, pipe = families[base], pipeline(models, base, None)
    assert_same(drawn(family, plan_of(family)), theirs(pipe))
    assert_same(drawn(family, plan_of(family, guidance=1.0), count=2), theirs(pipe, count=2, guidance_scale=1.0))


@pytest.mark.parametrize("net", ["plain", "deep"])
@pytest.mark.parametrize("base", BASES)
def test_one_control(base: str, net: str, models: Path, families: dict[str, Sana]) -> None:
    pipe = pipeline(models, base, net)
    expected = theirs(pipe, control_image=PIL.Image.fromarray(drawn_map(0)), controlnet_conditioning_scale=0.7)
    got = drawn(families[base], plan_of(families[base], *steered(families[base], models, [net], weight=0.7)))
    assert_same(got, expected)
    assert (got - drawn(families[base], plan_of(families[base]))).abs().max() > 1e-2  # the control did something


def test_pictures_and_latents(models: Path, families: dict[str, Sana]) -> None:
    """Decoding and encoding are diffusers' as well."""
    family, pipe = families["euler"], pipeline(models, "euler", None)
    latents = drawn(family, plan_of(family))
    expected = np.asarray(theirs_picture(pipe))
    assert np.abs(tensor_to_pictures(family.decode(latents))[0].astype(int) - expected).max() <= 1  # rounding of a half
    pixels = torch.from_numpy(picture()).permute(2, 0, 1)[None] / 127.5 - 1.0
    torch.testing.assert_close(family.encode_image(picture()), pipe.vae.encode(pixels).latent.detach() * 0.41407, rtol=0, atol=1e-5)


def theirs_picture(pipe: Any) -> Any:
    generator = torch.Generator("cpu").manual_seed(SEED)
    options: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "generator": generator} | SIZE
    return pipe(PROMPT, negative_prompt=NEGATIVE, use_resolution_binning=False, **options).images[0]


# What diffusers has no pipeline for.

Factor = Callable[[int, int, int, int], Any]


def by_hand(family: Sana, models: Path, nets: list[str], factor: Factor, *, mask: Tensor | None = None, strength: float = 1.0) -> Tensor:
    """Euler's method over the networks themselves, on the base "euler". factor(net, step, level, levels): what the tokens of (negative,
    prompt) are multiplied with. Below strength 1 it starts from `picture()`, which stays where mask is 0.
    """
    import diffusers

    loaded = [diffusers.SanaControlNetModel.from_pretrained(models / f"net-{net}") for net in nets]
    maps = [torch.from_numpy(drawn_map(i)).permute(2, 0, 1)[None] / 127.5 - 1.0 for i in range(len(nets))]
    hints = [family.vae.encode(one).latent * family.vae.config.scaling_factor for one in maps]
    texts = [text_of(family, NEGATIVE, negative=True), text_of(family, PROMPT)]
    tokens, tokens_mask = torch.cat([text.tokens_BLD for text in texts]), torch.cat([text.mask() for text in texts])
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(models / "base-euler", subfolder="scheduler")
    scheduler.set_timesteps(STEPS)
    first = int(STEPS - STEPS * strength)
    scheduler.set_begin_index(first)
    start, noise = family.encode_image(picture()), torch.randn((1, 4, 8, 12), generator=torch.Generator("cpu").manual_seed(SEED))
    x = (1.0 - scheduler.sigmas[first]) * start + scheduler.sigmas[first] * noise if strength < 1.0 else noise
    for step, (t, sigma) in enumerate(zip(scheduler.timesteps[first:], scheduler.sigmas[first + 1 :], strict=True)):
        rows, t_rows, added = torch.cat([x, x]), t.expand(2), [torch.zeros(2, 96, 16)] * 3
        for i, (net, hint) in enumerate(zip(loaded, hints, strict=True)):
            found = net(rows, tokens, t_rows, hint.repeat(2, 1, 1, 1), encoder_attention_mask=tokens_mask, return_dict=False)[0]
            for level, one in enumerate(found):
                added[level] = added[level] + factor(i, step, level, len(found)) * one
        options: dict[str, Any] = {"controlnet_block_samples": added, "encoder_attention_mask": tokens_mask, "return_dict": False}
        without, prompted = family.transformer(rows, tokens, t_rows, **options)[0][:, :4].chunk(2)
        x = scheduler.step(without + GUIDANCE * (prompted - without), t, x, return_dict=False)[0]
        if mask is not None:
            x = mask * x + (1.0 - mask) * ((1.0 - sigma) * start + sigma * noise)
    return x


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


@pytest.mark.parametrize("inpaint", [False, True])
@pytest.mark.parametrize("nets", [[], ["plain"], ["plain", "deep"]])
@torch.no_grad()
def test_from_a_picture(nets: list[str], inpaint: bool, models: Path, families: dict[str, Sana]) -> None:
    family, weights = families["euler"], [0.6, 0.5]
    canvas = begin(family, picture(), paint_mask() if inpaint else None, strength=0.7)
    got = drawn(family, plan_of(family, *steered(family, models, nets, weight=weights), strength=0.7, canvas=canvas))
    mask = torch.from_numpy(paint_mask()[None, None, ::8, ::8] / 255.0).float() if inpaint else None
    expected = by_hand(family, models, nets, lambda net, step, level, levels: weights[net], mask=mask, strength=0.7)
    assert_same(got, expected)


def test_a_map_is_encoded_and_embedded_once(models: Path, families: dict[str, Sana]) -> None:
    family, calls = families["euler"], dict.fromkeys(("encode", "embed", "net"), 0)
    net = family.load_control(Folder(models / "net-plain"))

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    family.vae.encoder.register_forward_hook(count("encode"))
    net.hint_embedding.register_forward_hook(count("embed"))
    net.net.register_forward_hook(count("net"))
    control = family.prepare(net, Hint(drawn_map(0), "canny"))
    drawn(family, plan_of(family, Steering(control, start=0.3, end=0.8)))
    assert calls == {"encode": 1, "embed": 1, "net": 2}
    drawn(family, plan_of(family, Steering(control, weight=0.0)))
    assert calls["net"] == 2


def test_each_picture_of_a_batch_is_the_one_drawn_alone(models: Path, families: dict[str, Sana]) -> None:
    family = families["euler"]
    plan = plan_of(family, *steered(family, models, ["plain"]))
    alone = denoise(family, plan, seeded_noise([SEED + 1], family.latent_shape(**SIZE), PLACE.device), lambda i, denoised: None)
    torch.testing.assert_close(drawn(family, plan, count=2)[1:], alone, rtol=0, atol=1e-5)  # another batch size adds up otherwise


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


@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
def test_perturbed_attention(guidance: float, models: Path, families: dict[str, Sana]) -> None:
    """On the base without QK norm, which diffusers' processors for it leave out."""
    family, pipe = families["solver"], pipeline(models, "solver", None, "SanaPAGPipeline")
    got = drawn(family, plan_of(family, guidance=guidance, pag_scale=2.0), count=2)
    assert_same(got, theirs(pipe, count=2, guidance_scale=guidance, pag_scale=2.0))
    assert (got - drawn(family, plan_of(family, guidance=guidance), count=2)).abs().max() > 1e-2  # it did something


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
    own = {} if "_class_name" in config else json.loads((models / "net-plain" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(own | config))
    with pytest.raises(kind, match=message):
        families["euler"].check_control(Folder(tmp_path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fewer_bits(dtype: torch.dtype, models: Path, families: dict[str, Sana]) -> None:
    """All parts take what the others give, whatever they compute in; bfloat16 differs by about 1 % of the deviation here."""
    family = Sana.load(Folder(models / "base-euler"), replace(PLACE, dtype=dtype))
    canvas = begin(family, picture(), strength=0.7)
    got = drawn(family, plan_of(family, *steered(family, models, ["plain"], weight=0.5), strength=0.7, canvas=canvas))
    expected = drawn(
        families["euler"],
        plan_of(families["euler"], *steered(families["euler"], models, ["plain"], weight=0.5), strength=0.7, canvas=canvas),
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


def test_no_step_waits_for_the_device(models: Path, families: dict[str, Sana]) -> None:
    """A network's output and a ControlNet's residuals are asked for without reading a number back."""
    family = families["euler"]
    control, text = steered(family, models, ["plain"])[0].control, plan_of(family).positive
    x, t = torch.randn(1, *family.latent_shape(**SIZE)), torch.tensor(500.0)
    assert isinstance(text, Text)
    with torch.inference_mode(), HostReads() as reads:
        family.predict(x, t, text, control.residuals(x, t, text))
    assert reads.count == 0
