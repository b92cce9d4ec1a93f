"""DeepSpeed's ZeRO keeps the promises of the trainer: two processes over gloo against one, cut and resumed, and spoilt."""

from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import BadRequest
from tests.training.conftest import Torchrun
from tests.training.test_controlnet import config
from tests.training.test_processes import NEEDS_DEEPSPEED, assert_close
from tests.training.test_resume import assert_equal
from tests.training.toytask import ToyTask, weights
from training import checkpoint as checkpoints
from training.config import TrainConfig
from training.run import train_controlnet
from training.sharding import check_sharding
from training.trainer import train

# gradients of the toy task are near 1: all are clipped at 0.3
SETTINGS: dict[str, Any] = {
    "steps": 20, "batch_size": 8, "accumulation": 2, "learning_rate": 0.01, "learning_rate_factors": {"head": 0.5}, "warmup": 5,
    "schedule": "cosine", "clip": 0.3, "ema_decay": 0.9, "device": "cpu",
}  # fmt: skip
PLAIN = {"dropout": 0.0}  # nn.Dropout draws per process: all other randomness belongs to the sample


@NEEDS_DEEPSPEED
@pytest.mark.parametrize(("optimiser", "learning_rate", "other"), [("adamw", 0.01, "alone"), ("lion", 0.003, "fsdp")])
def test_two_processes_equal_one_and_hand_over(
    tmp_path: Path, torchrun_toy: Torchrun, optimiser: str, learning_rate: float, other: str
) -> None:
    settings = SETTINGS | {"optimiser": optimiser, "learning_rate": learning_rate}
    said = torchrun_toy(tmp_path / "two", task=PLAIN, sharding="zero", log_every=10, **settings)
    train(ToyTask(**PLAIN), TrainConfig(out=tmp_path / "one", **settings))
    assert_close(tmp_path, 20)
    assert len(said.splitlines()) == 2, said  # step 10 and step 20: DeepSpeed is quiet, and one process talks
    for steps, sharding in ((30, other), (40, "zero")):
        go_on: dict[str, Any] = settings | {"steps": steps, "schedule": "constant", "resume": "must"}
        train(ToyTask(**PLAIN), TrainConfig(out=tmp_path / "one", **go_on))
        if sharding == "alone":
            train(ToyTask(**PLAIN), TrainConfig(out=tmp_path / "two", **go_on))
        else:
            torchrun_toy(tmp_path / "two", task=PLAIN, sharding=sharding, **go_on)
        assert_close(tmp_path, steps)


@NEEDS_DEEPSPEED
def test_bf16_is_for_the_forward_pass_alone(tmp_path: Path, torchrun_toy: Torchrun) -> None:
    torchrun_toy(tmp_path / "two", task=PLAIN, sharding="zero", precision="bf16", **SETTINGS)
    # bf16 rounds each micro-batch's gradient: the same micro-batches, so that no sum is rounded elsewhere
    train(ToyTask(**PLAIN), TrainConfig(out=tmp_path / "one", precision="bf16", **(SETTINGS | {"accumulation": 4})))
    assert_close(tmp_path, 20)
    found = checkpoints.load(tmp_path / "two" / "checkpoints", 20)
    assert {tensor.dtype for tensor in (found.model | found.average | found.optimiser).values()} == {torch.float32}


@NEEDS_DEEPSPEED
def test_a_cut_run_goes_on_exactly(tmp_path: Path, torchrun_toy: Torchrun) -> None:
    settings = SETTINGS | {"sharding": "zero", "checkpoint_every": 2}
    torchrun_toy(tmp_path / "whole", **settings)
    # sample 110 is in the second micro-batch of the second process in step 14: lost is that, and step 13, done since the last checkpoint
    torchrun_toy(tmp_path / "cut", fails=True, task={"die_at": 110}, **settings)
    assert checkpoints.steps(tmp_path / "cut" / "checkpoints") == [10, 12]
    torchrun_toy(tmp_path / "cut", **settings, resume="must")
    assert_equal(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    cut, whole = (checkpoints.load(tmp_path / name / "checkpoints", 20) for name in ("cut", "whole"))
    for part in ("model", "average", "optimiser"):
        assert_equal(getattr(cut, part), getattr(whole, part))


@NEEDS_DEEPSPEED
def test_a_spoilt_gradient_stops_every_process(tmp_path: Path, torchrun_toy: Torchrun) -> None:
    # sample 50 is of step 6, counted from 0, and one process has it
    said = torchrun_toy(tmp_path, fails=True, task={"nan_at": 50}, sharding="zero", checkpoint_every=2, **SETTINGS)
    assert "the gradient's norm is inf at step 7; the last good checkpoint is of step 6: lower learning_rate" in said
    assert checkpoints.steps(tmp_path / "checkpoints") == [4, 6]


def test_without_deepspeed_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.sharding.find_spec", lambda name: None)
    with pytest.raises(BadRequest, match=r"^train\.sharding zero needs deepspeed, which is not installed: pip install deepspeed$"):
        check_sharding(TrainConfig(out=tmp_path, steps=1, sharding="zero"), 2)


def test_a_refusal_comes_before_anything_is_made(base: Path, dataset: Path, tmp_path: Path) -> None:
    alone = config(base, dataset, tmp_path / "run")
    zero = alone.model_copy(update={"train": alone.train.model_copy(update={"sharding": "zero"}), "cache": tmp_path / "cache"})
    with pytest.raises(BadRequest, match="there is one: start several with torchrun"):
        train_controlnet(zero)
    assert not list(tmp_path.iterdir())
