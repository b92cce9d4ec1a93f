"""Two processes over gloo against one process with the same batch."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import BadRequest
from tests.training.conftest import Torchrun
from tests.training.toytask import ToyTask
from training import checkpoint as checkpoints
from training.config import TrainConfig
from training.trainer import train

SETTINGS: dict[str, Any] = {
    "steps": 30, "batch_size": 8, "accumulation": 2, "learning_rate": 0.01, "ema_decay": 0.9, "device": "cpu", "log_every": 10,
}  # fmt: skip


def test_two_processes_equal_one_with_the_same_batch(tmp_path: Path, torchrun_toy: Torchrun) -> None:
    # without nn.Dropout, which draws per process: all other randomness belongs to the sample
    said = torchrun_toy(tmp_path / "two", task={"dropout": 0.0}, **SETTINGS)
    train(ToyTask(dropout=0.0), TrainConfig(out=tmp_path / "one", **SETTINGS))
    assert_close(tmp_path, 30)
    assert said.count("step 10/30") == 1  # only one of them talks
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("one", "two")]
    assert [row["step"] for row in logs[1]] == [10, 20, 30]
    for row_one, row_two in zip(*logs, strict=True):
        assert row_two["loss"] == pytest.approx(row_one["loss"], rel=1e-4)  # the mean over both halves of the batch
        assert row_two["kept"] == pytest.approx(row_one["kept"], rel=1e-4)
    # one process goes on where two stopped
    for name in ("one", "two"):
        train(ToyTask(dropout=0.0), TrainConfig(out=tmp_path / name, resume="must", **(SETTINGS | {"steps": 40})))
    assert_close(tmp_path, 40)


def assert_close(folder: Path, step: int) -> None:
    one, two = (checkpoints.load(folder / name / "checkpoints", step) for name in ("one", "two"))
    for part, relative in (("model", 0.0), ("average", 0.0), ("optimiser", 1e-3)):
        wanted, found = getattr(one, part), getattr(two, part)
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            # sums in another order: some ulps of weights near 1 over 40 steps; a lost half of a batch would be near 1e-2
            torch.testing.assert_close(found[name], tensor, rtol=relative, atol=2e-6)


def test_a_batch_that_does_not_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size 9 is not a multiple of accumulation 2"):
        TrainConfig(out=tmp_path, steps=1, batch_size=9, accumulation=2)


def test_a_task_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="'toy' has no samples"):
        train(ToyTask(samples=0), TrainConfig(out=tmp_path, steps=1, device="cpu"))
