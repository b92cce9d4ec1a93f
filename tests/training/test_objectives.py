"""Targets and weights against diffusers' scheduler and the published formulas; randomness per step and per sample."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.training_utils import compute_snr

from pipelines.parameterisation import Parameterisation, Path
from training.objectives import Objective, ObjectiveConfig, drop_captions, sample_moments
from training.randomness import Draws

SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
COUNTERS = range(40, 48)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noisy_latents_and_targets_are_diffusers(prediction_type: str) -> None:
    scheduler = DDPMScheduler(**SCHEDULER, prediction_type=prediction_type)
    objective = Objective.from_scheduler_config(dict(scheduler.config))
    x0 = torch.randn(8, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    found = objective.noised(x0, Draws(3, COUNTERS))
    noise = Draws(3, COUNTERS).normal((4, 6, 5), name="noise")
    target = noise if prediction_type == "epsilon" else scheduler.get_velocity(x0, noise, found.t_B)
    # both in fp32 with other orders of operations: some ulps of values up to 4
    torch.testing.assert_close(found.x_BCHW, scheduler.add_noise(x0, noise, found.t_B), rtol=0, atol=2e-6)
    torch.testing.assert_close(found.target_BCHW, target, rtol=0, atol=2e-6)
    assert objective.loss(found, found.target_BCHW) == 0
    assert float(objective.loss(found, found.target_BCHW + 2)) == pytest.approx(4, rel=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weights_are_the_published_ones(prediction_type: str) -> None:
    scheduler = DDPMScheduler(**SCHEDULER, prediction_type=prediction_type)
    objective = Objective.from_scheduler_config(dict(scheduler.config), ObjectiveConfig(min_snr_gamma=5.0))
    t = torch.tensor([0, 10, 200, 500, 999])
    snr = compute_snr(scheduler, t)
    published = snr.clamp(max=5) / (snr if prediction_type == "epsilon" else snr + 1)
    torch.testing.assert_close(objective.weight(*objective.path.alpha_sigma(t)), published, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("output", ["epsilon", "v", "x0", "flow"])
def test_weights_are_finite_at_both_ends(output: str) -> None:
    path = Path.flow() if output == "flow" else Path.from_scheduler_config({**SCHEDULER, "rescale_betas_zero_snr": True})
    objective = Objective(path, Parameterisation(output), ObjectiveConfig(min_snr_gamma=5.0))  # type: ignore[arg-type]
    weights = objective.weight(*path.alpha_sigma(torch.tensor([0, 1, 500, 998, 999])))
    assert torch.isfinite(weights).all()
    assert (weights >= 0).all()


def test_times_are_uniform_and_cover_the_table() -> None:
    objective = Objective.from_scheduler_config(SCHEDULER)
    t = objective.noised(torch.zeros(50_000, 1, 1, 1), Draws(0, range(50_000))).t_B
    counts = np.bincount(t.numpy(), minlength=1000)
    assert len(counts) == 1000
    # χ² with 999 degrees of freedom: mean 999, deviation 45; five deviations
    assert abs(((counts - 50) ** 2 / 50).sum() - 999) < 5 * 45


def test_noisy_times_are_drawn_more_often() -> None:
    scheduler = {**SCHEDULER, "prediction_type": "v_prediction"}
    objective = Objective.from_scheduler_config(scheduler, ObjectiveConfig(noisy_times=1.0))
    counters = range(4000)
    t = objective.noised(torch.zeros(len(counters), 1, 1, 1), Draws(0, counters)).t_B
    # a density that grows with t puts 3/4 of the times into the upper half; four deviations of a share of 4000 draws
    assert float((t >= 500).float().mean()) == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 4000) ** 0.5)


def test_noise_offset_has_its_deviation() -> None:
    objective = Objective.from_scheduler_config(SCHEDULER, ObjectiveConfig(noise_offset=0.5))
    plain = Objective.from_scheduler_config(SCHEDULER)
    x0, counters = torch.zeros(4000, 2, 2, 2), range(4000)
    difference = objective.noised(x0, Draws(0, counters)).target_BCHW - plain.noised(x0, Draws(0, counters)).target_BCHW
    assert torch.equal(difference[:, :, 0, 0], difference[:, :, 1, 1]) or torch.allclose(
        difference[:, :, 0, 0], difference[:, :, 1, 1], atol=1e-6
    )
    assert float(difference[:, :, 0, 0].std()) == pytest.approx(0.5, rel=0.05)  # 8000 numbers: deviation of the deviation 0.8%


def test_caption_dropout_is_drawn_at_every_step() -> None:
    text, empty = torch.ones(1000, 3, 2), torch.zeros(3, 2)
    steps = [drop_captions(text, empty, 0.3, Draws(7, range(first, first + 1000))) for first in (0, 1000)]
    dropped = [step[:, 0, 0] == 0 for step in steps]
    for rows, step in zip(dropped, steps, strict=True):
        assert 0.25 < rows.float().mean() < 0.35  # 1000 draws: deviation 0.0145
        assert torch.equal(step, torch.where(rows[:, None, None], empty, text))  # whole captions only
    assert not torch.equal(dropped[0], dropped[1])  # the same pictures in the next epoch lose other captions
    again = drop_captions(text, empty, 0.3, Draws(7, range(1000)))
    assert torch.equal(again, steps[0])
    assert torch.equal(drop_captions(text, empty, 0.0, Draws(7, range(1000))), text)
    assert torch.equal(drop_captions(text, empty, 1.0, Draws(7, range(1000))), torch.zeros_like(text))


def test_latents_are_drawn_from_the_cached_moments() -> None:
    moments = torch.randn(2000, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    latents = sample_moments(moments, Draws(0, range(2000)), scaling_factor=0.5)
    posterior = DiagonalGaussianDistribution(moments)
    z = (latents / 0.5 - posterior.mean) / posterior.std
    assert abs(float(z.mean())) < 0.02  # 36,000 numbers: deviation of the mean 0.005
    assert float(z.std()) == pytest.approx(1, abs=0.02)
    assert not torch.equal(latents, sample_moments(moments, Draws(0, range(2000, 4000)), scaling_factor=0.5))
