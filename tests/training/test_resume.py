"""A run that was cut anywhere and resumed equals the uninterrupted one, bit by bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from core.errors import BadModel, BadRequest, Mismatch
from tests.training import toytask
from tests.training.conftest import ROOT, Fork
from tests.training.toytask import ToyTask, weights
from training import checkpoint as checkpoints
from training.config import TrainConfig
from training.trainer import Run, train

# 10 samples in batches of 4 and micro-batches of 2: epochs end inside a batch, at counters 10, 20, 30 and 40 of 48
SETTINGS: dict[str, Any] = {
    "steps": 12, "batch_size": 4, "accumulation": 2, "learning_rate": 0.01, "warmup": 3, "schedule": "cosine",
    "ema_decay": 0.9, "checkpoint_every": 2, "device": "cpu", "seed": 5,
}  # fmt: skip


class PowerCut(Exception):
    pass


class CutTask(ToyTask):
    """Stops dead when it meets the sample counter `cut`: with micro-batches of 2, an even step's worth of gradient is lost."""

    cut = -1

    def loss(self, batch: Any, draws: Any) -> tuple[Tensor, dict[str, float | Tensor]]:
        if self.cut in draws.counters:
            raise PowerCut
        return super().loss(batch, draws)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    out = tmp_path_factory.mktemp("whole")
    train(ToyTask(), TrainConfig(out=out, **SETTINGS))
    return weights(out)


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("cut", [1, 3, 9, 10, 14, 20, 25, 30, 39, 47])
def test_a_cut_run_goes_on_exactly(tmp_path: Path, cut: int, uninterrupted: dict[str, Tensor]) -> None:
    task = CutTask()
    task.cut = cut
    with pytest.raises(PowerCut):
        train(task, TrainConfig(out=tmp_path, **SETTINGS))
    train(ToyTask(), TrainConfig(out=tmp_path, **SETTINGS))
    assert_equal(weights(tmp_path), uninterrupted)


def test_worker_processes_change_nothing(tmp_path: Path, uninterrupted: dict[str, Tensor]) -> None:
    train(ToyTask(), TrainConfig(out=tmp_path, workers=1, **SETTINGS))
    assert_equal(weights(tmp_path), uninterrupted)


def test_a_process_that_dies_without_warning_goes_on_exactly(tmp_path: Path, fork_toy: Fork, uninterrupted: dict[str, Tensor]) -> None:
    process = fork_toy(tmp_path, **SETTINGS, task={"die_at": 26})
    process.join()
    assert process.exitcode == 9
    assert checkpoints.steps(tmp_path / "checkpoints") == [4, 6]
    assert not (tmp_path / "weights").exists()
    train(ToyTask(), TrainConfig(out=tmp_path, resume="must", **SETTINGS))
    assert_equal(weights(tmp_path), uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves_it(
    tmp_path: Path, fork_toy: Fork, number: signal.Signals, uninterrupted: dict[str, Tensor], capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    process = fork_toy(out, **(SETTINGS | {"checkpoint_every": 1000}), task={"hold_at": 14, "hold_in": str(tmp_path)})
    wait_until((tmp_path / "held").exists)  # in the second micro-batch of step 4
    assert process.pid is not None
    os.kill(process.pid, number)
    (tmp_path / "go").touch()
    process.join()
    assert process.exitcode == 130
    said = capfd.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert "goes on from there" in said
    assert checkpoints.steps(out / "checkpoints") == [4]
    train(ToyTask(), TrainConfig(out=out, **SETTINGS))
    assert_equal(weights(out), uninterrupted)


def wait_until(condition: Callable[[], bool]) -> None:
    """The test's own time limit ends it."""
    while not condition():
        time.sleep(0.005)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, uninterrupted: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    train_cut(tmp_path, 34)
    folder = tmp_path / "checkpoints"
    file = folder / "step-00000008" / "optimiser.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    train(ToyTask(), TrainConfig(out=tmp_path, **SETTINGS))
    said = capsys.readouterr().out
    assert "WARNING" in said
    assert "step-00000008/optimiser.safetensors" in said
    assert "going on from step 6" in said
    assert (folder / "damaged-step-00000008").is_dir()
    assert_equal(weights(tmp_path), uninterrupted)


def train_cut(out: Path, cut: int) -> None:
    task = CutTask()
    task.cut = cut
    with pytest.raises(PowerCut):
        train(task, TrainConfig(out=out, **SETTINGS))


def test_no_whole_checkpoint_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    train_cut(tmp_path, 34)
    for step in (6, 8):
        (tmp_path / "checkpoints" / f"step-{step:08d}" / "manifest.json").unlink()
    for _ in range(2):  # and again: whoever starts it once more is not to lose everything
        with pytest.raises(BadModel, match="none of 2 checkpoints is whole"):
            train(ToyTask(), TrainConfig(out=tmp_path, **SETTINGS))
    assert checkpoints.steps(tmp_path / "checkpoints") == [6, 8]


def test_resume_must_needs_a_checkpoint_and_never_refuses_one(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="holds no checkpoint"):
        train(ToyTask(), TrainConfig(out=tmp_path, resume="must", **SETTINGS))
    train_cut(tmp_path, 34)
    with pytest.raises(BadRequest, match="holds a checkpoint of step 8 and resume is never"):
        train(ToyTask(), TrainConfig(out=tmp_path, resume="never", **SETTINGS))


def test_a_checkpoint_of_another_task_or_shape_is_refused(tmp_path: Path) -> None:
    train_cut(tmp_path, 34)
    other = ToyTask()
    other.name = "other"
    with pytest.raises(Mismatch, match="'toy', not 'other'"):
        train(other, TrainConfig(out=tmp_path, **SETTINGS))
    wider = ToyTask()
    wider.head = torch.nn.Linear(8, 3)
    with pytest.raises(Mismatch, match="module 'head'"):
        train(wider, TrainConfig(out=tmp_path, **SETTINGS))


def test_changed_settings_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_cut(tmp_path, 34)
    capsys.readouterr()
    train(ToyTask(), TrainConfig(out=tmp_path, **(SETTINGS | {"learning_rate": 0.005, "batch_size": 2})))
    said = capsys.readouterr().out
    assert "learning_rate was 0.01, is now 0.005" in said
    assert "batch_size was 4, is now 2" in said


def test_changed_settings_of_the_task_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Told(ToyTask):
        told: ClassVar[dict[str, Any]] = {"base": "one", "data.flip": False}

        def settings(self) -> dict[str, Any]:
            return self.told

    train(Told(), TrainConfig(out=tmp_path, **(SETTINGS | {"steps": 4, "warmup": 0})))
    Told.told = {"base": "other", "data.flip": False}
    capsys.readouterr()
    train(Told(), TrainConfig(out=tmp_path, **SETTINGS))
    said = capsys.readouterr().out
    assert "base was one, is now other" in said
    assert "data.flip" not in said


def test_the_log_of_a_cut_run_is_as_one_that_was_not(tmp_path: Path) -> None:
    settings = SETTINGS | {"log_every": 1}
    train(ToyTask(), TrainConfig(out=tmp_path / "whole", **settings))
    task = CutTask()
    task.cut = 31  # step 7, after the checkpoint of step 6
    with pytest.raises(PowerCut):
        train(task, TrainConfig(out=tmp_path / "cut", **settings))
    assert len((tmp_path / "cut" / "log.jsonl").read_text().splitlines()) == 7
    train(ToyTask(), TrainConfig(out=tmp_path / "cut", **settings))
    rows = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("whole", "cut")]
    assert [row["step"] for row in rows[1]] == list(range(1, 13))
    for one, other in zip(*rows, strict=True):
        assert one["loss"] == other["loss"]
        assert other["loss_smooth"] == pytest.approx(one["loss_smooth"], rel=1e-5)  # the log keeps six digits


def test_a_run_told_to_stop_with_its_workers_finishes_the_step(tmp_path: Path, uninterrupted: dict[str, Tensor]) -> None:
    """SIGTERM for the whole process group, as torchrun and schedulers send it."""
    out, held = tmp_path / "run", {"hold_at": 14, "hold_in": str(tmp_path)}
    values = {**SETTINGS, "out": str(out), "checkpoint_every": 1000, "workers": 2, "task": held}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, toytask.__file__, json.dumps(values)], env=environment, start_new_session=True) as process:
        wait_until((tmp_path / "held").exists)
        os.killpg(process.pid, signal.SIGTERM)
        (tmp_path / "go").touch()
        assert process.wait() == 130
    assert checkpoints.steps(out / "checkpoints") == [4]
    train(ToyTask(), TrainConfig(out=out, **SETTINGS))
    assert_equal(weights(out), uninterrupted)


def test_a_run_that_fails_ends_with_its_workers(tmp_path: Path) -> None:
    values = {**SETTINGS, "out": str(tmp_path), "workers": 2, "task": {"nan_at": 9}, "steps": 200}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # the error is kept, and with it the run's frames and the loader, until the interpreter ends
    script = "import sys, tests.training.toytask as toy\ntry: toy.main(sys.argv[1:])\nexcept SystemExit as error: sys.kept = error"
    command = [sys.executable, "-c", script, json.dumps(values)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert "the gradient's norm is nan" in done.stderr
    assert done.returncode == 0


def test_batches_of_one_size_stay_so_when_their_number_changes(tmp_path: Path) -> None:
    class Buckets(ToyTask):
        def buckets(self) -> list[int]:
            return [0] * 7 + [1] * 3

        def batch(self, indices: list[int]) -> Any:
            assert len({index < 7 for index in indices}) == 1
            return super().batch(indices)

    settings = SETTINGS | {"accumulation": 1}
    train(Buckets(), TrainConfig(out=tmp_path, **(settings | {"steps": 5})))  # 20 samples, no multiple of 6
    assert train(Buckets(), TrainConfig(out=tmp_path, **(settings | {"steps": 20, "batch_size": 6}))).step == 20


def test_the_clock_makes_checkpoints_too(tmp_path: Path) -> None:
    found: list[list[int]] = []

    def look(run: Run) -> None:
        found.append(checkpoints.steps(tmp_path / "checkpoints"))

    settings = SETTINGS | {"steps": 4, "warmup": 0, "checkpoint_every": 1000, "checkpoint_minutes": 1e-9, "keep": 3}
    train(ToyTask(), TrainConfig(out=tmp_path, **settings), look)
    assert found == [[], [1], [1, 2], [1, 2, 3]]
    assert checkpoints.steps(tmp_path / "checkpoints") == [2, 3, 4]


def test_kills_at_any_moment_cost_steps_only(tmp_path: Path, fork_toy: Fork) -> None:
    """A checkpoint after every step, so that many of the kills fall into the writing of one."""
    settings, rng = SETTINGS | {"steps": 40, "checkpoint_every": 1, "log_every": 40}, random.Random(0)
    train(ToyTask(), TrainConfig(out=tmp_path / "whole", **settings))
    folder = tmp_path / "cut" / "checkpoints"
    for kill_at in range(3, 40, 4):
        process = fork_toy(tmp_path / "cut", **settings)
        wait_until(lambda at=kill_at: max(checkpoints.steps(folder), default=0) >= at)  # type: ignore[misc]
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        process.join()
    train(ToyTask(), TrainConfig(out=tmp_path / "cut", resume="must", **settings))
    assert_equal(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert not list(tmp_path.rglob("damaged-*"))
    assert not list(tmp_path.rglob("*.tmp"))  # what the killed left half-written is gone
