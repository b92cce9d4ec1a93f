"""What a denoiser is trained to return, at which times, and how much each time counts; the samplers' mathematics read backwards.

Axes: B pictures, C channels, H and W latent cells, T training timesteps, L text tokens, D their width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from core.request import Frozen
from pipelines.parameterisation import SMALLEST_ALPHA_CUMPROD, Parameterisation, Path, noised, parameterisation
from training.randomness import Draws


class ObjectiveConfig(Frozen):
    """Settings of the denoising loss."""

    min_snr_gamma: float | None = Field(None, gt=0.0, description="cap on the signal-to-noise ratio as a weight; 5 is usual")
    noise_offset: float = Field(0.0, ge=0.0, le=1.0, description="deviation of a constant added to each channel's noise; 0.05 is usual")
    noisy_times: float = Field(0.0, ge=0.0, le=4.0, description="density of the drawn timesteps grows as this power of t; 0 is uniform")


@dataclass(frozen=True)
class Noised:
    """A batch on its way: noisy latents x_BCHW, integer timesteps t_B, the network's target_BCHW, and each picture's weight_B."""

    x_BCHW: Tensor
    t_B: Tensor
    target_BCHW: Tensor
    weight_B: Tensor


@dataclass(frozen=True)
class Objective:
    """The denoising loss of one path and parameterisation."""

    path: Path
    parameterisation: Parameterisation
    config: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    @staticmethod
    def from_scheduler_config(scheduler: Mapping[str, Any], config: ObjectiveConfig | None = None) -> "Objective":
        """The objective that a checkpoint's `scheduler_config.json` describes. Raises BadModel if it is of an unknown kind."""
        output = parameterisation(str(scheduler.get("prediction_type", "epsilon")))
        return Objective(Path.from_scheduler_config(scheduler), output, config or ObjectiveConfig())

    def noised(self, x0_BCHW: Tensor, draws: Draws) -> Noised:
        """Each picture at a timestep drawn anew, uniformly unless `noisy_times` says otherwise, with its own noise."""
        share_B = draws.uniform(name="timestep") ** (1 / (1 + self.config.noisy_times))
        t_B = (share_B * len(self.path)).long().clamp_(max=len(self.path) - 1)
        noise_BCHW = draws.normal(tuple(x0_BCHW.shape[1:]), name="noise")
        if self.config.noise_offset:
            noise_BCHW = noise_BCHW + self.config.noise_offset * draws.normal((x0_BCHW.shape[1], 1, 1), name="noise_offset")
        alpha_B, sigma_B = self.path.alpha_sigma(t_B)
        return Noised(
            x_BCHW=noised(x0_BCHW, noise_BCHW, alpha_B, sigma_B),
            t_B=t_B,
            target_BCHW=self.parameterisation.target(x0_BCHW, noise_BCHW, alpha_B, sigma_B),
            weight_B=self.weight(alpha_B, sigma_B),
        )

    def weight(self, alpha_B: Tensor, sigma_B: Tensor) -> Tensor:
        """Each time's weight on the squared error of the network's output, (B,).

        Min-SNR-γ weighs the error of x̂_0 by min(SNR, γ). An error of the output is k times as large as x̂_0's, k being the slope of the
        map from output to x̂_0, so the weight is min(SNR, γ)·k²: min(SNR, γ)/SNR for ε, min(SNR, γ)/(SNR + 1) for v on the VP path.

        Source: Hang et al., Efficient Diffusion Training via Min-SNR Weighting Strategy, 2023, section 3.4.
        """
        if self.config.min_snr_gamma is None:
            return torch.ones_like(alpha_B)
        alpha_B = alpha_B.clamp(min=SMALLEST_ALPHA_CUMPROD**0.5)  # at pure noise ε's slope has no end
        slope_B = self.parameterisation.denoised(torch.zeros_like(alpha_B), torch.ones_like(alpha_B), alpha_B, sigma_B)
        return (alpha_B / sigma_B).square().clamp(max=self.config.min_snr_gamma) * slope_B.square()

    def loss(self, noised: Noised, out_BCHW: Tensor) -> Tensor:
        """The weighted mean square of output − target, a scalar, in float32."""
        error_B = (out_BCHW.float() - noised.target_BCHW.float()).square().flatten(1).mean(1)
        return (noised.weight_B * error_B).mean()


def drop_captions(text_BLD: Tensor, empty_LD: Tensor, probability: float, draws: Draws) -> Tensor:
    """The text with each picture's caption replaced by the empty prompt's embedding with `probability`, drawn anew at every step.

    Source: Ho and Salimans, Classifier-Free Diffusion Guidance, 2022, algorithm 1.
    """
    dropped_B = draws.uniform(name="caption_dropout") < probability
    return torch.where(dropped_B[:, None, None], empty_LD.to(text_BLD), text_BLD)


def sample_moments(moments_B2CHW: Tensor, draws: Draws, scaling_factor: float, shift_factor: float = 0.0) -> Tensor:
    """Latents (B, C, H, W) drawn from an autoencoder's cached mean and log-variance, scaled as the denoiser expects them."""
    mean_BCHW, logvar_BCHW = moments_B2CHW.float().chunk(2, dim=1)
    # the limits are DiagonalGaussianDistribution's
    deviation_BCHW = torch.exp(0.5 * logvar_BCHW.clamp(-30.0, 20.0))
    noise_BCHW = draws.normal(tuple(mean_BCHW.shape[1:]), name="posterior")
    return (mean_BCHW + deviation_BCHW * noise_BCHW - shift_factor) * scaling_factor
