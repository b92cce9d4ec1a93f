"""How N steps are spread over the noise levels of a path.

A schedule is either a way to space timesteps (uniform, leading, trailing: Lin et al., Common Diffusion Noise Schedules and Sample Steps
are Flawed, 2023, table 2; sgm_uniform, simple, beta) or a curve through the noise levels (karras, exponential, polyexponential). What a
published sampler expects besides (whole timesteps, one point more, noise of deviation one, a point midway) is its `Grid`. Everything is
computed on the host, before the first step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from core.errors import BadRequest, Mismatch, unknown_name
from pipelines import spacings
from pipelines.flow import shifted
from pipelines.parameterisation import Path
from pipelines.spacings import Floats

SPACINGS: dict[str, Callable[[int, int, int], Floats]] = {
    "uniform": spacings.uniform,
    "leading": spacings.leading,
    "trailing": spacings.trailing,
    "sgm_uniform": spacings.sgm_uniform,
    "simple": spacings.simple,
    "beta": spacings.beta,
}
CURVES: dict[str, Callable[[float, float, int, float], Floats]] = {
    "karras": spacings.karras,
    "exponential": spacings.exponential,
    "polyexponential": spacings.polyexponential,
}
SCHEDULES = (*SPACINGS, *CURVES)
RHO = {"karras": 7.0, "exponential": 1.0, "polyexponential": 1.0}


@dataclass(frozen=True)
class Grid:
    """A sampler's conventions, as its reference implementation has them."""

    whole_timesteps: bool = False  # the network is told whole timesteps only
    drops_last: bool = False  # space N + 1 points and leave out the last
    unit_noise: bool = False  # start from noise of deviation 1, not from the σ of the first step
    on_table: bool = False  # α and σ are the table's entries, and so may be the end
    midpoints: bool = False  # the network is also asked midway between two points, at the geometric mean of their levels
    distilled: int = 0  # trained on so many timesteps alone, spread as `trailing`; 0: on all


@dataclass(frozen=True)
class Times:
    """The points of a path from noise to picture; a network is asked at all but the last.

    timesteps: what the network is told (N; with points midway 2N − 1 for N steps); alphas, sigmas: one more each; levels: σ/α, or σ on
    the flow path; initial: factor on standard noise that gives the first x; substeps: points to a step, 2 where some stand midway.
    """

    timesteps: tuple[float, ...]
    alphas: tuple[float, ...]
    sigmas: tuple[float, ...]
    levels: tuple[float, ...]
    initial: float
    path: Path
    substeps: int = 1

    def __len__(self) -> int:
        """How many points a network is asked at; `steps` counts what the user asked for."""
        return len(self.timesteps)

    @property
    def steps(self) -> int:
        """How many steps `on_step` is told of."""
        return -(-len(self.timesteps) // self.substeps)

    def log_snr(self, i: int) -> float:
        """λ = log α/σ at point i; infinite at pure picture, minus infinite at pure noise."""
        if self.sigmas[i] == 0.0:
            return math.inf
        return math.log(self.alphas[i] / self.sigmas[i]) if self.alphas[i] > 0.0 else -math.inf

    def scale(self, i: int) -> float:
        """σ/level at point i: u = x/scale moves with du/dlevel = (u − x̂_0)/level, whether the level is σ/α (VP, VE) or σ (flow)."""
        return self.sigmas[i] / self.levels[i] if self.levels[i] > 0.0 else self.alphas[i]

    def tail(self, strength: float) -> "Times":
        """The last part of the way, for pictures that start from another: begin with x = α·x_0 + σ·ε at its first point.

        strength: 1 keeps all steps, 0 none, so that the picture stays. Fractions of a step are cut on VP and VE and count whole on the
        flow path, as diffusers' img2img pipelines do.

        Raises:
            BadRequest: strength is not between 0 and 1, or too small to leave a step.
        """
        if not 0.0 <= strength <= 1.0:
            raise BadRequest(f"strength = {strength}: give 0 (the picture stays) to 1 (only its size stays)")
        wanted = min(self.steps * strength, self.steps)
        skipped = int(max(self.steps - wanted, 0)) if self.path.kind == "flow" else self.steps - int(wanted)
        if skipped == self.steps and strength > 0.0:
            raise BadRequest(
                f"strength = {strength}: of {self.steps} steps none is left; give at least {math.ceil(1000 / self.steps) / 1000}"
            )
        if skipped == 0:  # the whole way keeps its own beginning too
            return self
        first = min(self.substeps * skipped, len(self))
        return replace(
            self,
            timesteps=self.timesteps[first:],
            alphas=self.alphas[first:],
            sigmas=self.sigmas[first:],
            levels=self.levels[first:],
            initial=self.sigmas[first],
        )

    def ending_on_first(self) -> "Times":
        """The same points with the path's least noise instead of the pure picture at the end."""
        level = min(float(self.path.levels()[0]), math.inf, *self.levels[-2:-1])  # a flow shifted below 1 may be there already
        alpha, sigma = self.path.from_level(level)
        return replace(self, alphas=(*self.alphas[:-1], alpha), sigmas=(*self.sigmas[:-1], sigma), levels=(*self.levels[:-1], level))


def make_times(
    path: Path,
    schedule: str,
    steps: int,
    grid: Grid,
    *,
    steps_offset: int = 0,
    end_on_first: bool = False,
    shift: float = 1.0,
    terminal: float | None = None,
    rho: float | None = None,
) -> Times:
    """The points that a sampler walks through.

    steps_offset: the checkpoint's, for `leading`; end_on_first: a sampler on the table ends at its first entry instead of at the pure
    picture (`set_alpha_to_one` is false in the checkpoint's scheduler); shift: factor on σ/α of all points, so that log-SNR falls by 2·log
    shift (see `flow_shift`; size/base is the resolution shift of Hoogeboom et al., Simple diffusion, 2023, section 3.1; on VP and VE the
    way is cut where the table ends); terminal: the σ that the flow path's last step before the picture is stretched to; rho: the exponent
    of karras (7) and polyexponential (1).

    Raises:
        BadRequest: the schedule is unknown, or the path has no room for so many steps.
        Mismatch: the path cannot take the schedule.
    """
    check_schedule(path, schedule)
    limit = _limit(path, schedule, grid)
    if steps > limit:
        raise BadRequest(f"steps = {steps}: this model and sampler have {limit} timesteps; give at most {limit} steps")
    if shift <= 0.0 or (terminal is not None and (path.kind != "flow" or not 0.0 < terminal < 1.0)):
        raise BadRequest(
            f"shift = {shift}, terminal = {terminal}: give a shift above 0, and a terminal between 0 and 1 to a flow path only"
        )
    if path.kind == "flow":
        levels = _flow_levels(path, schedule, steps, shift, terminal)
        told = levels * len(path)
        told = np.floor(told) if grid.drops_last else told  # diffusers' DPM-Solvers cut it down to whole timesteps, σ stays
        alphas, sigmas = path.from_level(torch.from_numpy(levels))
    else:
        position, levels = _positions(path, schedule, steps, grid, (steps_offset, shift, rho))
        told = position if shift == 1.0 else np.interp(np.log(levels), np.log(path.levels().numpy()), np.arange(len(path)))
        told = np.round(told) if grid.whole_timesteps else told
        alphas, sigmas = path.from_level(torch.from_numpy(levels))
        if grid.on_table and shift == 1.0 and np.array_equal(told, position):
            whole = torch.from_numpy(position).to(torch.int64)
            alphas, sigmas = path.alphas_T[whole], path.sigmas_T[whole]
    unit = path.kind == "flow" or (path.kind == "vp" and (grid.unit_noise or schedule == "leading"))
    times = Times(
        timesteps=tuple(told.tolist()),
        alphas=(*alphas.tolist(), 1.0),
        sigmas=(*sigmas.tolist(), 0.0),
        levels=(*levels.tolist(), 0.0),
        initial=1.0 if unit else float(sigmas[0]),
        path=path,
    )
    if grid.midpoints:
        times = _with_midpoints(times)
    return times.ending_on_first() if grid.on_table and end_on_first and path.kind != "flow" else times


def check_schedule(path: Path, schedule: str) -> None:
    """Whether a path can take a schedule.

    Raises:
        BadRequest: the schedule is unknown; the message names the nearest.
        Mismatch: the path cannot take it; the message says why.
    """
    if schedule not in SCHEDULES:
        raise unknown_name("schedule", schedule, SCHEDULES)
    instead = "use uniform, trailing, sgm_uniform, simple or beta"
    if path.kind == "flow" and schedule in CURVES:
        raise Mismatch(f"schedule {schedule!r} places levels σ/α, which is infinite where this flow model starts: {instead}")
    if path.kind == "flow" and schedule == "leading":
        raise Mismatch(f"schedule 'leading' does not start at pure noise, which this flow model must: {instead}")


def _limit(path: Path, schedule: str, grid: Grid) -> int:
    if grid.distilled and path.kind != "flow" and schedule in SPACINGS and schedule != "beta":
        return min(grid.distilled, len(path))
    return len(path) - int(grid.drops_last)


def _flow_levels(path: Path, schedule: str, steps: int, shift: float, terminal: float | None) -> Floats:
    plain = spacings.on_flow(schedule, (path.lowest, path.highest), steps, len(path))
    levels = np.array([shifted(level, shift) for level in plain.tolist()])
    if terminal is not None and steps > 1:
        levels = 1.0 - (1.0 - levels) * ((1.0 - terminal) / (1.0 - levels[-1]))
    return levels


def _positions(path: Path, schedule: str, steps: int, grid: Grid, options: tuple[int, float, float | None]) -> tuple[Floats, Floats]:
    """Where the points stand in a table of levels (the path's own, or shifted and cut at the path's most noise), and their levels."""
    offset, shift, rho = options
    level_T = path.levels().numpy()
    if shift != 1.0:
        moved = np.minimum(level_T * shift, level_T[-1])
        level_T = moved[: int(np.argmax(moved == moved.max())) + 1]
    if schedule in CURVES:
        levels = CURVES[schedule](float(level_T[0]), float(level_T[-1]), steps, RHO[schedule] if rho is None else rho)
        return np.interp(np.log(levels), np.log(level_T), np.arange(len(level_T))), levels
    if grid.distilled and schedule != "beta":
        return _distilled(schedule, steps, grid.distilled, level_T)
    extra = int(grid.drops_last and schedule in ("uniform", "leading"))
    position = SPACINGS[schedule](len(level_T), steps + extra, offset)[:steps]
    if position[0] > len(level_T) - 1:
        raise BadRequest(f"steps = {steps}: with this model's steps_offset {offset} 'leading' leaves the table; give fewer steps")
    if grid.whole_timesteps and schedule != "beta":  # whose ends are denser than the table
        position = np.round(position)
    return position, np.interp(position, np.arange(len(level_T)), level_T)


def _distilled(schedule: str, steps: int, count: int, level_T: Floats) -> tuple[Floats, Floats]:
    """The same among the `count` timesteps of a distillation, the last of each stride; in doubt the one of more noise."""
    spacing = SPACINGS[schedule] if schedule in ("uniform", "leading") else spacings.simple
    position = (np.ceil(spacing(count, steps, 0)) + 1.0) * (len(level_T) // count) - 1.0
    return position, np.interp(position, np.arange(len(level_T)), level_T)


def _with_midpoints(times: Times) -> Times:
    """A point more in every step but the last."""
    outer = np.array(times.levels[:-1])
    middle = np.sqrt(outer[:-1] * outer[1:])
    if times.path.kind == "flow":
        told = middle * len(times.path)
    else:
        told = np.interp(np.log(middle), np.log(times.path.levels().numpy()), np.arange(len(times.path)))
    alphas, sigmas = times.path.from_level(torch.from_numpy(middle))

    def woven(points: tuple[float, ...], between: list[float]) -> tuple[float, ...]:
        pairs = zip(points, between, strict=False)
        return (*(value for pair in pairs for value in pair), *points[len(between) :])

    return replace(
        times,
        timesteps=woven(times.timesteps, told.tolist()),
        alphas=woven(times.alphas, alphas.tolist()),
        sigmas=woven(times.sigmas, sigmas.tolist()),
        levels=woven(times.levels, middle.tolist()),
        substeps=2,
    )
