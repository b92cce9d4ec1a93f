"""Samplers against diffusers' schedulers on a synthetic network: same timesteps, same end.

Tolerance: their σ are float32 and they scale x by up to 14.6, so rounding of some 1e-6 a step on values of a few units, 1e-4 over 20
steps. Where a case is missing or says otherwise, diffusers differs, and the case says why.
"""

import importlib
import itertools
import math
import sys
from types import ModuleType
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from core.errors import BadRequest
from pipelines import samplers
from pipelines.flow import flow_shift
from pipelines.parameterisation import Output, Path
from pipelines.samplers.consistency import tcd
from pipelines.samplers.ddim import ddim, ddpm
from pipelines.samplers.euler import euler_ancestral
from pipelines.schedules import Grid, Times, make_times
from tests.pipelines.oracles import PREDICTION, SD, SHAPE, model_of, network, ours, theirs

# diffusers' schedulers call numpy.array on a tensor; only the oracle does, never our loop.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

TABLE = ("uniform", "leading", "trailing")
CURVES = ("karras", "exponential")
EVERY = (*TABLE, *CURVES)
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2_ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_3m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": True}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
# DEIS and TCD end on the table's first entry over there, whatever the checkpoint says.
ENDS_ON_FIRST = ("deis", "tcd")


def scheduler(name: str, schedule: str, output: Output, steps: int, **config: Any) -> Any:
    class_name, options = CLASSES[name]
    if schedule in CURVES:
        options = {**options, f"use_{schedule}_sigmas": True}
    elif name not in ("lcm", "tcd"):
        options = {**options, "timestep_spacing": {"uniform": "linspace"}.get(schedule, schedule)}
    made = getattr(diffusers, class_name)(**SD, **{**options, **config}, prediction_type=PREDICTION[output])
    made.set_timesteps(steps)
    return made


def times_of(name: str, schedule: str, steps: int, **config: Any) -> Times:
    sampler, path = samplers.get(name), Path.from_scheduler_config({**SD, **config})
    times = make_times(path, schedule, steps, sampler.grid, steps_offset=1)
    return times.ending_on_first() if name in ENDS_ON_FIRST else times


CASES = [
    *((name, schedule) for name in ("euler", "heun") for schedule in EVERY),
    # diffusers rounds the karras timesteps of KDPM2 to whole ones.
    *((name, schedule) for name in ("dpm2", "dpm2_ancestral") for schedule in (*TABLE, "exponential")),
    # exponential is cut to whole timesteps there: see below.
    *((name, schedule) for name in ("dpmpp_2m", "dpmpp_2m_sde", "unipc", "deis") for schedule in (*TABLE, "karras")),
    *(("euler_ancestral", schedule) for schedule in TABLE),
    # DDIM, DDPM and PNDM over there have no curves, and with linspace they step to t − T // N instead of the next of their own list;
    # so do the last two with trailing at step counts that do not divide T, and leading ends at t − T // N = −49 + 1.
    *((name, schedule) for name in ("ddim", "ddpm", "pndm") for schedule in ("leading", "trailing")),
    ("lcm", "trailing"),
    ("tcd", "trailing"),
]
# PNDM over there mixes v-predictions of several points as if they were ε, and turns the mixture into ε with the last point's α and σ.
OUTPUTS: dict[str, tuple[Output, ...]] = {"pndm": ("epsilon",)}


@pytest.mark.parametrize(
    ("name", "schedule", "output"), [(*case, output) for case in CASES for output in OUTPUTS.get(case[0], ("epsilon", "v"))]
)
def test_samplers_are_diffusers_schedulers(name: str, schedule: str, output: Output) -> None:
    reference, times = scheduler(name, schedule, output, 20), times_of(name, schedule, 20)
    if name not in ("pndm", "heun", "dpm2_ancestral"):  # which are told of every call there
        assert list(times.timesteps) == pytest.approx(reference.timesteps.tolist(), abs=2e-2)
    torch.testing.assert_close(ours(samplers.get(name).run, times, output), theirs(reference), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 10, 25])
@pytest.mark.parametrize("name", [name for name in CLASSES if name not in ("dpmpp_3m_sde", "dpm2_ancestral")])
def test_any_number_of_steps(name: str, steps: int) -> None:
    if steps == 1 and name == "dpm2":
        pytest.skip("diffusers has no single step of it")
    schedule = "leading" if name in ("ddim", "ddpm", "pndm") else "trailing"  # a single linspace step stands on timestep 0 over there
    output: Output = "epsilon" if name == "pndm" else "v"
    expected = theirs(scheduler(name, schedule, output, steps))
    torch.testing.assert_close(ours(samplers.get(name).run, times_of(name, schedule, steps), output), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_3m_sde_is_diffusers_while_no_third_order_is_used(steps: int) -> None:
    expected = theirs(scheduler("dpmpp_3m_sde", "trailing", "v", steps))
    got = ours(samplers.get("dpmpp_3m_sde").run, times_of("dpmpp_3m_sde", "trailing", steps), "v")
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_3m_sde_is_k_diffusions_update() -> None:
    """The published update in its own variable σ/α, for diffusers' third order has a sign of its own (see `dpmpp_3m_sde`)."""
    times = times_of("dpmpp_3m_sde", "karras", 20)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    start, draws = x, [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(20)]

    def model(x: Tensor, i: int) -> Tensor:
        return 0.5 * torch.tanh(x) + 0.1 * math.sin(times.timesteps[i] / 300.0)

    k = x / times.alphas[0]
    seen: list[tuple[Tensor, float]] = []
    for i in range(20):
        denoised = model(k * times.alphas[i], i)
        if i == 19:
            k = denoised
            break
        h = math.log(times.levels[i] / times.levels[i + 1])
        two_h, e = 2.0 * h, math.exp(-2.0 * h)
        k = e * k + (1.0 - e) * denoised
        phi_2 = (e - 1.0) / two_h + 1.0
        if len(seen) == 1:
            k = k + phi_2 * (denoised - seen[0][0]) * (h / seen[0][1])
        elif len(seen) > 1:
            (near, h_near), (far, h_far) = seen[-1], seen[-2]
            r_0, r_1 = h_near / h, h_far / h
            d_0, d_1 = (denoised - near) / r_0, (near - far) / r_1
            first = d_0 + (d_0 - d_1) * r_0 / (r_0 + r_1)
            k = k + phi_2 * first - (phi_2 / two_h - 0.5) * (d_0 - d_1) / (r_0 + r_1)
        k = k + draws[i] * times.levels[i + 1] * math.sqrt(1.0 - e)
        seen.append((denoised, h))
    left = iter(draws)

    got = samplers.get("dpmpp_3m_sde").run(model, start, times, lambda i, denoised: None, lambda: next(left))
    # k-diffusion's second step uses φ_2 where diffusers and we use ½(1 − e^−2h): the same to second order.
    torch.testing.assert_close(got, k, rtol=0, atol=2e-2)


@pytest.mark.parametrize("schedule", ["uniform", "exponential"])
def test_dpmpp_sde_is_diffusers_with_its_brownian_tree_replaced(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their scheduler needs torchsde for its tree alone, so an empty module will do; its noises are given to it as ours tie them."""
    monkeypatch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))
    module = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
    curve = {"use_exponential_sigmas": True} if schedule == "exponential" else {"timestep_spacing": "linspace"}
    reference = module.DPMSolverSDEScheduler(**SD, **curve)
    reference.set_timesteps(20)
    times = times_of("dpmpp_sde", schedule, 20)
    assert list(times.timesteps) == pytest.approx(reference.timesteps.tolist(), abs=2e-2)
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(SHAPE, generator=generator)
    draws: list[Tensor] = []

    stages = itertools.cycle(("midway", "end"))

    def paired(level: Tensor, level_s: Tensor) -> Tensor:
        if next(stages) == "midway":
            draws.extend(torch.randn(SHAPE, generator=generator) for _ in range(2))
            return draws[-2]
        half = float((level_s / level).sqrt())  # ρ of half a step
        first, second = draws[-2:]
        return (half * math.sqrt(1 - half**2) * first + math.sqrt(1 - half**2) * second) / math.sqrt(1 - half**4)

    x = start * reference.init_noise_sigma
    reference.noise_sampler = paired
    for t in reference.timesteps:
        x = reference.step(network(reference.scale_model_input(x, t), t), t, x).prev_sample
    left = iter([start, *draws])
    model = model_of(times, "epsilon")
    got = samplers.get("dpmpp_sde").run(model, next(left) * times.initial, times, lambda i, denoised: None, lambda: next(left))
    torch.testing.assert_close(got, x, rtol=1e-4, atol=1e-4)


FLOW: list[tuple[str, str, str, dict[str, Any]]] = [
    ("euler", "uniform", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("heun", "uniform", "FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    ("lcm", "uniform", "FlowMatchLCMScheduler", {"shift": 3.0}),
    ("dpmpp_2m", "trailing", "DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 3.0}),
    ("dpmpp_2m_sde", "trailing", "DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "algorithm_type": "sde-dpmsolver++"}),
    ("unipc", "sgm_uniform", "UniPCMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 3.0}),
]


@pytest.mark.parametrize(("name", "schedule", "class_name", "config"), FLOW)
@pytest.mark.parametrize("steps", [1, 8, 20])
def test_flow_samplers_are_diffusers(name: str, schedule: str, class_name: str, config: dict[str, Any], steps: int) -> None:
    prediction = {"prediction_type": "flow_prediction"} if "use_flow_sigmas" in config else {}
    reference = getattr(diffusers, class_name)(**config, **prediction)
    reference.set_timesteps(steps)
    described = {**reference.config, "_class_name": class_name}
    path, sampler = Path.from_scheduler_config(described), samplers.get(name)
    times = make_times(path, schedule, steps, sampler.grid, shift=flow_shift(described, 1024))
    got = ours(sampler.run, times, "flow")
    # UniPC's first σ is 1 − 1e-6 over there, which cut down to a whole timestep is 999; ours is 1000.
    atol = 1e-3 if name == "unipc" and steps == 1 else 1e-4
    torch.testing.assert_close(got, theirs(reference), rtol=1e-4, atol=atol)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_tcd_gamma_is_diffusers_eta(gamma: float) -> None:
    got = ours(tcd, times_of("tcd", "trailing", 8), "epsilon", gamma=gamma)
    torch.testing.assert_close(got, theirs(scheduler("tcd", "trailing", "epsilon", 8), eta=gamma), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim_eta_is_diffusers(eta: float) -> None:
    got = ours(ddim, times_of("ddim", "leading", 10), "epsilon", eta=eta)
    torch.testing.assert_close(got, theirs(scheduler("ddim", "leading", "epsilon", 10), eta=eta), rtol=1e-4, atol=1e-4)


def test_ddpm_with_the_large_variance_is_diffusers() -> None:
    # Theirs leaves out the last noise at timestep 0 alone, so the offset must be 0; the algorithm leaves it out at the last step.
    reference = diffusers.DDPMScheduler(
        **{**SD, "steps_offset": 0}, clip_sample=False, timestep_spacing="leading", variance_type="fixed_large"
    )
    reference.set_timesteps(10)
    times = make_times(Path.from_scheduler_config(SD), "leading", 10, samplers.get("ddpm").grid)
    got = ours(ddpm, times, "epsilon", variance="large")
    torch.testing.assert_close(got, theirs(reference), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schedule", ["leading", "trailing"])
@pytest.mark.parametrize("name", ["ddim", "pndm"])
def test_samplers_on_the_table_end_on_its_first_entry_where_the_checkpoint_says_so(name: str, schedule: str) -> None:
    sampler = samplers.get(name)
    times = make_times(Path.from_scheduler_config(SD), schedule, 20, sampler.grid, steps_offset=1, end_on_first=True)
    expected = theirs(scheduler(name, schedule, "epsilon", 20, set_alpha_to_one=False))
    got = ours(sampler.run, times, "epsilon")
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert (ours(sampler.run, times_of(name, schedule, 20), "epsilon") - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["euler", "euler_ancestral", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_zero_terminal_snr(name: str) -> None:
    config = {"rescale_betas_zero_snr": True}
    expected = theirs(scheduler(name, "trailing", "v", 20, **config))
    got = ours(samplers.get(name).run, times_of(name, "trailing", 20, **config), "v")
    # Their first σ is 4096 in float32, and the ancestral step takes differences of its square: 5e-4.
    torch.testing.assert_close(got, expected, rtol=0, atol=5e-4)


def test_exponential_dpmpp_2m_has_diffusers_levels_and_the_nearest_timesteps() -> None:
    reference, times = scheduler("dpmpp_2m", "exponential", "epsilon", 20), times_of("dpmpp_2m", "exponential", 20)
    assert list(times.levels) == pytest.approx(reference.sigmas.tolist(), rel=1e-5)
    # Theirs are truncated, so that the highest level is told as 998; ours are rounded.
    assert times.timesteps[0] == 999.0
    assert all(0 <= t - cut <= 1 for t, cut in zip(times.timesteps, reference.timesteps.tolist(), strict=True))


def test_ancestral_euler_is_ddim_with_eta_one() -> None:
    """On VP the published σ_up of k-diffusion and DDIM's σ(η = 1), eq. 16, are the same number."""
    times = make_times(Path.from_scheduler_config(SD), "uniform", 10, Grid())
    for i in range(10):
        alpha, sigma, alpha_s, sigma_s = times.alphas[i], times.sigmas[i], times.alphas[i + 1], times.sigmas[i + 1]
        paper = math.sqrt(sigma_s**2 / sigma**2 * (1 - alpha**2 / alpha_s**2))
        level, level_s = sigma / alpha, sigma_s / alpha_s
        k_diffusion = alpha_s * math.sqrt(level_s**2 * (level**2 - level_s**2) / level**2)
        assert k_diffusion == pytest.approx(paper, abs=1e-12)
    assert torch.equal(ours(euler_ancestral, times, "epsilon"), ours(ddim, times, "epsilon", eta=1.0))


def test_an_unknown_sampler_names_the_nearest() -> None:
    with pytest.raises(BadRequest, match=r"unknown sampler 'euller': did you mean 'euler'\?"):
        samplers.get("euller")
