"""Samplers on Gaussian data, whose exact solution is known: the order of convergence, and the distribution of stochastic ones."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines import samplers
from pipelines.samplers import Model, Run
from pipelines.samplers.consistency import tcd
from pipelines.schedules import Times, make_times
from tests.pipelines.gaussian import PATHS, Gaussian

GAUSSIAN = Gaussian()
STANDARD = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)[None]
DETERMINISTIC = [name for name, sampler in samplers.SAMPLERS.items() if not sampler.stochastic]
STOCHASTIC = [name for name, sampler in samplers.SAMPLERS.items() if sampler.stochastic and name not in ("lcm", "tcd")]
COUNTS = (40, 80, 160)


def times_of(name: str, kind: str, steps: int) -> Times:
    """Ending on the least noise, for the first-order step from there to the picture would hide the order."""
    schedule = "uniform" if kind == "flow" else "karras"
    return make_times(PATHS[kind], schedule, steps, samplers.get(name).grid).ending_on_first()


def order(errors: list[float]) -> float:
    """The slope of log error over log steps, by least squares."""
    steps = torch.tensor(COUNTS, dtype=torch.float64).log()
    logs = torch.tensor(errors, dtype=torch.float64).log()
    return -float(((steps - steps.mean()) * (logs - logs.mean())).sum() / (steps - steps.mean()).square().sum())


def assert_order(name: str, kind: str, errors: list[float]) -> None:
    """On VP and VE within −0.15 … +0.25 of the published order; on the flow path, where λ is infinite at the start and h shrinks
    slowly there, not more than 0.6 below it."""
    published, measured = samplers.get(name).order, order(errors)
    if kind == "flow":
        assert measured > published - 0.6
    else:
        assert published - 0.15 < measured < published + 0.25


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_errors_fall_at_the_published_order(name: str, kind: str) -> None:
    errors = []
    for steps in COUNTS:
        times = times_of(name, kind, steps)
        model, start = GAUSSIAN.model(times), GAUSSIAN.start(STANDARD, times)
        got = samplers.get(name).run(model, start, times, lambda i, denoised: None, lambda: torch.zeros_like(STANDARD))
        errors.append(float((got - GAUSSIAN.end(STANDARD, times)).abs().max()))
    assert_order(name, kind, errors)
    assert errors[-1] < (0.02 if samplers.get(name).order == 1 else 0.002)


def moments(run: Run, model: Model, times: Times, **options: Any) -> tuple[float, float]:
    """Mean and deviation at the end, exactly: everything is linear, so each draw of noise is followed on its own, in a column."""
    columns = 2 * len(times) + 2
    x = torch.zeros(1, columns, dtype=torch.float64)
    x[0, 1] = 1.0  # column 0 follows the mean, column 1 the first noise
    draws = iter(torch.eye(columns, dtype=torch.float64)[2:, None])
    out = run(model, GAUSSIAN.start(x, times), times, lambda i, denoised: None, lambda: next(draws), **options)
    return float(out[0, 0]), float((out[0] - out[0, 0]).square().sum().sqrt())


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_distribution_becomes_that_of_the_data(name: str, kind: str) -> None:
    errors = []
    for steps in COUNTS:
        times = times_of(name, kind, steps)
        mean, deviation = moments(samplers.get(name).run, GAUSSIAN.model(times), times)
        # The mean follows the path exactly, up to rounding in float64.
        assert mean == pytest.approx(times.alphas[-1] * GAUSSIAN.mean, abs=1e-12)
        errors.append(abs(deviation / GAUSSIAN.width(times.alphas[-1], times.sigmas[-1]) - 1.0))
    assert_order(name, kind, errors)
    assert errors[-1] < (0.03 if samplers.get(name).order == 1 else 0.01)


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize(("name", "options"), [("lcm", {}), ("tcd", {"gamma": 1.0})])
def test_a_perfect_consistency_model_gives_the_data_in_any_number_of_steps(
    name: str, options: dict[str, float], steps: int, kind: str
) -> None:
    """Its x̂_0 is the end of the probability flow through x. On VP and VE LCM adds c_skip·x, below 1e-5 at these timesteps."""
    times = make_times(PATHS[kind], "trailing", steps, samplers.get(name).grid)

    def model(x: Tensor, i: int) -> Tensor:
        alpha, sigma = times.alphas[i], times.sigmas[i]
        return GAUSSIAN.mean + (x - alpha * GAUSSIAN.mean) * (GAUSSIAN.deviation / GAUSSIAN.width(alpha, sigma))

    mean, deviation = moments(tcd if name == "tcd" else samplers.get(name).run, model, times, **options)
    assert mean == pytest.approx(GAUSSIAN.mean, abs=1e-3)
    # TCD's lower point is the table's first, not the picture, and so keeps a little of the noise before: 2 % here.
    assert deviation == pytest.approx(GAUSSIAN.deviation, rel=2e-2)


@pytest.mark.parametrize("kind", PATHS)
def test_tcd_without_noise_is_ddim(kind: str) -> None:
    times = make_times(PATHS[kind], "trailing", 8, samplers.get("tcd").grid)
    model, start = GAUSSIAN.model(times), GAUSSIAN.start(STANDARD, times)
    got = tcd(model, start, times, lambda i, denoised: None, lambda: torch.full_like(start, math.nan), gamma=0.0)
    expected = samplers.get("ddim").run(model, start, times, lambda i, denoised: None, lambda: torch.full_like(start, math.nan))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
