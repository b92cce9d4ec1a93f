"""A tiny real task for tests of the loop: two modules that fit a random teacher, with noise and dropout. Also runs as a script."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from core.errors import LimnError
from training.config import TrainConfig
from training.randomness import Draws
from training.trainer import train


class ToyTask:
    """Learns y = teacher(x) from noised x.

    `die_at` ends the process without warning when that sample counter is met; `nan_at` spoils the loss there; `hold_at`
    says so there with a file `held` in the folder `hold_in`, and waits for a file `go`.
    """

    name = "toy"

    def __init__(
        self,
        samples: int = 10,
        *,
        dropout: float = 0.1,
        die_at: int | None = None,
        nan_at: int | None = None,
        hold_at: int | None = None,
        hold_in: str = "",
    ) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(samples, 3, generator=generator)
        self.y = torch.tanh(self.x @ torch.randn(3, 2, generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.encoder = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout))
            self.head = nn.Linear(8, 2)
        self.die_at, self.nan_at = die_at, nan_at
        self.hold_at, self.hold_in = hold_at, Path(hold_in)

    def modules(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "head": self.head}

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: list[int]) -> Any:
        return {"x": self.x[indices], "y": self.y[indices]}

    def loss(self, batch: Any, draws: Draws) -> tuple[Tensor, dict[str, float | Tensor]]:
        if self.die_at in draws.counters:
            os._exit(9)
        if self.hold_at in draws.counters:
            (self.hold_in / "held").touch()
            while not (self.hold_in / "go").exists():
                time.sleep(0.005)
        noised = batch["x"] + 0.1 * draws.normal((3,))
        keep = (draws.uniform() > 0.2).float()[:, None]
        loss = (self.head(self.encoder(noised * keep)) - batch["y"]).square().mean()
        if self.nan_at in draws.counters:
            loss = loss * float("nan")
        return loss, {"kept": keep.mean()}

    def export(self, folder: Path, ema: dict[str, dict[str, Tensor]]) -> None:
        save_file(
            {f"{part}.{name}": t.contiguous().clone() for part, state in ema.items() for name, t in state.items()},
            folder / "toy.safetensors",
        )


def weights(out: Path) -> dict[str, Tensor]:
    """What a finished run exported."""
    return load_file(out / "weights" / "toy.safetensors")


def main(arguments: list[str]) -> None:
    """`python toytask.py '<JSON>'`: settings of TrainConfig, and `task` with settings of ToyTask."""
    torch.set_num_threads(1)  # also what makes it safe to run in a forked process
    values = json.loads(arguments[0])
    task = ToyTask(**values.pop("task", {}))
    try:
        train(task, TrainConfig(**values))
    except LimnError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(sys.argv[1:])
