"""Whether a ControlNet works yet: what its condition is worth to the denoiser, and how well pictures obey it, on pairs held out.

The loss of diffusion training says next to nothing: it is mostly the noise of times and samples. Here every sample is denoised twice at the
same times with the same noise, with its condition and without; the difference, the paired gap, has little noise left in it. It is near 0
until the ControlNet is heard, and grows when it is: suddenly, as a rule. Everything measured is in `<out>/monitor.jsonl`.
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
JUMP = 2.5  # times the median of what was measured before
BATCH = 8
FILE = "monitor.jsonl"


@dataclass
class Measured:
    """One measurement: mean gap and its standard error, the same against other samples' conditions, and by the quarters of time.

    residuals: by place, the size of what the ControlNet says over that of the base's own features there. interval: of the fidelity, 95%.
    """

    step: int
    gap: float
    error: float
    gap_shuffled: float
    bins: list[float] = field(default_factory=list)
    residuals: dict[str, float] = field(default_factory=dict)
    fidelity: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def certain(self) -> bool:
        """Whether the gap is not chance."""
        return self.gap > CERTAIN * self.error


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
        drawn = bool(config.fidelity_every) and (run.step % config.fidelity_every == 0 or last)
        due = bool(config.every and task.held_out) and (run.step % config.every == 0 or drawn or last)
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
        self.history = [row for row in self.history if row.step < run.step]  # a run that was cut measures some steps again
        found = measure(task, run.step)
        if drawn:
            with self.waiting.at_work():
                found.fidelity, found.interval = self.gallery.draw(run)
        self._note(run, found)
        self.history.append(found)
        publish(self.out / FILE, "".join(json.dumps(vars(row)) + "\n" for row in self.history).encode())
        run.noted = {"gap": found.gap} | ({} if found.fidelity is None else {"fidelity": found.fidelity})
        self.board.add(run.step, {"monitor/seconds": time.monotonic() - began, **run.noted, "gap_shuffled": found.gap_shuffled})
        self.board.add(run.step, {f"residuals/{place}": value for place, value in found.residuals.items()})

    def _note(self, run: Run, found: Measured) -> None:
        before = [row.gap for row in self.history]
        if found.certain and len(before) >= 3 and found.gap > JUMP * max(statistics.median(before[-5:]), 0.0) and not _jumped(self.history):
            run.say(f"{self.task.name}: sudden convergence at step {run.step}: the gap went from {before[-1]:.4f} to {found.gap:.4f}")
        if found.certain and (not self.history or not self.history[-1].certain):
            run.say(f"{self.task.name}: the condition is heard at step {run.step}: paired gap {found.gap:.4f} ± {found.error:.4f}")
        if found.certain and not any(row.certain for row in self.history):
            self._keep(run, "first_converged")
        if found.fidelity is not None:
            best = max((row.fidelity for row in self.history if row.fidelity is not None), default=float("-inf"))
            if found.fidelity > best:
                self._keep(run, "best_fidelity")

    def _keep(self, run: Run, name: str) -> None:
        checkpoints.publish_again(self.out / name, lambda folder: self.task.export(folder, run.weights()))


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
    rows = task.held_out
    for start in range(0, len(rows), BATCH):
        positions = rows[start : start + BATCH]
        for positions_of_size in _by_part(task, positions):
            with torch.autocast(place.device.type, torch.bfloat16) if half else nullcontext():
                one_gap, one_shuffled = _paired(task, positions_of_size, spoken)
            gaps.append(one_gap)
            shuffled.append(one_shuffled)
    net.train(training)
    gap_NS, shuffled_NS = torch.cat(gaps), torch.cat(shuffled)
    per_sample = gap_NS.mean(1)
    return Measured(
        step=step,
        gap=float(per_sample.mean()),
        error=float(per_sample.std() / len(per_sample) ** 0.5),
        gap_shuffled=float(shuffled_NS.mean()),
        bins=[float(value) for value in gap_NS.mean(0)],
        residuals={place: float(torch.stack(values).mean()) for place, values in spoken.items()},
    )


def _paired(task: ControlNetTask, positions: Sequence[int], spoken: dict[str, list[Tensor]]) -> tuple[Tensor, Tensor]:
    """Gaps (N, S) of samples of one size at every share of the time."""
    device = task.base.place.device
    batch = {name: value.to(device) for name, value in task.rows(list(positions)).items()}
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

        own, others = (
            task.steering.residuals(task.net, noised.x_BCHW, noised.t_B, text, condition_BCHW)
            for condition_BCHW in (batch["condition"], batch["condition"].roll(1, 0))
        )
        with watched(task.steering.denoiser) as sizes:
            alone_B = errors(None)
        for place, size in beside(own, sizes).items():
            spoken.setdefault(place, []).append(size)
        own_B = errors(own)
        gaps.append(alone_B - own_B)
        shuffled.append(errors(others) - own_B)
    return torch.stack(gaps, dim=1).cpu(), torch.stack(shuffled, dim=1).cpu()


def _by_part(task: ControlNetTask, positions: Sequence[int]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for position in positions:
        groups.setdefault(task.moments.part(position), []).append(position)
    return list(groups.values())


def _jumped(history: Sequence[Measured]) -> bool:
    """Whether the jump was said already."""
    gaps = [row.gap for row in history]
    return any(history[i].certain and gaps[i] > JUMP * max(statistics.median(gaps[max(0, i - 5) : i]), 0.0) for i in range(3, len(gaps)))


def _read(path: Path) -> list[Measured]:
    try:
        return [Measured(**json.loads(line)) for line in path.read_text().splitlines()]
    except (OSError, ValueError, TypeError):
        return []
