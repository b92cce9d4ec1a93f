"""Inversion: the noise that a picture is drawn from, and back to the same picture."""

import pytest
import torch
from torch import Tensor

from core.errors import BadRequest
from pipelines import samplers
from pipelines.schedules import Times, make_times
from tests.pipelines.gaussian import PATHS, Gaussian
from tests.pipelines.oracles import SHAPE, model_of

GAUSSIAN = Gaussian()


def picture(dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((2, *SHAPE[1:]), generator=generator, dtype=dtype) * GAUSSIAN.deviation + GAUSSIAN.mean


def times_of(sampler: str, kind: str, steps: int) -> Times:
    return make_times(PATHS[kind], "uniform", steps, samplers.get(sampler).grid).ending_on_first()


def round_trip(sampler: str, kind: str, x0: Tensor, iterations: int) -> float:
    """The largest error through noise and back over 50 steps, on the synthetic, nonlinear network."""
    times = times_of(sampler, kind, 50)
    model = model_of(times, "v")
    x = samplers.invert(model, x0, times, sampler=sampler, iterations=iterations)
    back = samplers.get(sampler).run(model, x, times, lambda i, denoised: None, lambda: x)
    return float((back - x0).abs().max())


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("sampler", ["euler", "ddim", "heun"])
def test_a_picture_comes_back(sampler: str, kind: str) -> None:
    plain, twice, five, twelve = (round_trip(sampler, kind, picture(), iterations) for iterations in (1, 2, 5, 12))
    assert plain < 5e-2
    assert twice < 1e-3
    assert five < 2e-6
    assert twelve < 1e-12  # rounding: float64 over 50 steps


@pytest.mark.parametrize("kind", PATHS)
def test_in_float32_a_picture_comes_back_to_rounding(kind: str) -> None:
    # 2^-23 of values up to 32 (VE starts at σ = 32), a few times over.
    assert round_trip("ddim", kind, picture(torch.float32), 8) < 5e-5


@pytest.mark.parametrize("kind", PATHS)
def test_the_noise_is_the_probability_flows_own(kind: str) -> None:
    """Against the closed form, with the error of the sampler's own order."""
    errors = {}
    for sampler, steps in (("euler", 40), ("euler", 80), ("heun", 40), ("heun", 80)):
        schedule = "uniform" if kind == "flow" else "karras"
        times = make_times(PATHS[kind], schedule, steps, samplers.get(sampler).grid).ending_on_first()
        standard = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)[None]
        x = samplers.invert(GAUSSIAN.model(times), GAUSSIAN.end(standard, times), times, sampler=sampler)
        errors[sampler, steps] = float((x - GAUSSIAN.start(standard, times)).abs().max()) / times.sigmas[0]
    assert 1.7 < errors["euler", 40] / errors["euler", 80] < 2.3
    assert 3.4 < errors["heun", 40] / errors["heun", 80] < 5.0
    assert errors["heun", 80] < 0.1 * errors["euler", 80]


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_a_batch_is_inverted_picture_by_picture(sampler: str) -> None:
    times = times_of(sampler, "vp", 8)
    model, x0 = model_of(times, "v"), picture()
    together = samplers.invert(model, x0, times, sampler=sampler)
    alone = torch.cat([samplers.invert(model, x0[place : place + 1], times, sampler=sampler) for place in range(2)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_calls_and_reports_are_counted() -> None:
    times, calls, told = times_of("heun", "vp", 6), [], []

    def model(x: Tensor, i: int) -> Tensor:
        calls.append(i)
        return 0.5 * x

    samplers.invert(model, picture(), times, lambda i, x: told.append(i), sampler="heun", iterations=3)
    assert len(calls) == (2 * 6 - 1) * 3
    assert told == [5, 4, 3, 2, 1, 0]


def test_nothing_waits_for_the_device() -> None:
    times = times_of("euler", "vp", 6)
    assert samplers.invert(lambda x, i: 0.5 * x, torch.empty(SHAPE, device="meta"), times).is_meta


def test_what_cannot_be_inverted_is_refused() -> None:
    times = times_of("euler", "vp", 6)
    with pytest.raises(BadRequest, match="sampler 'dpmpp_2m' cannot be inverted: use one of ddim, euler, heun"):
        samplers.invert(lambda x, i: x, picture(), times, sampler="dpmpp_2m")
    with pytest.raises(BadRequest, match="iterations = 0"):
        samplers.invert(lambda x, i: x, picture(), times, iterations=0)
    with pytest.raises(BadRequest, match=r"use times\.ending_on_first\(\)"):
        samplers.invert(lambda x, i: x, picture(), make_times(PATHS["vp"], "uniform", 6, samplers.get("euler").grid))
