"""How N steps are spread over the noise levels of a path.

A schedule is either a way to space timesteps (uniform, leading, trailing: Lin et al., Common Diffusion Noise Schedules and Sample Steps
are Flawed, 2023, table 2) or a curve through the noise levels (karras, exponential). What a published sampler expects besides (whole
timesteps, one point more, noise of deviation one) is its `Grid`. Everything is computed on the host, before the first step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from core.errors import BadRequest, unknown_name
from pipelines.parameterisation import Path

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """A sampler's conventions, as its reference implementation has them."""

    whole_timesteps: bool = False  # the network is told whole timesteps only
    drops_last: bool = False  # space N + 1 points and leave out the last
    unit_noise: bool = False  # start from noise of deviation 1, not from the σ of the first step
    on_table: bool = False  # α and σ are the table's entries, and so may be the end


@dataclass(frozen=True)
class Times:
    """N + 1 points of a path from noise to picture; a network is asked at the first N.

    timesteps: what the network is told (N); alphas, sigmas: N + 1 each; levels: σ/α, or σ on the flow path, N + 1;
    initial: factor on standard noise that gives the first x.
    """

    timesteps: tuple[float, ...]
    alphas: tuple[float, ...]
    sigmas: tuple[float, ...]
    levels: tuple[float, ...]
    initial: float

    def __len__(self) -> int:
        return len(self.timesteps)

    def log_snr(self, i: int) -> float:
        """λ = log α/σ at point i; infinite at pure picture, minus infinite at pure noise."""
        if self.sigmas[i] == 0.0:
            return math.inf
        return math.log(self.alphas[i] / self.sigmas[i]) if self.alphas[i] > 0.0 else -math.inf


def uniform(length: int, steps: int, _offset: int) -> Floats:
    """Evenly from the last timestep to the first, both included ("linspace" in diffusers); a single step is the last timestep."""
    return np.linspace(length - 1, 0, steps)


def leading(length: int, steps: int, offset: int) -> Floats:
    """Whole strides up from the first timestep, moved by the checkpoint's `steps_offset`."""
    return (np.arange(steps - 1, -1, -1) * (length // steps) + offset).astype(np.float64)


def trailing(length: int, steps: int, _offset: int) -> Floats:
    """Strides down from the last timestep, which is always included."""
    return np.round(length - np.arange(steps) * (length / steps)) - 1.0


def karras(low: float, high: float, steps: int) -> Floats:
    """Noise levels even in level^(1/7). Source: Karras et al., Elucidating the Design Space of Diffusion Models, 2022, eq. 5, ρ = 7."""
    return np.linspace(high ** (1 / 7), low ** (1 / 7), steps) ** 7


def exponential(low: float, high: float, steps: int) -> Floats:
    """Noise levels even in their logarithm. Source: k-diffusion, get_sigmas_exponential."""
    return np.exp(np.linspace(math.log(high), math.log(low), steps))


SPACINGS: dict[str, Callable[[int, int, int], Floats]] = {"uniform": uniform, "leading": leading, "trailing": trailing}
CURVES: dict[str, Callable[[float, float, int], Floats]] = {"karras": karras, "exponential": exponential}
SCHEDULES = (*SPACINGS, *CURVES)


def make_times(path: Path, schedule: str, steps: int, grid: Grid, *, steps_offset: int = 0, end_on_first: bool = False) -> Times:
    """The points that a sampler walks through.

    steps_offset: the checkpoint's, for `leading`; end_on_first: a sampler on the table ends at its first entry instead of at the pure
    picture (`set_alpha_to_one` is false in the checkpoint's scheduler).

    Raises:
        BadRequest: the schedule is unknown or the path has no room for so many steps.
    """
    if schedule not in SCHEDULES:
        raise unknown_name("schedule", schedule, SCHEDULES)
    limit = len(path) - int(grid.drops_last)
    if steps > limit:
        raise BadRequest(f"steps = {steps}: this model and sampler have {limit} timesteps; give at most {limit} steps")
    level_T = path.levels().numpy()
    if schedule in SPACINGS:
        index = _spaced(SPACINGS[schedule], len(path), steps, grid, steps_offset)
        if index[0] > len(path) - 1:
            raise BadRequest(f"steps = {steps}: with this model's steps_offset {steps_offset} 'leading' leaves the table; give fewer steps")
        levels = np.interp(index, np.arange(len(path)), level_T)
    else:
        levels = CURVES[schedule](float(level_T[0]), float(level_T[-1]), steps)
        index = np.interp(np.log(levels), np.log(level_T), np.arange(len(path)))
        index = np.round(index) if grid.whole_timesteps else index
    alphas, sigmas = path.from_level(torch.from_numpy(levels))
    if grid.on_table and schedule in SPACINGS:
        whole = torch.from_numpy(index).to(torch.int64)
        alphas, sigmas = path.alphas_T[whole], path.sigmas_T[whole]
    end = (float(path.alphas_T[0]), float(path.sigmas_T[0])) if grid.on_table and end_on_first else (1.0, 0.0)
    return Times(
        timesteps=tuple((index + path.first).tolist()),
        alphas=(*alphas.tolist(), end[0]),
        sigmas=(*sigmas.tolist(), end[1]),
        levels=(*levels.tolist(), float(level_T[0]) if end[1] else 0.0),
        initial=1.0 if path.kind == "vp" and (grid.unit_noise or schedule == "leading") else float(sigmas[0]),
    )


def _spaced(spacing: Callable[[int, int, int], Floats], length: int, steps: int, grid: Grid, offset: int) -> Floats:
    extra = int(grid.drops_last and spacing is not trailing)
    index = spacing(length, steps + extra, offset)[:steps]
    return np.round(index) if grid.whole_timesteps else index
