"""Two processes over gloo against one process with the same batch."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from core.errors import BadRequest
from tests.training.conftest import ROOT, Torchrun
from tests.training.test_controlnet import config
from tests.training.toytask import ToyTask
from training import checkpoint as checkpoints
from training.config import TrainConfig
from training.run import train_controlnet
from training.sharding import check_sharding
from training.trainer import train

NEEDS_DEEPSPEED = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed: make deepspeed")

SETTINGS: dict[str, Any] = {
    "steps": 30, "batch_size": 8, "accumulation": 2, "learning_rate": 0.01, "ema_decay": 0.9, "device": "cpu", "log_every": 10,
}  # fmt: skip


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_processes_equal_one_with_the_same_batch(tmp_path: Path, torchrun_toy: Torchrun, sharding: str) -> None:
    # without nn.Dropout, which draws per process: all other randomness belongs to the sample
    said = torchrun_toy(tmp_path / "two", task={"dropout": 0.0}, sharding=sharding, **SETTINGS)
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


def test_shards_go_on_where_whole_weights_stopped(tmp_path: Path, torchrun_toy: Torchrun) -> None:
    settings = SETTINGS | {"optimiser": "lion", "learning_rate": 0.003}
    for name in ("one", "two"):
        train(ToyTask(dropout=0.0), TrainConfig(out=tmp_path / name, **settings))
    torchrun_toy(tmp_path / "two", task={"dropout": 0.0}, sharding="fsdp", resume="must", **(settings | {"steps": 40}))
    train(ToyTask(dropout=0.0), TrainConfig(out=tmp_path / "one", resume="must", **(settings | {"steps": 40})))
    assert_close(tmp_path, 40)


@pytest.mark.parametrize("sharding", ["fsdp", pytest.param("zero", marks=NEEDS_DEEPSPEED)])
def test_a_controlnet_is_trained_and_measured_in_shards(base: Path, dataset: Path, tmp_path: Path, sharding: str) -> None:
    alone = config(base, dataset, tmp_path / "one", monitor={"every": 2, "samples": 4, "tensorboard": False})
    shared = alone.train.model_copy(update={"out": tmp_path / "two", "sharding": sharding, "device": "auto"})
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(alone.model_copy(update={"train": shared}).model_dump(mode="json")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "cli", "train", str(file)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    train_controlnet(alone)
    one, two = (load_file(tmp_path / name / "weights" / "diffusion_pytorch_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        # AdamW divides by a gradient's size, so that its rounding is not small where the gradient is: a few steps of the rate, 1e-3
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-3)
        assert (two[name] - tensor).abs().mean() < 2e-5
    rows = [json.loads(line) for line in (tmp_path / "two" / "monitor.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]


@pytest.mark.parametrize("sharding", ["fsdp", "zero"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "there is one: start several with torchrun"),
        ({"optimiser": "adafactor"}, "take one of adamw, lion"),
        ({"precision": "fp16"}, "take bf16, which needs no scaled loss"),
        ({"compile": True}, "with train.compile: choose one"),
    ],
)
def test_shards_that_cannot_be_are_refused(tmp_path: Path, sharding: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=rf"train\.sharding {sharding} .*{message}"):
        check_sharding(TrainConfig(out=tmp_path, steps=1, sharding=sharding, **settings), 2 if settings else 1)


@pytest.mark.parametrize(("name", "title"), [("FSDP", "FSDP"), ("DEEPSPEED", "DeepSpeed"), ("MEGATRON_LM", "Megatron-LM")])
def test_what_accelerate_itself_would_split_is_refused(
    base: Path, dataset: Path, tmp_path: Path, name: str, title: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(BadRequest, match=rf"told to use {title} \(ACCELERATE_USE_{name}\): start with torchrun"):
        train_controlnet(config(base, dataset, tmp_path / "run"))


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
