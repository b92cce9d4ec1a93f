"""Schedules: their points against published formulas and diffusers, flow shifts of published checkpoints, strength, refusals."""

import inspect
import math
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from core.errors import BadModel, BadRequest, Mismatch
from pipelines import samplers
from pipelines.flow import flow_shift, flow_terminal, shifted
from pipelines.parameterisation import Path
from pipelines.schedules import SCHEDULES, Grid, make_times
from pipelines.spacings import beta_quantile
from tests.pipelines.oracles import SD

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

VP, FLOW = Path.from_scheduler_config(SD), Path.flow()

# As published on the hub: black-forest-labs, stabilityai, Qwen, Tongyi-MAI, Efficient-Large-Model.
DYNAMIC = {"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15}
EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "FLUX.1-dev": ("trailing", {**EULER, **DYNAMIC, "shift": 3.0, "use_dynamic_shifting": True}),
    "FLUX.1-schnell": ("trailing", {**EULER, **DYNAMIC, "shift": 1.0, "use_dynamic_shifting": False}),
    "SD3": ("uniform", {**EULER, "shift": 3.0}),
    "SD3, dynamic": ("uniform", {**EULER, **DYNAMIC, "use_dynamic_shifting": True}),
    "Qwen-Image": (
        "trailing",
        {**EULER, **DYNAMIC, "max_image_seq_len": 8192, "max_shift": 0.9, "shift": 1.0, "shift_terminal": 0.02}
        | {"time_shift_type": "exponential", "use_dynamic_shifting": True},
    ),
    "linear": ("trailing", {**EULER, **DYNAMIC, "time_shift_type": "linear", "use_dynamic_shifting": True}),
    "Z-Image-Turbo": ("trailing", {**EULER, "shift": 3.0, "use_dynamic_shifting": False}),
    "Sana": (
        "trailing",
        {"_class_name": "DPMSolverMultistepScheduler", "flow_shift": 3.0, "prediction_type": "flow_prediction", "use_flow_sigmas": True},
    ),
}


@pytest.mark.parametrize("tokens", [256, 1024, 4096, 9216])
@pytest.mark.parametrize("steps", [1, 4, 28])
@pytest.mark.parametrize("checkpoint", PUBLISHED)
def test_levels_of_published_flow_checkpoints_are_diffusers(checkpoint: str, steps: int, tokens: int) -> None:
    schedule, config = PUBLISHED[checkpoint]
    reference = getattr(diffusers, config["_class_name"]).from_config(config)
    options: dict[str, Any] = {}
    if config.get("use_dynamic_shifting"):
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        seq = (config["base_image_seq_len"], config["max_image_seq_len"], config["base_shift"], config["max_shift"])
        options["mu"] = calculate_shift(tokens, *seq)
    if schedule == "trailing" and "use_flow_sigmas" not in config:  # those pipelines give their own levels
        options["sigmas"] = torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64).tolist()
    if steps == 1 and "shift_terminal" in config:
        reference.config.shift_terminal = None  # a single step has no last one to stretch to the terminal: 0/0 over there
    reference.set_timesteps(None if "sigmas" in options else steps, **options)
    sampler = samplers.get("dpmpp_2m" if checkpoint == "Sana" else "euler")
    times = make_times(
        Path.from_scheduler_config(config), schedule, steps, sampler.grid, shift=flow_shift(config, tokens), terminal=flow_terminal(config)
    )
    expected = reference.sigmas.tolist()
    assert list(times.sigmas) == pytest.approx(expected, abs=2e-7)  # theirs are float32
    assert times.initial == reference.init_noise_sigma if checkpoint == "Sana" else times.initial == 1.0
    if checkpoint == "Sana":
        assert list(times.timesteps) == reference.timesteps.tolist()


def test_flow_configs_that_no_family_can_take_are_refused() -> None:
    with pytest.raises(BadModel, match="invert_sigmas = true"):
        Path.from_scheduler_config({**EULER, "invert_sigmas": True})
    with pytest.raises(BadModel, match="time_shift_type 'cubic' is unknown"):
        flow_shift({**EULER, "use_dynamic_shifting": True, "time_shift_type": "cubic"}, 1024)


def test_spacing_of_a_flow_config_is_no_part_of_its_path() -> None:
    path = Path.from_scheduler_config({**EULER, "use_karras_sigmas": True, "shift": 1.0})
    assert (path.kind, path.lowest, path.highest) == ("flow", 1e-3, 1.0)


@pytest.mark.parametrize("steps", [1, 7, 30])
def test_sgm_uniform_and_simple_are_comfyuis(steps: int) -> None:
    level_T = VP.levels().tolist()
    times = make_times(VP, "simple", steps, Grid())
    assert list(times.levels[:-1]) == pytest.approx([level_T[-(1 + int(k * 1000 / steps))] for k in range(steps)], rel=1e-12)
    times = make_times(VP, "sgm_uniform", steps, Grid())
    assert list(times.timesteps) == pytest.approx([999.0 * (1.0 - k / steps) for k in range(steps)], rel=1e-12)


@pytest.mark.parametrize("rho", [0.5, 1.0, 2.0])
def test_polyexponential_is_k_diffusions(rho: float) -> None:
    low, high = float(VP.levels()[0]), float(VP.levels()[-1])
    times = make_times(VP, "polyexponential", 9, Grid(), rho=rho)
    expected = [math.exp((1.0 - k / 8.0) ** rho * (math.log(high) - math.log(low)) + math.log(low)) for k in range(9)]
    assert list(times.levels[:-1]) == pytest.approx(expected, rel=1e-12)


def test_beta_quantiles_are_scipys() -> None:
    scipy = pytest.importorskip("scipy.stats")
    share = torch.linspace(0.0, 1.0, 2001, dtype=torch.float64).numpy()
    torch.testing.assert_close(torch.from_numpy(beta_quantile(share)), torch.from_numpy(scipy.beta.ppf(share, 0.6, 0.6)), rtol=0, atol=1e-6)


def test_beta_on_the_flow_path_is_diffusers() -> None:
    pytest.importorskip("scipy")
    reference = diffusers.FlowMatchEulerDiscreteScheduler(use_beta_sigmas=True)
    reference.set_timesteps(20)
    times = make_times(FLOW, "beta", 20, Grid())
    assert list(times.sigmas) == pytest.approx(reference.sigmas.tolist(), abs=2e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_times_fall_from_noise_to_picture(name: str, schedule: str) -> None:
    for steps in (1, 2, 30):
        times = make_times(VP, schedule, steps, samplers.get(name).grid, steps_offset=1)
        assert times.steps == steps
        assert len(times.alphas) == len(times.sigmas) == len(times.levels) == len(times) + 1
        assert (times.alphas[-1], times.sigmas[-1], times.levels[-1]) == (1.0, 0.0, 0.0)
        assert all(high > low for high, low in zip(times.levels, times.levels[1:], strict=False))
        assert all(0 <= t <= 999 for t in times.timesteps)
        if schedule != "leading":
            assert times.timesteps[0] == 999.0


def test_distilled_samplers_ask_only_at_timesteps_of_the_distillation() -> None:
    grid = samplers.get("lcm").grid
    for schedule in ("uniform", "trailing", "sgm_uniform", "simple"):
        for steps in (1, 4, 8, 50):
            told = make_times(VP, schedule, steps, grid).timesteps
            assert {int(t) % 20 for t in told} == {19}
            assert len(set(told)) == steps


@pytest.mark.parametrize("shift", [0.5, 2.0, 3.0])
@pytest.mark.parametrize("path", [VP, FLOW, Path.ve(torch.logspace(-2, 1.5, 1000))], ids=["vp", "flow", "ve"])
def test_a_shift_lowers_the_log_snr_by_twice_its_logarithm(path: Path, shift: float) -> None:
    plain, moved = (make_times(path, "uniform", 20, Grid(), shift=factor) for factor in (1.0, shift))
    if path.kind == "flow":
        for i in range(1, 20):
            assert 2 * (plain.log_snr(i) - moved.log_snr(i)) == pytest.approx(2 * math.log(shift))
        return
    if shift < 1.0:
        for i in range(20):
            assert 2 * (plain.log_snr(i) - moved.log_snr(i)) == pytest.approx(2 * math.log(shift))
        return
    # The way begins at the table's most noise still, and what the network is told is its own timestep of that level.
    assert moved.timesteps[0] == pytest.approx(999.0)
    for i in range(20):
        alpha, sigma = path.alpha_sigma(moved.timesteps[i])
        assert sigma / alpha == pytest.approx(moved.levels[i], rel=1e-3)  # in log σ/α there, linear here
    assert all(high >= low for high, low in zip(moved.levels, plain.levels, strict=True))
    assert moved.levels[-2] == pytest.approx(shift * plain.levels[-2])


def test_a_flows_shift() -> None:
    assert shifted(0.5, 3.0) == 0.75


def test_bad_schedules_and_counts_are_refused() -> None:
    with pytest.raises(BadRequest, match=r"unknown schedule 'kerras': did you mean 'karras'\?"):
        make_times(VP, "kerras", 20, Grid())
    with pytest.raises(BadRequest, match=r"steps = 1001: .* at most 1000"):
        make_times(VP, "uniform", 1001, Grid())
    with pytest.raises(BadRequest, match=r"steps = 1000: .* at most 999"):
        make_times(VP, "uniform", 1000, samplers.get("dpmpp_2m").grid)
    with pytest.raises(BadRequest, match=r"steps = 51: .* at most 50"):
        make_times(VP, "trailing", 51, samplers.get("lcm").grid)
    with pytest.raises(BadRequest, match=r"'leading' leaves the table"):
        make_times(VP, "leading", 1000, Grid(), steps_offset=1)
    with pytest.raises(BadRequest, match="give a shift above 0"):
        make_times(FLOW, "uniform", 20, Grid(), shift=0.0)
    with pytest.raises(BadRequest, match="a terminal between 0 and 1 to a flow path only"):
        make_times(VP, "uniform", 20, Grid(), terminal=0.02)


@pytest.mark.parametrize("schedule", ["karras", "exponential", "polyexponential", "leading"])
def test_schedules_that_a_flow_cannot_take_say_why(schedule: str) -> None:
    why = "does not start at pure noise" if schedule == "leading" else "infinite where this flow model starts"
    with pytest.raises(Mismatch, match=why):
        make_times(FLOW, schedule, 20, Grid())


STRENGTHS = [1.0, 0.99, 0.8, 0.75, 0.6, 0.5, 0.33, 0.3, 0.1]


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("steps", [10, 20, 28])
def test_strength_cuts_where_diffusers_image_to_image_pipelines_do(steps: int, strength: float) -> None:
    from diffusers.pipelines.flux.pipeline_flux_img2img import FluxImg2ImgPipeline
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3_img2img import StableDiffusion3Img2ImgPipeline

    ddim = diffusers.DDIMScheduler(**SD, timestep_spacing="leading", clip_sample=False)
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    cases = [
        (StableDiffusionImg2ImgPipeline, ddim, make_times(VP, "leading", steps, samplers.get("ddim").grid, steps_offset=1)),
        (
            StableDiffusion3Img2ImgPipeline,
            flow,
            make_times(Path.from_scheduler_config(PUBLISHED["SD3"][1]), "uniform", steps, Grid(), shift=3.0),
        ),
        (FluxImg2ImgPipeline, flow, make_times(Path.from_scheduler_config(PUBLISHED["SD3"][1]), "uniform", steps, Grid(), shift=3.0)),
    ]
    for pipeline, reference, times in cases:
        reference.set_timesteps(steps)
        expected, _ = inspect.unwrap(pipeline.get_timesteps)(SimpleNamespace(scheduler=reference), steps, strength, "cpu")
        tail = times.tail(strength)
        assert list(tail.timesteps) == pytest.approx(expected.tolist(), abs=1e-3)
        assert tail.alphas == times.alphas[-len(tail) - 1 :]
        assert tail.sigmas == times.sigmas[-len(tail) - 1 :]
        assert len(tail.levels) == len(tail) + 1


def test_strength_keeps_whole_steps_of_samplers_with_points_midway() -> None:
    times = make_times(VP, "uniform", 10, samplers.get("dpm2").grid)
    tail = times.tail(0.3)
    assert (tail.steps, len(tail)) == (3, 5)
    assert tail.timesteps == times.timesteps[-5:]


def test_strength_at_and_over_its_limits() -> None:
    times = make_times(VP, "uniform", 20, Grid())
    assert times.tail(1.0).timesteps == times.timesteps
    nothing = times.tail(0.0)
    assert (len(nothing), nothing.alphas, nothing.sigmas) == (0, (1.0,), (0.0,))
    with pytest.raises(BadRequest, match=r"strength = 0\.01: of 20 steps none is left; give at least 0\.05"):
        times.tail(0.01)
    with pytest.raises(BadRequest, match=r"strength = 1\.5"):
        times.tail(1.5)
