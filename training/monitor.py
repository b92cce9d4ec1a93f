"""Whether a ControlNet works yet: what its condition is worth to the denoiser, and how well pictures obey it, on pairs held out.

The loss of diffusion training says next to nothing: it is mostly the noise of times and samples. Here every sample is denoised at the same
times with the same noise, with its condition, without one and with another sample's; the differences have little noise left in them. The
first, the paired gap, also grows while the ControlNet merely learns what the dataset's pictures look like, whatever its condition. The
second, against other conditions, is 0 until the condition is heard, and then grows: suddenly, as a rule. It is what is gone by.
Everything measured is in `<out>/monitor.jsonl`.
"""

import json
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.files import publish
from pipelines.family import Residuals
from renderer import Renderer
from training import checkpoint as checkpoints
from training.board import Board
from training.config import MonitorConfig as MonitorConfig
from training.controlnet import ControlNetTask
from training.features import beside, watched
from training.gallery import Gallery
from training.randomness import Draws
from training.task import Run
from training.waiting import waiting

SHARES = (0.125, 0.375, 0.625, 0.875)  # of the times that the gap is measured at: the middles of four bins
CERTAIN = 3.0  # standard errors above 0
SHARE = 0.1  # of the paired gap, which a condition that is heard is the reason of at least
JUMP = 2.5  # times the median of what was measured before
BATCH = 8
FILE = "monitor.jsonl"


@dataclass
class Measured:
    """One measurement: mean gap and its standard error, the same against other samples' conditions, and by the quarters of time.

    gap_shuffled, error_shuffled: None where no sample has another of its size. residuals: by place, the size of what the ControlNet says
    over that of the base's own features there. interval: of the fidelity, 95%.
    """

    step: int
    gap: float
    error: float
    gap_shuffled: float | None
    bins: list[float] = field(default_factory=list)
    residuals: dict[str, float] = field(default_factory=dict)
    fidelity: float | None = None
    interval: tuple[float, float] | None = None
    error_shuffled: float | None = None

    @property
    def heard(self) -> bool:
        """Whether it matters which condition it is, by more than chance; where there is no other to compare with, nobody knows."""
        if self.gap_shuffled is None or self.error_shuffled is None:
            return False
        return self.gap_shuffled > max(CERTAIN * self.error_shuffled, SHARE * self.gap)


class Monitor:
    """Called after every step; measures when it is time. Its own randomness depends on nothing, so training is the same with it."""

    def __init__(self, task: ControlNetTask, config: MonitorConfig, out: Path, renderer: Renderer) -> None:
        self.task, self.config, self.out = task, config, out
        self.history = _read(out / FILE)
        self.gallery = Gallery(task, renderer, config.steps, config.guidance_scale, out)
        self.waiting = waiting(task)
        self.board = Board(out / "tensorboard" if config.tensorboard else None, config.wandb, task.name)

    def __call__(self, run: Run) -> None:
        """Measures and notes; says when it has converged, and keeps the weights of that moment and the best."""
        config, task = self.config, self.task
        last = run.step == run.config.steps
        drawn, every = (bool(wanted) and (run.step % wanted == 0 or last) for wanted in (config.fidelity_every, config.every))
        due = bool(task.held_out) and (drawn or every)
        if due and run.config.sharding == "fsdp":
            whole = run.weights()  # gathered from all processes; one of them goes on with a network of its own
            task = replace(task, net=task.finished(whole).to(task.base.place.device)) if run.main else task
        if not run.main:
            return
        if run.fresh:
            self.board.add(run.step, run.metrics)
        if not due:
            return
        began = time.monotonic()
        before = [row for row in self.history if row.step < run.step]  # a run that was cut measures some steps again
        with run.average.shown() if task is self.task else nullcontext():
            found = measure(task, run.step)
        if drawn:
            with self.waiting.at_work():
                found.fidelity, found.interval = self.gallery.draw(run)
        self.history = [*before, found]
        publish(self.out / FILE, "".join(json.dumps(vars(row)) + "\n" for row in self.history).encode())
        self._note(run, before, found)
        values = {"gap": found.gap, "gap_shuffled": found.gap_shuffled, "fidelity": found.fidelity}
        known = {name: value for name, value in values.items() if value is not None}
        run.noted |= known  # pictures are drawn less often
        self.board.add(run.step, {"monitor/seconds": time.monotonic() - began, **known})
        self.board.add(run.step, {f"residuals/{place}": value for place, value in found.residuals.items()})

    def _note(self, run: Run, before: Sequence[Measured], found: Measured) -> None:
        """Says what has changed, and keeps the weights: those that were heard first, until there is a sudden convergence, then its own."""
        name, first = self.task.name, found.heard and not any(row.heard for row in before)
        jumps = _jumps([*before, found]) and not any(_jumps(before[:count]) for count in range(len(before) + 1))
        if found.heard and not (before and before[-1].heard):
            shuffled = f"{found.gap_shuffled:.4f} ± {found.error_shuffled:.4f} against others"
            run.say(f"{name}: the condition is heard at step {run.step}: {shuffled}; paired gap {found.gap:.4f} ± {found.error:.4f}")
        if jumps:
            worth = (before[-1].gap_shuffled or 0.0, found.gap_shuffled)
            run.say(f"{name}: sudden convergence at step {run.step}: its own condition was worth {worth[0]:.4f}, now {worth[1]:.4f}")
        if first or jumps:
            self._keep(run, "first_converged")
        if found.fidelity is not None and found.interval is not None:
            run.say(f"{name}: fidelity at step {run.step}: {found.fidelity:.3f} ({found.interval[0]:.3f} to {found.interval[1]:.3f})")
            best = max((row.fidelity for row in before if row.fidelity is not None), default=float("-inf"))
            if found.fidelity > best:
                self._keep(run, "best_fidelity")

    def _keep(self, run: Run, name: str) -> None:
        checkpoints.publish_again(self.out / name, lambda folder: self.task.export(folder, run.weights(), run.step))


@torch.no_grad()
def measure(task: ControlNetTask, step: int = 0) -> Measured:
    """The paired gap of the task's held-out samples, L(without) − L(with its condition), and how loudly the ControlNet speaks.

    gap_shuffled: L(with another sample's condition) − L(with its own): above 0 only if it matters which condition it is.
    """
    net, training, place = task.net, task.net.training, task.base.place
    half = place.dtype == torch.bfloat16  # a base in half the bits goes with autocast
    net.eval()
    gaps: list[Tensor] = []
    shuffled: list[Tensor] = []
    spoken: dict[str, list[Tensor]] = {}
    for members in _by_part(task):
        for start in range(0, len(members), BATCH):
            positions = members[start : start + BATCH]
            others = [members[(start + number + 1) % len(members)] for number in range(len(positions))]
            with torch.autocast(place.device.type, torch.bfloat16) if half else nullcontext():
                one_gap, one_shuffled = _paired(task, positions, others, spoken)
            gaps.append(one_gap)
            if len(members) > 1:  # else the other is the sample itself
                shuffled.append(one_shuffled)
    net.train(training)
    gap_NS = torch.cat(gaps)
    gap, error = _mean(gap_NS)
    gap_shuffled, error_shuffled = _mean(torch.cat(shuffled)) if shuffled else (None, None)
    return Measured(
        step=step,
        gap=gap,
        error=error,
        gap_shuffled=gap_shuffled,
        error_shuffled=error_shuffled,
        bins=[float(value) for value in gap_NS.mean(0)],
        residuals={place: float(torch.stack(values).mean()) for place, values in spoken.items()},
    )


def _paired(
    task: ControlNetTask, positions: Sequence[int], others: Sequence[int], spoken: dict[str, list[Tensor]]
) -> tuple[Tensor, Tensor]:
    """Gaps (N, S) of samples of one size at every share of the time, and the same against the conditions of others of that size."""
    device = task.base.place.device
    batch = {name: value.to(device) for name, value in task.rows(list(positions)).items()}
    their_BCHW = task.rows(list(others))["condition"].to(device)
    objective = task.objective
    gaps, shuffled = [], []
    for number, share in enumerate(SHARES):
        draws = Draws(number, positions, device)
        x0_BCHW = task.latents(batch["moments"], draws)
        noise_BCHW = draws.normal(tuple(x0_BCHW.shape[1:]), name="noise")
        text = task.texts.dropped(batch, 0.0, draws)
        noised = objective.at(x0_BCHW, noise_BCHW, objective.spaced(torch.full((len(positions),), share, device=device)))

        def errors(residuals: Residuals | None, noised: Any = noised, text: Any = text) -> Tensor:
            return objective.errors(noised, task.base.predict(noised.x_BCHW, noised.t_B, text, residuals))

        own, theirs = (
            task.steering.residuals(task.net, noised.x_BCHW, noised.t_B, text, condition_BCHW)
            for condition_BCHW in (batch["condition"], their_BCHW)
        )
        with watched(task.steering.denoiser) as sizes:
            alone_B = errors(None)
        for place, size in beside(own, sizes).items():
            spoken.setdefault(place, []).append(size)
        own_B = errors(own)
        gaps.append(alone_B - own_B)
        shuffled.append(errors(theirs) - own_B)
    return torch.stack(gaps, dim=1).cpu(), torch.stack(shuffled, dim=1).cpu()


def _by_part(task: ControlNetTask) -> list[list[int]]:
    """The held-out positions, those of one size together."""
    groups: dict[int, list[int]] = {}
    for position in task.held_out:
        groups.setdefault(task.moments.part(position), []).append(position)
    return list(groups.values())


def _mean(gap_NS: Tensor) -> tuple[float, float]:
    """The mean and its standard error over the samples; over the times of a single one."""
    values = gap_NS.mean(1) if len(gap_NS) > 1 else gap_NS[0]
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def _jumps(rows: Sequence[Measured]) -> bool:
    """Whether the condition of the last of these is heard, and suddenly better than before."""
    *before, last = [row.gap_shuffled or 0.0 for row in rows] or [0.0]
    return len(before) >= 3 and rows[-1].heard and last > JUMP * max(statistics.median(before[-5:]), 0.0)


def _read(path: Path) -> list[Measured]:
    try:
        return [Measured(**json.loads(line)) for line in path.read_text().splitlines()]
    except (OSError, ValueError, TypeError):
        return []
