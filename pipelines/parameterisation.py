"""One mathematics for samplers and trainers: x_t = α·x_0 + σ·ε.

A `Path` knows α and σ at every timestep. A `Parameterisation` knows what a network returns and maps it to x̂_0 and ε̂; a trainer's
target is the same map read backwards. Everything here is a pure function of tensors and floats.

Axes: B pictures, C channels, H height, W width, T training timesteps. α and σ are floats, or tensors of shape (B,) that are spread
over the axes of the pictures.

    path   α        σ         used by
    vp     √ᾱ_t     √(1−ᾱ_t)  SD 1/2, SDXL, toyland (DDPM)
    ve     1        σ_t       score matching, EDM
    flow   1−t/T    t/T       SD3, FLUX, Sana (rectified flow)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias, overload

import torch
from torch import Tensor

from core.errors import BadModel
from pipelines.edm import Edm
from pipelines.flow import flow_range, is_flow

Scalar: TypeAlias = float | Tensor
PathKind = Literal["vp", "ve", "flow"]
Output = Literal["epsilon", "v", "x0", "flow"]

# σ/α is infinite where a rescaled table ends in pure noise; solvers that divide by α see this value instead, as diffusers' do.
SMALLEST_ALPHA_CUMPROD = 2.0**-24


@dataclass(frozen=True, eq=False)
class Path:
    """α and σ over the training timesteps: `first` … `first` + T − 1, which is 0 … T−1, and 1 … T on the flow path.

    alphas_T, sigmas_T: float64 on the CPU, one entry per timestep; lowest, highest: on the flow path, the σ that schedules are spaced
    between before they are shifted (elsewhere the table's ends).
    """

    kind: PathKind
    alphas_T: Tensor
    sigmas_T: Tensor
    lowest: float = 0.0
    highest: float = 1.0

    @staticmethod
    def vp(alphas_cumprod_T: Tensor) -> "Path":
        """The variance-preserving path of a table of ᾱ. Source: Ho et al., Denoising Diffusion Probabilistic Models, 2020, eq. 4."""
        alphas_cumprod_T = alphas_cumprod_T.detach().to("cpu", torch.float64)
        return Path("vp", alphas_cumprod_T.sqrt(), (1.0 - alphas_cumprod_T).sqrt())

    @staticmethod
    def ve(sigmas_T: Tensor) -> "Path":
        """The variance-exploding path of a table of rising σ. Source: Song et al., Score-Based Generative Modeling through SDEs, 2021."""
        sigmas_T = sigmas_T.detach().to("cpu", torch.float64)
        return Path("ve", torch.ones_like(sigmas_T), sigmas_T)

    @staticmethod
    def flow(length: int = 1000, *, lowest: float | None = None, highest: float = 1.0) -> "Path":
        """The straight path between picture and noise. Source: Liu et al., Flow Straight and Fast, 2022."""
        sigmas_T = torch.arange(1, length + 1, dtype=torch.float64) / length
        return Path("flow", 1.0 - sigmas_T, sigmas_T, 1.0 / length if lowest is None else lowest, highest)

    @staticmethod
    def from_scheduler_config(config: Mapping[str, Any]) -> "Path":
        """The VP or flow path that a diffusers `scheduler_config.json` describes.

        What the config says of spacing (timestep_spacing, use_karras_sigmas, shift, …) is no part of the path: see `make_times`.

        Raises:
            BadModel: the beta schedule is not one that published checkpoints use, or the flow's time runs the other way.
        """
        if not is_flow(config):
            return Path.vp(alphas_cumprod(config))
        if config.get("invert_sigmas"):
            raise BadModel("scheduler invert_sigmas = true: this flow counts time from noise to picture, which no family here does")
        length = int(config.get("num_train_timesteps", 1000))
        lowest, highest = flow_range(config, length)
        return Path.flow(length, lowest=lowest, highest=highest)

    def __len__(self) -> int:
        return len(self.alphas_T)

    @property
    def first(self) -> int:
        """The timestep of the least noise."""
        return 1 if self.kind == "flow" else 0

    @overload
    def alpha_sigma(self, t: float) -> tuple[float, float]: ...
    @overload
    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]: ...
    def alpha_sigma(self, t: Scalar) -> tuple[Scalar, Scalar]:
        """α and σ at timestep t: floats for a float, float32 tensors on t's device for a tensor.

        At a whole timestep the table's own entry; between two entries the noise level is interpolated linearly.
        """
        if isinstance(t, Tensor) and not t.is_floating_point():
            index = t.to(torch.int64) - self.first
            return self.alphas_T.float().to(t.device)[index], self.sigmas_T.float().to(t.device)[index]
        if isinstance(t, Tensor):
            alpha, sigma = self._between(t.detach().to("cpu", torch.float64))
            return alpha.float().to(t.device), sigma.float().to(t.device)
        return self._at(t)

    def _at(self, t: float) -> tuple[float, float]:
        """α and σ at timestep t, without a tensor: samplers ask in the middle of their loops."""
        if self.kind == "flow":
            return self.from_level(t / len(self))
        low = min(max(math.floor(t), 0), len(self) - 1)
        alphas, sigmas, levels = self._host
        if t == low:
            return alphas[low], sigmas[low]
        high = min(low + 1, len(self) - 1)
        return self.from_level(levels[low] + (t - low) * (levels[high] - levels[low]))

    @cached_property
    def _host(self) -> tuple[list[float], list[float], list[float]]:
        """α, σ and level of the table as Python's floats."""
        return self.alphas_T.tolist(), self.sigmas_T.tolist(), self.levels().tolist()

    def _between(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "flow":  # the formula is the table
            return self.from_level(t / len(self))
        low = t.floor().clamp(0, len(self) - 1).to(torch.int64)
        high = (low + 1).clamp(max=len(self) - 1)
        level_T = self.levels()
        alpha, sigma = self.from_level(level_T[low] + (t - low) * (level_T[high] - level_T[low]))
        whole = t == low
        return torch.where(whole, self.alphas_T[low], alpha), torch.where(whole, self.sigmas_T[low], sigma)

    def levels(self) -> Tensor:
        """The noise level (T,) that rises along the path and is finite everywhere: σ/α, as in k-diffusion; σ on the flow path."""
        if self.kind != "vp":
            return self.sigmas_T
        alphas_cumprod_T = (self.alphas_T**2).clamp(min=SMALLEST_ALPHA_CUMPROD)
        return ((1.0 - alphas_cumprod_T) / alphas_cumprod_T).sqrt()

    @overload
    def from_level(self, level: float) -> tuple[float, float]: ...
    @overload
    def from_level(self, level: Tensor) -> tuple[Tensor, Tensor]: ...
    def from_level(self, level: Scalar) -> tuple[Scalar, Scalar]:
        """α and σ on this path at a noise level."""
        if self.kind == "flow":
            return 1.0 - level, level
        alpha = level**0 if self.kind == "ve" else (1.0 + level**2) ** -0.5
        return alpha, level * alpha


@dataclass(frozen=True)
class Parameterisation:
    """What a network returns for x_t: ε, v = α·ε − σ·x_0, x_0 itself, or the flow velocity ε − x_0.

    Source of v: Salimans and Ho, Progressive Distillation, 2022, appendix D (there on α² + σ² = 1; here on every path).
    """

    output: Output

    def denoised(self, x: Tensor, out: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        """x̂_0 from the noisy x and the network's output, same shapes."""
        alpha, sigma = spread(alpha, x), spread(sigma, x)
        match self.output:
            case "epsilon":
                return (x - sigma * out) / alpha
            case "v":
                size = alpha**2 + sigma**2
                return (alpha / size) * x - (sigma / size) * out
            case "x0":
                return out
            case "flow":
                return (x - sigma * out) / (alpha + sigma)

    def noise(self, x: Tensor, out: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        """ε̂ from the noisy x and the network's output, same shapes."""
        alpha, sigma = spread(alpha, x), spread(sigma, x)
        match self.output:
            case "epsilon":
                return out
            case "v":
                size = alpha**2 + sigma**2
                return (sigma / size) * x + (alpha / size) * out
            case "x0":
                return (x - alpha * out) / sigma
            case "flow":
                return (x + alpha * out) / (alpha + sigma)

    def target(self, x0: Tensor, noise: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        """What the network should return at x_t = α·x0 + σ·noise."""
        alpha, sigma = spread(alpha, x0), spread(sigma, x0)
        match self.output:
            case "epsilon":
                return noise
            case "v":
                return alpha * noise - sigma * x0
            case "x0":
                return x0
            case "flow":
                return noise - x0


def parameterisation(prediction_type: str) -> Parameterisation:
    """The parameterisation that a diffusers config calls `prediction_type`.

    Raises:
        BadModel: an unknown name.
    """
    outputs: dict[str, Output] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0", "flow_prediction": "flow"}
    if prediction_type not in outputs:
        raise BadModel(f"scheduler prediction_type {prediction_type!r} is unknown: known are {', '.join(sorted(outputs))}")
    return Parameterisation(outputs[prediction_type])


def noised(x0: Tensor, noise: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
    """x_t = α·x0 + σ·noise, the forward process."""
    return spread(alpha, x0) * x0 + spread(sigma, x0) * noise


def spread(value: Scalar, like: Tensor) -> Scalar:
    """A float as it is; a tensor of shape (B,) in `like`'s dtype with trailing axes added, so that it multiplies (B, …)."""
    if not isinstance(value, Tensor):
        return value
    return value.to(like.dtype).reshape(value.shape + (1,) * (like.ndim - value.ndim))


def alphas_cumprod(config: Mapping[str, Any]) -> Tensor:
    """ᾱ at every training timestep (T,), float32 as diffusers computes it, from a scheduler's config; of an EDM model, of its levels.

    Raises:
        BadModel: the beta schedule is not one that published checkpoints use.
    """
    continuous = Edm.of(config)
    if continuous is not None:
        return continuous.alphas_cumprod()
    length = int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    schedule = str(config.get("beta_schedule", "linear"))
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float32)
    elif schedule == "linear":
        betas = torch.linspace(start, end, length, dtype=torch.float32)
    elif schedule == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, length, dtype=torch.float32) ** 2
    elif schedule == "squaredcos_cap_v2":
        betas = torch.tensor([min(1.0 - _cosine((i + 1) / length) / _cosine(i / length), 0.999) for i in range(length)])
    else:
        raise BadModel(f"scheduler beta_schedule {schedule!r} is unknown: known are linear, scaled_linear, squaredcos_cap_v2")
    table = torch.cumprod(1.0 - betas, dim=0)
    return zero_terminal_snr(table) if config.get("rescale_betas_zero_snr") else table


def _cosine(u: float) -> float:
    """Source: Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021, eq. 17."""
    return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2


def zero_terminal_snr(alphas_cumprod_T: Tensor) -> Tensor:
    """ᾱ moved and stretched so that the last step is pure noise and the first stays. Source: Lin et al., 2023, algorithm 1."""
    root = alphas_cumprod_T.sqrt()
    stretched = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return stretched**2
