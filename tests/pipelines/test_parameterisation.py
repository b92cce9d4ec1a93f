"""The one mathematics: closed forms, round trips, and diffusers' noise tables."""

import math
from typing import Any

import pytest
import torch

from core.errors import BadModel
from pipelines.parameterisation import Output, Parameterisation, Path, alphas_cumprod, noised, parameterisation

OUTPUTS: tuple[Output, ...] = ("epsilon", "v", "x0", "flow")
PATHS = {
    "vp": Path.vp(torch.linspace(0.999, 0.005, 1000)),
    "ve": Path.ve(torch.linspace(0.01, 80.0, 1000)),
    "flow": Path.flow(1000),
}
SCHEDULER_CONFIGS: list[dict[str, Any]] = [
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": [0.01, 0.02, 0.03, 0.04], "num_train_timesteps": 4},
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
]


def pair(count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, count, 4, 8, 8, generator=generator, dtype=torch.float64)
    return x0, noise


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_network_that_returns_the_target_gives_back_picture_and_noise(path: Path, output: Output) -> None:
    x0, noise = pair()
    t = torch.tensor([1, 500, 990])
    alpha, sigma = (value.double() for value in path.alpha_sigma(t))
    x, target = noised(x0, noise, alpha, sigma), Parameterisation(output).target(x0, noise, alpha, sigma)
    # Float64 throughout; the worst factor is α/σ = 1000 (flow, t = 1), so 1e-10 is a thousandfold margin.
    torch.testing.assert_close(Parameterisation(output).denoised(x, target, alpha, sigma), x0, rtol=0, atol=1e-10)
    torch.testing.assert_close(Parameterisation(output).noise(x, target, alpha, sigma), noise, rtol=0, atol=1e-10)


@pytest.mark.parametrize("output", OUTPUTS)
def test_floats_and_tensors_per_picture_agree(output: Output) -> None:
    x, out = pair()
    alphas, sigmas = torch.tensor([0.9, 0.5, 0.2]).double(), torch.tensor([0.4, 0.8, 0.95]).double()
    together = Parameterisation(output).denoised(x, out, alphas, sigmas)
    for i in range(3):
        alone = Parameterisation(output).denoised(x[i : i + 1], out[i : i + 1], float(alphas[i]), float(sigmas[i]))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-12)


def test_targets_are_the_published_ones() -> None:
    x0, noise = pair()
    alpha, sigma = math.cos(0.7), math.sin(0.7)
    torch.testing.assert_close(Parameterisation("v").target(x0, noise, alpha, sigma), alpha * noise - sigma * x0)
    torch.testing.assert_close(Parameterisation("flow").target(x0, noise, 0.3, 0.7), noise - x0)
    assert Parameterisation("epsilon").target(x0, noise, alpha, sigma) is noise
    assert Parameterisation("x0").target(x0, noise, alpha, sigma) is x0


@pytest.mark.parametrize("config", SCHEDULER_CONFIGS, ids=lambda config: "-".join(map(str, config.values()))[:40])
def test_the_table_is_diffusers_table(config: dict[str, Any]) -> None:
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(**config).alphas_cumprod
    # Rescaled tables go through betas and back in float32 there: absolute rounding of a few 1e-7.
    torch.testing.assert_close(alphas_cumprod(config), theirs, rtol=0, atol=1e-6 if "rescale_betas_zero_snr" in config else 0)


def test_vp_keeps_variance_and_interpolates_the_level() -> None:
    path = PATHS["vp"]
    alpha, sigma = path.alpha_sigma(torch.arange(1000))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(1000))
    low, high, middle = (path.alpha_sigma(t) for t in (400.0, 401.0, 400.5))
    assert middle[1] / middle[0] == pytest.approx((low[1] / low[0] + high[1] / high[0]) / 2, rel=1e-12)
    assert middle[0] ** 2 + middle[1] ** 2 == pytest.approx(1.0, rel=1e-12)
    as_tensor = path.alpha_sigma(torch.tensor([400.0, 400.5]))
    assert as_tensor[0].tolist() == pytest.approx([low[0], middle[0]], rel=1e-6)


def test_a_table_that_ends_in_pure_noise_stays_finite() -> None:
    path = Path.from_scheduler_config(SCHEDULER_CONFIGS[-1])
    assert path.alpha_sigma(999.0) == (0.0, 1.0)
    assert path.levels()[-1] == pytest.approx(4096.0, rel=1e-6)
    x, out = pair()
    denoised = Parameterisation("v").denoised(x, out, 0.0, 1.0)
    torch.testing.assert_close(denoised, -out)
    torch.testing.assert_close(Parameterisation("v").noise(x, out, 0.0, 1.0), x)


def test_flow_is_told_a_thousand_sigma() -> None:
    assert PATHS["flow"].alpha_sigma(250.0) == (0.75, 0.25)
    assert PATHS["flow"].alpha_sigma(1000.0) == (0.0, 1.0)
    assert [float(value) for value in PATHS["flow"].alpha_sigma(torch.tensor(1000))] == [0.0, 1.0]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(BadModel, match=r"prediction_type 'sigma' is unknown"):
        parameterisation("sigma")
    with pytest.raises(BadModel, match=r"beta_schedule 'sigmoid' is unknown"):
        alphas_cumprod({"beta_schedule": "sigmoid"})
