"""Guidance in all its forms against diffusers' own pipelines and against its formulas; which rows a step really asks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.errors import BadRequest, Cancelled, Mismatch
from pipelines import samplers
from pipelines.attention import shared_start
from pipelines.checkpoint import Folder
from pipelines.denoise import Plan, Steering, denoise, seeded_noise
from pipelines.families.sd import StableDiffusion
from pipelines.family import Hint, Place
from pipelines.guidance import Branches, Guidance, Side
from pipelines.noise import slerp
from pipelines.schedules import make_times
from tests.pipelines.their_pipelines import assert_same
from tests.tinymodels import SIZE_PX, control_map

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

PLACE = Place(torch.device("cpu"), torch.float32)
PROMPT, NEGATIVE, STEPS, SEED = "a red sphere left of a blue cube", "snow at night", 6, 7


@pytest.fixture(scope="module")
def family(base: Path) -> StableDiffusion:
    return StableDiffusion.load(Folder(base), PLACE)


@pytest.fixture(scope="module")
def steering(family: StableDiffusion, controlnets: list[Path]) -> Steering:
    return Steering(family.prepare(family.load_control(Folder(controlnets[0])), Hint(control_map(0), "canny")))


def make_plan(family: StableDiffusion, *, steps: int = STEPS, sampler: str = "euler", **values: Any) -> Plan:
    spec = samplers.get(sampler)
    times = make_times(family.path, "uniform", steps, spec.grid)
    given = {"positive": family.encode_prompt(PROMPT), "negative": family.encode_prompt(NEGATIVE), "guidance_scale": 2.0}
    return Plan(sampler=spec, times=times, **(given | values))


def drawn(family: StableDiffusion, plan: Plan, count: int = 1, **options: Any) -> Tensor:
    noise = seeded_noise(range(SEED, SEED + count), family.latent_shape(SIZE_PX, SIZE_PX), PLACE.device)
    return denoise(family, plan, noise, lambda i, denoised: None, **options)


def theirs(base: Path, kind: str, parts: dict[str, Any] | None = None, **call: Any) -> Tensor:
    """Final latents of a pipeline of diffusers."""
    import diffusers

    pipe = getattr(diffusers, kind).from_pretrained(base, safety_checker=None, requires_safety_checker=False, **(parts or {}))
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
    pipe.set_progress_bar_config(disable=True)
    size = {"height": SIZE_PX, "width": SIZE_PX, "num_inference_steps": STEPS, "output_type": "latent"}
    prompts = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "guidance_scale": 2.0}
    latents: Tensor = pipe(**(prompts | size | {"generator": torch.Generator().manual_seed(SEED)} | call)).images
    return latents


class Rows:
    """How many rows a network was asked about, call by call."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.seen: list[int] = []
        self.hook = network.register_forward_pre_hook(lambda module, arguments: self.seen.append(arguments[0].shape[0]))

    def taken(self) -> list[int]:
        self.hook.remove()
        return self.seen


@pytest.mark.parametrize("scale", [2.0, 1.0])
def test_perturbed_attention_is_diffusers(scale: float, base: Path, family: StableDiffusion) -> None:
    expected = theirs(base, "StableDiffusionPAGPipeline", guidance_scale=scale, pag_scale=1.0)
    plan = make_plan(family, guidance_scale=scale, pag_scale=1.0, **({} if scale > 1.0 else {"negative": None}))
    assert_same(drawn(family, plan), expected)
    assert (expected - drawn(family, replace(plan, pag_scale=0.0))).abs().max() > 1e-2


def test_perturbed_attention_under_a_controlnet_is_diffusers(
    base: Path, controlnets: list[Path], family: StableDiffusion, steering: Steering
) -> None:
    import diffusers
    from PIL import Image

    parts = {"controlnet": diffusers.ControlNetModel.from_pretrained(controlnets[0])}
    call = {"image": Image.fromarray(control_map(0)), "pag_scale": 2.0}
    expected = theirs(base, "StableDiffusionControlNetPAGPipeline", parts, **call)
    assert_same(drawn(family, make_plan(family, pag_scale=2.0, controls=(steering,))), expected)


def test_at_scale_zero_nothing_is_perturbed(family: StableDiffusion, steering: Steering) -> None:
    plan = make_plan(family, controls=(steering,))
    rows, asked = Rows(family.unet), Rows(steering.control.network)  # type: ignore[attr-defined]
    plain = drawn(family, plan)
    assert rows.taken() == asked.taken() == [2] * STEPS
    rows, asked = Rows(family.unet), Rows(steering.control.network)  # type: ignore[attr-defined]
    drawn(family, replace(plan, pag_scale=2.0))
    assert rows.taken() == [3] * STEPS
    assert asked.taken() == [2] * STEPS  # the perturbed rows take what the prompt's got
    assert torch.equal(plain, drawn(family, plan))


def test_a_family_without_layers_to_perturb_says_so(family: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    for pattern, words in (("", "has no perturbed-attention guidance"), ("nowhere", "no attention layer of UNet2DConditionModel")):
        monkeypatch.setattr(StableDiffusion, "perturbed_layers", pattern)
        with pytest.raises(Mismatch, match=words):
            drawn(family, make_plan(family, pag_scale=1.0))


def test_rescale_is_diffusers(base: Path, family: StableDiffusion) -> None:
    expected = theirs(base, "StableDiffusionPipeline", guidance_rescale=0.7)
    assert_same(drawn(family, make_plan(family, guidance_rescale=0.7)), expected)
    assert (expected - drawn(family, make_plan(family))).abs().max() > 1e-2


def test_outside_its_interval_guidance_asks_for_the_prompt_alone(family: StableDiffusion) -> None:
    rows = Rows(family.unet)
    drawn(family, make_plan(family, steps=10, guidance_start=0.2, guidance_end=0.6, pag_scale=1.0))
    assert rows.taken() == [1, 1, 3, 3, 3, 3, 1, 1, 1, 1]
    whole, never = (drawn(family, make_plan(family, guidance_end=end)) for end in (1.0, 0.0))
    assert torch.equal(whole, drawn(family, make_plan(family)))
    assert torch.equal(never, drawn(family, make_plan(family, negative=None, guidance_scale=1.0)))


def test_sides_of_an_and_are_added_by_weight(family: StableDiffusion) -> None:
    """Liu et al., 2022: ε(∅) + s·Σ w_k·(ε(c_k) − ε(∅))."""
    random = torch.Generator().manual_seed(0)
    negative, one, other, one_broken, other_broken = torch.randn((5, 2, 4, 8, 8), generator=random)
    text = family.encode_prompt(PROMPT)
    branches = Branches(text, (text, text), (1.5, 0.5), perturbed=True)
    got, prompted = branches.guided(torch.cat([negative, one, other, one_broken, other_broken]), Guidance(scale=3.0, perturbed=2.0))
    expected = negative + 4.5 * (one - negative) + 1.5 * (other - negative) + 3.0 * (one - one_broken) + other - other_broken
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(prompted, 0.75 * one + 0.25 * other, rtol=0, atol=1e-6)
    alone, _ = replace(branches, negative=None, perturbed=False).guided(torch.cat([one, other]), Guidance(scale=3.0))
    torch.testing.assert_close(alone, prompted)


def test_an_and_of_one_thing_twice_is_that_thing(family: StableDiffusion, steering: Steering) -> None:
    text = family.encode_prompt(PROMPT)
    rows = Rows(family.unet)
    halves = drawn(family, make_plan(family, positive=(Side(((0, text),), 0.5),) * 2, controls=(steering,)), count=2)
    assert rows.taken() == [6] * STEPS
    assert_same(halves, drawn(family, make_plan(family, controls=(steering,)), count=2))
    with pytest.raises(BadRequest, match="add up to 0 or less"):
        drawn(family, make_plan(family, positive=(Side(((0, text),), 1.0), Side(((0, text),), -1.0))))


def test_every_step_has_its_text(family: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = family.encode_prompt("a red sphere"), family.encode_prompt("a person on snow")
    asked: list[Tensor] = []
    predict = family.predict
    monkeypatch.setattr(
        family, "predict", lambda x, t, text, residuals: (asked.append(text.tokens_BLD[-1]), predict(x, t, text, residuals))[1]
    )
    drawn(family, make_plan(family, positive=(Side(((2, one), (STEPS, other))),)))
    for step, tokens in enumerate(asked):
        assert torch.equal(tokens, (one if step < 2 else other).tokens_BLD[0])


def test_text_is_projected_once_for_each_prompt(family: StableDiffusion, steering: Steering, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fourth saving of the cross-attention: as many projections as prompts, and the same bits as without."""
    from pipelines import denoise as loop
    from pipelines import onednn

    cross = [
        module
        for network in (family.unet, steering.control.network)  # type: ignore[attr-defined]
        for module in network.modules()
        if getattr(module, "is_cross_attention", False)
    ]
    counts = {"linear": 0}
    linear, multiply = torch.nn.functional.linear, onednn.multiply
    widths = {module.to_k.weight.data_ptr() for module in cross} | {module.to_v.weight.data_ptr() for module in cross}

    def counted(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        counts["linear"] += weight.data_ptr() in widths
        return linear(states, weight, bias)

    def counted_there(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        counts["linear"] += weight.data_ptr() in widths
        return multiply(states, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    monkeypatch.setattr(onednn, "multiply", counted_there)
    one, other = family.encode_prompt("a red sphere"), family.encode_prompt("a person on snow")
    sides = (Side(((3, one), (STEPS, other))),)
    plan = make_plan(family, positive=sides, controls=(steering,))
    with_memory = drawn(family, plan, count=2)
    assert counts["linear"] == 2 * len(cross) * 2  # keys and values, of two prompts
    assert not any("forward" in vars(projection) for module in cross for projection in (module.to_k, module.to_v))
    counts["linear"] = 0
    monkeypatch.setattr(loop, "remembered", lambda networks: __import__("contextlib").nullcontext())
    assert torch.equal(with_memory, drawn(family, plan, count=2))
    assert counts["linear"] == 2 * len(cross) * STEPS


def test_the_halves_of_guidance_can_begin_as_one(family: StableDiffusion, steering: Steering) -> None:
    """Equal to rounding, which six guided steps blow up; the bound is that of parity. What is shared runs on one block's rows."""
    plan = make_plan(family, controls=(steering,), pag_scale=1.0)
    block = family.unet.down_blocks[0].attentions[0].transformer_blocks[0]
    rows = Rows(block.attn1.to_q)
    late = Rows(block.attn2.to_q)
    shared = drawn(family, replace(plan, share_start=True), count=2)
    assert rows.taken() == [2] * STEPS
    assert late.taken() == [6] * STEPS
    assert_same(shared, drawn(family, plan, count=2))
    with shared_start(torch.nn.Linear(2, 2), 2):  # what is no UNet stays as it is
        pass


@pytest.mark.parametrize("sampler", ["heun", "dpm2"])
def test_cancelled_between_the_calls_of_a_step(sampler: str, family: StableDiffusion) -> None:
    rows, calls = Rows(family.unet), 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls == 4:  # the second call of the second step
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        drawn(family, make_plan(family, sampler=sampler), before_call=stop)
    assert len(rows.taken()) == 3


def test_layer_weights_scale_their_levels(family: StableDiffusion, steering: Steering) -> None:
    levels = steering.control.levels
    x, t, text = torch.randn(1, 4, 8, 8), torch.tensor(500.0), family.encode_prompt(PROMPT)
    weights = tuple(0.25 * level for level in range(levels))
    plain = steering.residuals(x, t, text)["skips"]
    for weight, one, another in zip(weights, replace(steering, layer_weights=weights).residuals(x, t, text)["skips"], plain, strict=True):
        torch.testing.assert_close(one, another * weight)
    with pytest.raises(Mismatch, match=f"layer_weights has 2 numbers, this ControlNet has {levels} levels"):
        replace(steering, layer_weights=(1.0, 1.0))
    asked = Rows(steering.control.network)  # type: ignore[attr-defined]
    drawn(family, make_plan(family, controls=(replace(steering, layer_weights=(0.0,) * levels),)))
    assert asked.taken() == []


def test_a_variation_lies_on_the_arc_between_two_noises() -> None:
    one, other = (torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(seed)) for seed in (7, 9))
    assert torch.equal(slerp(one, other, 0.0), one)
    torch.testing.assert_close(slerp(one, other, 1.0), other)
    # Two vectors of equal length: so is every point between them, and it divides the angle.
    right, up = torch.tensor([[[3.0], [0.0]]]), torch.tensor([[[0.0], [3.0]]])
    torch.testing.assert_close(slerp(right, up, 1 / 3), torch.tensor([[[3.0 * 0.75**0.5], [1.5]]]))
    torch.testing.assert_close(slerp(right, 2.0 * right, 0.5), 1.5 * right)
    wide = slerp(*(torch.randn((4, 64, 64), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)), 0.5)
    assert abs(float(wide.std()) - 1.0) < 0.03  # 16,384 numbers: three deviations of their deviation are 0.017
    noise = seeded_noise([7, 7], (4, 8, 8), PLACE.device, variation_seeds=[9, 10], variation_strength=0.3)
    first, second = noise(), noise()
    torch.testing.assert_close(first[0], slerp(one, other, 0.3))
    assert torch.equal(second[0], second[1])  # later draws are the seed's own
    assert not torch.equal(first[0], first[1])
