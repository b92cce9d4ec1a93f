"""Targets and weights against diffusers' scheduler and the published formulas; randomness per step and per sample."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_snr
from torch import Tensor

from core.errors import BadRequest
from pipelines.family import Text
from pipelines.parameterisation import Parameterisation, Path
from training.objectives import Objective, ObjectiveConfig, sample_moments
from training.randomness import Draws
from training.texts import Texts

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
    tokens, pooled = torch.ones(1000, 3, 2), torch.ones(1000, 4)
    texts = Texts({}, Text(torch.zeros(1, 3, 2), torch.zeros(1, 4)))

    def dropped(probability: float, first: int = 0) -> Tensor:
        batch = {"tokens_BLD": tokens, "pooled_BD": pooled}
        found = texts.dropped(batch, probability, Draws(7, range(first, first + 1000)))
        assert found.pooled_BD is not None
        assert torch.equal(found.pooled_BD.mean(1), found.tokens_BLD.mean((1, 2)))  # all encoders together, whole captions only
        return found.pooled_BD[:, 0] == 0

    steps = [dropped(0.3, first) for first in (0, 1000)]
    for rows in steps:
        assert 0.25 < rows.float().mean() < 0.35  # 1000 draws: deviation 0.0145
    assert not torch.equal(*steps)  # the same pictures in the next epoch lose other captions
    assert torch.equal(dropped(0.3), steps[0])
    assert not dropped(0.0).any()
    assert dropped(1.0).all()


def share(**config: Any) -> Tensor:
    """20,000 times in [0, 1] on the flow path."""
    objective = Objective(Path.flow(), Parameterisation("flow"), ObjectiveConfig(**config))
    return objective.times(Draws(0, range(20_000))) / 1000


@pytest.mark.parametrize("scheme", ["logit_normal", "mode"])
def test_densities_of_times_are_diffusers(scheme: str) -> None:
    wanted = compute_density_for_timestep_sampling(
        scheme, 20_000, logit_mean=0.3, logit_std=0.8, mode_scale=1.2, generator=torch.Generator().manual_seed(0)
    )
    found = share(density=scheme, logit_mean=0.3, logit_deviation=0.8, mode_scale=1.2)
    # two samples of 20,000 of one distribution: the largest distance of their distribution functions passes 0.02 once in 2,000 times
    grid = torch.linspace(0, 1, 101)
    distance = ((found[:, None] <= grid).float().mean(0) - (wanted[:, None] <= grid).float().mean(0)).abs().max()
    assert float(distance) < 0.02


def test_cosmap_has_the_published_density() -> None:
    found = share(density="cosmap")
    grid = torch.linspace(0, 1, 1001, dtype=torch.float64)
    density = 2 / (math.pi - 2 * math.pi * grid + 2 * math.pi * grid**2)  # Esser et al., 2024, section 3.1
    wanted = torch.cumulative_trapezoid(density, grid)[99::100]
    # 20,000 draws: the largest distance passes 0.02 once in a million times
    assert float(((found[:, None] <= grid[100::100]).double().mean(0) - wanted).abs().max()) < 0.02


def test_flow_times_are_shifted_towards_noise() -> None:
    plain, moved = share(), share(shift=3.0)
    torch.testing.assert_close(moved, 3 * plain / (1 + 2 * plain), rtol=1e-5, atol=1e-4)
    assert 0 < float(moved.min()) < float(moved.max()) <= 1
    own = Objective(Path.flow(), Parameterisation("flow"), ObjectiveConfig(), shift=3.0).times(Draws(0, range(20_000))) / 1000
    assert torch.equal(own, moved)


def test_large_errors_count_linearly_with_huber() -> None:
    objective = Objective.from_scheduler_config(SCHEDULER, ObjectiveConfig(huber=0.1))
    noised = objective.noised(torch.zeros(2, 4, 3, 3), Draws(0, range(2)))
    for error in (1e-3, 10.0):
        found = float(objective.loss(noised, noised.target_BCHW + error))
        assert found == pytest.approx(2 * 0.1 * ((error**2 + 0.01) ** 0.5 - 0.1), rel=1e-2)
    assert float(objective.loss(noised, noised.target_BCHW + 1e-2)) == pytest.approx(1e-4, rel=0.02)  # small errors as they were


def test_errors_count_where_the_mask_is_white() -> None:
    error = torch.zeros(2, 4, 6, 6)
    error[0, :, :, :3], error[1] = 2.0, 1.0  # the left half wrong, and everything a little
    mask = torch.zeros(2, 1, 6, 6)
    mask[..., 3:] = 1.0
    for unmasked, wanted in ((0.0, [0.0, 1.0]), (0.5, [4 * 0.5 / 1.5, 1.0]), (1.0, [2.0, 1.0])):
        objective = Objective.from_scheduler_config(SCHEDULER, ObjectiveConfig(unmasked=unmasked))
        noised = objective.noised(torch.zeros(2, 4, 6, 6), Draws(0, range(2)))
        found = objective.errors(noised, noised.target_BCHW + error, mask)
        torch.testing.assert_close(found, torch.tensor(wanted), rtol=0, atol=1e-6)
        torch.testing.assert_close(objective.loss(noised, noised.target_BCHW + error, mask), found.mean(), rtol=0, atol=1e-6)
    nothing = objective.errors(noised, noised.target_BCHW + error, torch.zeros(2, 1, 6, 6))
    assert torch.isfinite(nothing).all()


def test_the_multi_scale_loss_is_simple_diffusion_s() -> None:
    objective = Objective.from_scheduler_config(SCHEDULER, ObjectiveConfig(multi_scale=8))
    noised = objective.noised(torch.zeros(3, 4, 32, 32), Draws(0, range(3)))
    error = torch.randn(3, 4, 32, 32, generator=torch.Generator().manual_seed(4))
    wanted, weights = torch.zeros(3), 0.0
    for side in (8, 16, 32):  # the sum of (1/s)·L over resolutions s, brought to weights of sum 1
        cell = 32 // side
        coarse = error.reshape(3, 4, side, cell, side, cell).mean((3, 5))
        wanted, weights = wanted + coarse.square().mean((1, 2, 3)) / side, weights + 1 / side
    found = objective.errors(noised, noised.target_BCHW + error)
    torch.testing.assert_close(found, wanted / weights, rtol=1e-5, atol=1e-7)
    # an error of one sign everywhere is as large at every scale; a checkerboard's is only seen at the finest
    assert float(objective.loss(noised, noised.target_BCHW + 2)) == pytest.approx(4, rel=1e-5)
    checks = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1.0
    assert float(objective.loss(noised, noised.target_BCHW + checks)) == pytest.approx(1 / 7, rel=1e-4)
    wide = objective.noised(torch.zeros(1, 4, 16, 64), Draws(0, range(1)))
    assert float(objective.loss(wide, wide.target_BCHW + 2)) == pytest.approx(4, rel=1e-5)


def test_no_scale_sees_what_a_mask_hides() -> None:
    objective = Objective.from_scheduler_config(SCHEDULER, ObjectiveConfig(multi_scale=4))
    noised = objective.noised(torch.zeros(1, 4, 16, 16), Draws(0, [0]))
    out = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :5] = 1  # its edge falls inside the coarser cells
    objective.loss(noised, out, mask).backward()  # type: ignore[no-untyped-call]
    assert out.grad is not None
    assert torch.equal(out.grad != 0, (mask > 0).expand_as(out))
    everywhere = objective.errors(noised, out, torch.ones_like(mask))
    torch.testing.assert_close(everywhere, objective.errors(noised, out), rtol=1e-5, atol=0)


def test_zero_terminal_snr_ends_in_pure_noise_and_needs_another_output_than_epsilon() -> None:
    v = {**SCHEDULER, "prediction_type": "v_prediction"}
    objective = Objective.from_scheduler_config(v, ObjectiveConfig(zero_terminal_snr=True))
    wanted = Path.from_scheduler_config({**v, "rescale_betas_zero_snr": True})
    torch.testing.assert_close(objective.path.alphas_T, wanted.alphas_T, rtol=0, atol=1e-6)
    assert float(objective.path.alphas_T[-1]) == 0
    for config, message in (
        ({"zero_terminal_snr": True}, "v-prediction"),
        ({"shift": 3.0}, "vp path"),
        ({"density": "mode", "noisy_times": 1.0}, "bends"),
    ):
        with pytest.raises(BadRequest, match=message):
            Objective.from_scheduler_config(SCHEDULER, ObjectiveConfig.model_validate(config))


def test_latents_are_drawn_from_the_cached_moments() -> None:
    moments = torch.randn(2000, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    latents = sample_moments(moments, Draws(0, range(2000)), scale=0.5)
    posterior = DiagonalGaussianDistribution(moments)
    z = (latents / 0.5 - posterior.mean) / posterior.std
    assert abs(float(z.mean())) < 0.02  # 36,000 numbers: deviation of the mean 0.005
    assert float(z.std()) == pytest.approx(1, abs=0.02)
    assert not torch.equal(latents, sample_moments(moments, Draws(0, range(2000, 4000)), scale=0.5))
