"""Samplers and schedules against diffusers' schedulers on a synthetic network, and against the closed form of Gaussian data."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from core.errors import BadRequest
from pipelines.parameterisation import Output, Parameterisation, Path
from pipelines.samplers import SAMPLERS, Sampler, ddim, euler_ancestral, get
from pipelines.schedules import SCHEDULES, Grid, Times, make_times

# diffusers' schedulers call numpy.array on a tensor; only the oracle does, never our loop.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
PREDICTION: dict[Output, str] = {"epsilon": "epsilon", "v": "v_prediction"}
SHAPE = (1, 4, 8, 8)


def network(x: Tensor, t: Tensor) -> Tensor:
    """A smooth nonlinear stand-in that depends on x and t and is bounded as real networks are."""
    return torch.tanh(0.7 * x + 0.3 * torch.roll(x, 1, dims=-1)) + 0.2 * torch.sin(t / 300.0)


def ours(sampler: str, schedule: str, output: Output, config: dict[str, Any], steps: int) -> Tensor:
    path = Path.from_scheduler_config(config)
    end_on_first = not config.get("set_alpha_to_one", True)
    spec = get(sampler)
    times = make_times(path, schedule, steps, spec.grid, steps_offset=config.get("steps_offset", 0), end_on_first=end_on_first)
    generator = torch.Generator().manual_seed(3)

    def model(x: Tensor, i: int) -> Tensor:
        out = network(x, torch.tensor(times.timesteps[i]))
        return Parameterisation(output).denoised(x, out, times.alphas[i], times.sigmas[i])

    def noise() -> Tensor:
        return torch.randn(SHAPE, generator=generator)

    return spec.run(model, noise() * times.initial, times, lambda i, denoised: None, noise)


def theirs(scheduler: Any, steps: int) -> Tensor:
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma
    extra = {"generator": generator} if "Ancestral" in type(scheduler).__name__ else {}
    for t in scheduler.timesteps:
        out = network(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(out, t, x, **extra).prev_sample
    assert isinstance(x, Tensor)
    return x


def scheduler(sampler: str, schedule: str, output: Output, config: dict[str, Any]) -> Any:
    import diffusers

    name = {
        "euler": "EulerDiscreteScheduler",
        "euler_ancestral": "EulerAncestralDiscreteScheduler",
        "heun": "HeunDiscreteScheduler",
        "ddim": "DDIMScheduler",
        "dpmpp_2m": "DPMSolverMultistepScheduler",
    }[sampler]
    options: dict[str, Any] = dict(config, prediction_type=PREDICTION[output])
    if schedule in ("karras", "exponential"):
        options[f"use_{schedule}_sigmas"] = True
    else:
        options["timestep_spacing"] = {"uniform": "linspace"}.get(schedule, schedule)
    if sampler == "ddim":
        options["clip_sample"] = False
    else:
        options.pop("set_alpha_to_one", None)
    return getattr(diffusers, name)(**options)


CASES = [
    *((sampler, schedule) for sampler in ("euler", "heun") for schedule in SCHEDULES),
    *(("dpmpp_2m", schedule) for schedule in SCHEDULES if schedule != "exponential"),  # cut to whole timesteps there: see below
    *(("euler_ancestral", schedule) for schedule in ("uniform", "leading", "trailing")),
    # DDIM over there has no curves, and with linspace it steps to t − T // N instead of the next timestep of its own list.
    *(("ddim", schedule) for schedule in ("leading", "trailing")),
]


@pytest.mark.parametrize("output", PREDICTION)
@pytest.mark.parametrize(("sampler", "schedule"), CASES)
def test_samplers_are_diffusers_schedulers(sampler: str, schedule: str, output: Output) -> None:
    # Their σ are float32 and they scale x by up to 14.6, so rounding of some 1e-6 a step on values of a few units: 1e-4 over 20 steps.
    expected = theirs(scheduler(sampler, schedule, output, SD), 20)
    torch.testing.assert_close(ours(sampler, schedule, output, SD, 20), expected, rtol=0, atol=1e-4)


def test_exponential_dpmpp_2m_has_diffusers_levels_and_the_nearest_timesteps() -> None:
    reference = scheduler("dpmpp_2m", "exponential", "epsilon", SD)
    reference.set_timesteps(20)
    times = make_times(Path.from_scheduler_config(SD), "exponential", 20, get("dpmpp_2m").grid)
    assert list(times.levels) == pytest.approx(reference.sigmas.tolist(), rel=1e-5)
    # Theirs are truncated, so that the highest level is told as 998; ours are rounded.
    assert times.timesteps[0] == 999.0
    assert all(0 <= t - cut <= 1 for t, cut in zip(times.timesteps, reference.timesteps.tolist(), strict=True))


@pytest.mark.parametrize("steps", [1, 2, 5, 14, 15, 40])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "euler"])
def test_any_number_of_steps(sampler: str, steps: int) -> None:
    schedule = "leading" if sampler == "ddim" else "trailing"
    expected = theirs(scheduler(sampler, schedule, "v", SD), steps)
    torch.testing.assert_close(ours(sampler, schedule, "v", SD, steps), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("schedule", ["leading", "trailing"])
def test_ddim_ends_on_the_first_table_entry_where_the_checkpoint_says_so(schedule: str) -> None:
    config = dict(SD, set_alpha_to_one=False)
    expected = theirs(scheduler("ddim", schedule, "epsilon", config), 20)
    torch.testing.assert_close(ours("ddim", schedule, "epsilon", config, 20), expected, rtol=0, atol=1e-4)
    to_the_end = ours("ddim", schedule, "epsilon", SD, 20)
    assert (to_the_end - expected).abs().max() > 1e-3


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "ddim", "dpmpp_2m"])
def test_zero_terminal_snr(sampler: str) -> None:
    config = dict(SD, rescale_betas_zero_snr=True)
    expected = theirs(scheduler(sampler, "trailing", "v", config), 20)
    got = ours(sampler, "trailing", "v", config, 20)
    # Their first σ is 4096 in float32, and the ancestral step takes differences of its square: 5e-4.
    torch.testing.assert_close(got, expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_zero_terminal_snr_is_finite_everywhere(sampler: str, schedule: str) -> None:
    assert ours(sampler, schedule, "v", dict(SD, rescale_betas_zero_snr=True), 12).isfinite().all()


def gaussian(path: Path, spec: Sampler, steps: int, schedule: str, deviation: float = 0.5) -> tuple[Tensor, Tensor]:
    """The sampler's end and the exact end of the probability flow for data ~ N(0, deviation²), in float64.

    The best x̂_0 is x·α·s²/(α²s² + σ²), and along the flow x stays proportional to √(α²s² + σ²).
    """
    times = make_times(path, schedule, steps, spec.grid)
    x = torch.linspace(-1.0, 1.0, 9, dtype=torch.float64) * math.hypot(times.alphas[0] * deviation, times.sigmas[0])
    exact = x * deviation / math.hypot(times.alphas[0] * deviation, times.sigmas[0])

    def model(x: Tensor, i: int) -> Tensor:
        alpha, sigma = times.alphas[i], times.sigmas[i]
        return x * (alpha * deviation**2 / ((alpha * deviation) ** 2 + sigma**2))

    return spec.run(model, x, times, lambda i, denoised: None, lambda: torch.zeros_like(x)), exact


@pytest.mark.parametrize(
    ("kind", "path"),
    [("vp", Path.from_scheduler_config(SD)), ("ve", Path.ve(torch.logspace(-2, 1.5, 1000))), ("flow", Path.flow(1000))],
    ids=["vp", "ve", "flow"],
)
@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_errors_fall_at_the_published_order_on_every_path(sampler: str, order: int, kind: str, path: Path) -> None:
    schedule = "uniform" if kind == "flow" else "karras"
    errors = []
    for steps in (25, 100):
        got, exact = gaussian(path, get(sampler), steps, schedule)
        errors.append(float((got - exact).abs().max()))
    # Four times the steps: a factor 4 for first order, 16 for second; the last, first-order step and rounded timesteps take some of it.
    assert errors[1] < errors[0] / (2.5 if order == 1 else 4.0)
    assert errors[1] < (0.03 if order == 1 else 0.01)


def test_ancestral_euler_is_ddim_with_eta_one() -> None:
    """On VP the published σ_up of k-diffusion and DDIM's σ(η = 1), eq. 16, are the same number."""
    times = make_times(Path.from_scheduler_config(SD), "uniform", 10, Grid())
    for i in range(10):
        alpha, sigma, alpha_s, sigma_s = times.alphas[i], times.sigmas[i], times.alphas[i + 1], times.sigmas[i + 1]
        paper = math.sqrt(sigma_s**2 / sigma**2 * (1 - alpha**2 / alpha_s**2))
        level, level_s = sigma / alpha, sigma_s / alpha_s
        k_diffusion = alpha_s * math.sqrt(level_s**2 * (level**2 - level_s**2) / level**2)
        assert k_diffusion == pytest.approx(paper, abs=1e-12)
    draws: list[int] = []

    def run(algorithm: Callable[..., Tensor], **options: float) -> Tensor:
        generator = torch.Generator().manual_seed(0)

        def noise() -> Tensor:
            draws.append(1)
            return torch.randn(SHAPE, generator=generator)

        return algorithm(lambda x, i: 0.1 * x, noise(), times, lambda i, denoised: None, noise, **options)

    assert torch.equal(run(euler_ancestral), run(ddim, eta=1.0))
    assert len(draws) == 2 * 11


def test_ddim_with_eta_is_diffusers() -> None:
    import diffusers

    reference = diffusers.DDIMScheduler(**SD, clip_sample=False, timestep_spacing="leading")
    reference.set_timesteps(10)
    spec = get("ddim")
    times = make_times(Path.from_scheduler_config(SD), "leading", 10, spec.grid, steps_offset=1)
    first, second = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    x = torch.randn(SHAPE, generator=first)
    for t in reference.timesteps:
        x = reference.step(network(x, t), t, x, eta=0.6, generator=first).prev_sample

    def model(x: Tensor, i: int) -> Tensor:
        out = network(x, torch.tensor(times.timesteps[i]))
        return Parameterisation("epsilon").denoised(x, out, times.alphas[i], times.sigmas[i])

    def noise() -> Tensor:
        return torch.randn(SHAPE, generator=second)

    got = ddim(model, noise(), times, lambda i, denoised: None, noise, eta=0.6)
    torch.testing.assert_close(got, x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_step_is_reported_once_and_an_exception_stops_the_loop(sampler: str) -> None:
    spec = get(sampler)
    times = make_times(Path.from_scheduler_config(SD), "uniform", 6, spec.grid)
    seen: list[int] = []
    calls: list[int] = []

    def model(x: Tensor, i: int) -> Tensor:
        calls.append(i)
        return 0.5 * x

    def on_step(i: int, denoised: Tensor) -> None:
        seen.append(i)
        if len(seen) == stop:
            raise KeyboardInterrupt

    stop = 100
    spec.run(model, torch.ones(SHAPE), times, on_step, lambda: torch.zeros(SHAPE))
    assert seen == list(range(6))
    assert len(calls) == (11 if sampler == "heun" else 6)
    seen, stop = [], 3
    with pytest.raises(KeyboardInterrupt):
        spec.run(model, torch.ones(SHAPE), times, on_step, lambda: torch.zeros(SHAPE))
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_times_fall_from_noise_to_picture(sampler: str, schedule: str) -> None:
    times: Times = make_times(Path.from_scheduler_config(SD), schedule, 30, get(sampler).grid, steps_offset=1)
    assert len(times) == 30
    assert len(times.alphas) == len(times.sigmas) == len(times.levels) == 31
    assert (times.alphas[-1], times.sigmas[-1], times.levels[-1]) == (1.0, 0.0, 0.0)
    assert all(high > low for high, low in zip(times.levels, times.levels[1:], strict=False))
    assert all(0 <= t <= 999 for t in times.timesteps)


def test_one_step_starts_from_noise() -> None:
    for sampler in SAMPLERS.values():
        times = make_times(Path.from_scheduler_config(SD), "uniform", 1, sampler.grid)
        assert times.timesteps == (999.0,)


def test_bad_names_and_counts_are_refused() -> None:
    path = Path.from_scheduler_config(SD)
    with pytest.raises(BadRequest, match=r"unknown sampler 'euller': did you mean 'euler'\?"):
        get("euller")
    with pytest.raises(BadRequest, match=r"unknown schedule 'kerras': did you mean 'karras'\?"):
        make_times(path, "kerras", 20, Grid())
    with pytest.raises(BadRequest, match=r"steps = 1001: .* at most 1000"):
        make_times(path, "uniform", 1001, Grid())
    with pytest.raises(BadRequest, match=r"steps = 1000: .* at most 999"):
        make_times(path, "uniform", 1000, get("dpmpp_2m").grid)
    with pytest.raises(BadRequest, match=r"'leading' leaves the table"):
        make_times(path, "leading", 1000, Grid(), steps_offset=1)
