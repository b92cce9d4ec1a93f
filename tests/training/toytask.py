"""A tiny real task for tests of the loop: two modules that fit a random teacher, with noise, dropout and a metric. Also runs as a script."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from training.config import TrainConfig
from training.randomness import Draws
from training.trainer import train


class ToyTask:
    """Learns y = teacher(x) from noised x. `die_at` ends the process without warning when that sample counter is met."""

    name = "toy"

    def __init__(self, samples: int = 10, die_at: int | None = None, nan_at: int | None = None) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(samples, 3, generator=generator)
        self.y = torch.tanh(self.x @ torch.randn(3, 2, generator=generator))
        torch.manual_seed(2)
        self.encoder = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.1))
        self.head = nn.Linear(8, 2)
        self.die_at, self.nan_at = die_at, nan_at

    def modules(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "head": self.head}

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: list[int]) -> Any:
        return {"x": self.x[indices], "y": self.y[indices]}

    def loss(self, batch: Any, draws: Draws) -> tuple[Tensor, dict[str, float | Tensor]]:
        if self.die_at in draws.counters:
            os._exit(9)
        noised = batch["x"] + 0.1 * draws.normal((3,))
        keep = (draws.uniform() > 0.2).float()[:, None]
        loss = (self.head(self.encoder(noised * keep)) - batch["y"]).square().mean()
        if self.nan_at in draws.counters:
            loss = loss * float("nan")
        return loss, {"kept": keep.mean()}

    def export(self, folder: Path, ema: dict[str, dict[str, Tensor]]) -> None:
        save_file(
            {f"{part}.{name}": t.contiguous() for part, state in ema.items() for name, t in state.items()}, folder / "toy.safetensors"
        )


def main(arguments: list[str]) -> None:
    """`python toytask.py '<TrainConfig as JSON>' [dropout off]`."""
    values = json.loads(arguments[0])
    task = ToyTask(die_at=values.pop("die_at", None))
    if values.pop("no_dropout", False):
        task.encoder[2] = nn.Identity()
    train(task, TrainConfig(device="cpu", **values))


if __name__ == "__main__":
    main(sys.argv[1:])
