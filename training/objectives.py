"""What a denoiser is trained to return, at which times, and how much each time counts; the samplers' mathematics read backwards.

Axes: B pictures, C channels, H and W latent cells, T training timesteps, L text tokens, D their width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from core.errors import BadRequest
from pipelines.parameterisation import SMALLEST_ALPHA_CUMPROD, Parameterisation, Path, noised, parameterisation, zero_terminal_snr
from training.config import ObjectiveConfig as ObjectiveConfig
from training.randomness import Draws


@dataclass(frozen=True)
class Noised:
    """A batch on its way: noisy latents x_BCHW, timesteps t_B (whole numbers but on the flow path), target_BCHW, and weight_B."""

    x_BCHW: Tensor
    t_B: Tensor
    target_BCHW: Tensor
    weight_B: Tensor


@dataclass(frozen=True)
class Objective:
    """The denoising loss of one path and parameterisation. shift: the checkpoint's own, of flow times."""

    path: Path
    parameterisation: Parameterisation
    config: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    shift: float = 1.0

    @staticmethod
    def from_scheduler_config(scheduler: Mapping[str, Any], config: ObjectiveConfig | None = None) -> "Objective":
        """The objective that a checkpoint's `scheduler_config.json` describes. Raises BadModel if it is of an unknown kind."""
        output = parameterisation(str(scheduler.get("prediction_type", "epsilon")))
        return Objective(Path.from_scheduler_config(scheduler), output, config or ObjectiveConfig())

    def __post_init__(self) -> None:
        """Raises BadRequest if settings of the config do not go with one another or with the path."""
        config = self.config
        if config.noisy_times and config.density != "uniform":
            raise BadRequest(
                f"objective.noisy_times {config.noisy_times} bends the uniform density, but objective.density is {config.density}"
            )
        if config.shift is not None and self.path.kind != "flow":
            raise BadRequest(f"objective.shift {config.shift} moves the times of flow models; this base is on the {self.path.kind} path")
        if config.zero_terminal_snr:
            if self.path.kind != "vp" or self.parameterisation.output == "epsilon":
                raise BadRequest(
                    f"objective.zero_terminal_snr: a base that predicts {self.parameterisation.output} learns nothing from pure noise; "
                    "use a v-prediction base"
                )
            object.__setattr__(self, "path", Path.vp(zero_terminal_snr(self.path.alphas_T.square())))

    def noised(self, x0_BCHW: Tensor, draws: Draws) -> Noised:
        """Each picture at a time drawn anew, with its own noise."""
        t_B = self.times(draws)
        noise_BCHW = draws.normal(tuple(x0_BCHW.shape[1:]), name="noise")
        if self.config.noise_offset:
            noise_BCHW = noise_BCHW + self.config.noise_offset * draws.normal((x0_BCHW.shape[1], 1, 1), name="noise_offset")
        return self.at(x0_BCHW, noise_BCHW, t_B)

    def at(self, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Noised:
        """Each picture at a given time with given noise."""
        alpha_B, sigma_B = self.path.alpha_sigma(t_B)
        return Noised(
            x_BCHW=noised(x0_BCHW, noise_BCHW, alpha_B, sigma_B),
            t_B=t_B,
            target_BCHW=self.parameterisation.target(x0_BCHW, noise_BCHW, alpha_B, sigma_B),
            weight_B=self.weight(alpha_B, sigma_B),
        )

    def times(self, draws: Draws) -> Tensor:
        """Timesteps (B,) with the configured density: entries of the table, or any number in (0, T] on the flow path, shifted."""
        share_B = draws.uniform(name="timestep")
        match self.config.density:
            case "uniform":
                share_B = share_B ** (1 / (1 + self.config.noisy_times))
            case "logit_normal":
                logit_B = torch.special.ndtri(share_B.double().clamp(1e-7, 1 - 1e-7)).float()
                share_B = torch.sigmoid(self.config.logit_mean + self.config.logit_deviation * logit_B)
            case "mode":
                bend_B = torch.cos(math.pi / 2 * share_B).square() - 1 + share_B
                share_B = 1 - share_B - self.config.mode_scale * bend_B
            case "cosmap":
                share_B = 1 - 1 / (torch.tan(math.pi / 2 * share_B) + 1)
        return self.spaced(share_B)

    def spaced(self, share_B: Tensor) -> Tensor:
        """Timesteps at these shares (0 … 1) of the way to noise; on the flow path before its shift."""
        if self.path.kind == "flow":
            factor = self.config.shift or self.shift
            shifted_B = factor * share_B / (1 + (factor - 1) * share_B)
            return shifted_B.clamp(min=1e-5) * len(self.path)
        return (share_B * len(self.path)).long().clamp_(min=0, max=len(self.path) - 1)

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

    def loss(self, noised: Noised, out_BCHW: Tensor, mask_B1HW: Tensor | None = None) -> Tensor:
        """The weighted mean of the squared (or Huber) errors of the network's output, a scalar, in float32."""
        return (noised.weight_B * self.errors(noised, out_BCHW, mask_B1HW)).mean()

    def errors(self, noised: Noised, out_BCHW: Tensor, mask_B1HW: Tensor | None = None) -> Tensor:
        """Each picture's mean error (B,), without the weight of its time.

        mask_B1HW: 0 to 1, where errors count; where it is 0 they count `config.unmasked` times as much. With `config.multi_scale` it is the
        mean over the latents' own resolution and every half of it, a resolution s × s weighed by 1 / s.

        Source: Hoogeboom et al., Simple diffusion, 2023, section 3.3, for several scales.
        """
        error_BCHW = out_BCHW.float() - noised.target_BCHW.float()
        weight_B1HW = None if mask_B1HW is None else self.config.unmasked + (1 - self.config.unmasked) * mask_B1HW.float()
        total_B, weights = self._mean(error_BCHW, weight_B1HW), 1.0
        smallest = self.config.multi_scale
        while smallest and min(error_BCHW.shape[-2:]) >= 2 * smallest:
            if weight_B1HW is None:
                error_BCHW = F.avg_pool2d(error_BCHW, 2)
            else:  # what a mask hides does not count beside its edge either
                coarse_B1HW = F.avg_pool2d(weight_B1HW, 2)
                error_BCHW = F.avg_pool2d(error_BCHW * weight_B1HW, 2) / coarse_B1HW.clamp(min=1e-6)
                weight_B1HW = coarse_B1HW
            scale = noised.target_BCHW.shape[-1] / error_BCHW.shape[-1]
            total_B, weights = total_B + scale * self._mean(error_BCHW, weight_B1HW), weights + scale
        return total_B / weights

    def _mean(self, error_BCHW: Tensor, weight_B1HW: Tensor | None) -> Tensor:
        """The mean (B,) of e², or of c·2·(√(e² + c²) − c), which is e² for small e and grows as 2·c·|e|.

        Source of the second: Khrapov et al., Improving Diffusion Models's Data-Corruption Resistance, 2024.
        """
        square_BCHW = error_BCHW.square()
        if c := self.config.huber:
            square_BCHW = 2 * c * ((square_BCHW + c * c).sqrt() - c)
        if weight_B1HW is None:
            return square_BCHW.flatten(1).mean(1)
        counted_B = weight_B1HW.flatten(1).sum(1).clamp(min=1e-6)  # a random crop may miss the mask
        return (square_BCHW.mean(1, keepdim=True) * weight_B1HW).flatten(1).sum(1) / counted_B


def sample_moments(moments_B2CHW: Tensor, draws: Draws, scale: float | Tensor, shift: float | Tensor = 0.0) -> Tensor:
    """Latents (B, C, H, W) drawn from an autoencoder's cached mean and log-variance, scaled as the denoiser expects them.

    shift, scale: as `pipelines.vae.shift_and_scale` gives them.
    """
    mean_BCHW, logvar_BCHW = moments_B2CHW.float().chunk(2, dim=1)
    # the limits are DiagonalGaussianDistribution's
    deviation_BCHW = torch.exp(0.5 * logvar_BCHW.clamp(-30.0, 20.0))
    noise_BCHW = draws.normal(tuple(mean_BCHW.shape[1:]), name="posterior")
    return (mean_BCHW + deviation_BCHW * noise_BCHW - shift) * scale
