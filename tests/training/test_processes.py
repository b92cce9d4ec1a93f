"""Two processes over gloo against one process with the same batch."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import BadRequest
from tests.training.conftest import Start
from tests.training.toytask import ToyTask, weights
from training import checkpoint as checkpoints
from training.config import TrainConfig
from training.trainer import train

SETTINGS: dict[str, Any] = {
    "steps": 30, "batch_size": 8, "accumulation": 2, "learning_rate": 0.01, "ema_decay": 0.9, "device": "cpu", "log_every": 10,
}  # fmt: skip


def test_two_processes_equal_one_with_the_same_batch(tmp_path: Path, start_toy: Start) -> None:
    # without nn.Dropout, which draws per process: all other randomness belongs to the sample
    process = start_toy(tmp_path / "two", processes=2, task={"dropout": 0.0}, **SETTINGS)
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    train(ToyTask(dropout=0.0), TrainConfig(out=tmp_path / "one", **SETTINGS))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, tensor in one.items():
        # sums in another order: some ulps of weights near 1 over 30 steps; a lost half of a batch would be near 1e-2
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-6)
    assert said.count("step 10/30") == 1  # only one of them talks
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("one", "two")]
    assert [row["step"] for row in logs[1]] == [10, 20, 30]
    for row_one, row_two in zip(*logs, strict=True):
        assert row_two["loss"] == pytest.approx(row_one["loss"], rel=1e-4)  # the mean over both halves of the batch
        assert row_two["kept"] == pytest.approx(row_one["kept"], rel=1e-4)
    saved_one, saved_two = (checkpoints.load(tmp_path / name / "checkpoints", 30) for name in ("one", "two"))
    for name, tensor in saved_one.optimiser.items():
        torch.testing.assert_close(saved_two.optimiser[name], tensor, rtol=1e-3, atol=2e-6)


def test_two_processes_resume_what_one_began(tmp_path: Path, start_toy: Start) -> None:
    train(ToyTask(dropout=0.0), TrainConfig(out=tmp_path, **(SETTINGS | {"steps": 12})))
    process = start_toy(tmp_path, processes=2, task={"dropout": 0.0}, resume="must", **SETTINGS)
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "going on from step 12" in said
    train(ToyTask(dropout=0.0), TrainConfig(out=tmp_path / "one", **SETTINGS))
    for name, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path)[name], tensor, rtol=0, atol=2e-6)


def test_a_batch_that_does_not_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size 9 is not a multiple of accumulation 2"):
        TrainConfig(out=tmp_path, steps=1, batch_size=9, accumulation=2)


def test_a_task_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="'toy' has no samples"):
        train(ToyTask(samples=0), TrainConfig(out=tmp_path, steps=1, device="cpu"))
