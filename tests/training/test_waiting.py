"""Text encoders and autoencoder leave an accelerator to the steps, and come back to draw."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from torch import nn

from tests.training.test_controlnet import config
from training.run import build_task, train_controlnet
from training.waiting import Waiting, waiting


class Told(nn.Linear):
    """Remembers where it was sent, and stays: there is no accelerator here."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.sent: list[str] = []

    def to(self, *args: Any, **options: Any) -> "Told":
        self.sent.append(torch.device(args[0]).type)
        return self


def test_networks_come_to_work_and_go_again_also_where_drawing_fails() -> None:
    network = Told()
    waits = Waiting([network], torch.device("mps"))
    waits.rest()
    with waits.at_work():
        assert network.sent == ["cpu", "mps"]
    with pytest.raises(RuntimeError), waits.at_work():
        raise RuntimeError
    assert network.sent == ["cpu", "mps", "cpu", "mps", "cpu"]


def test_on_a_cpu_nothing_is_moved() -> None:
    network = Told()
    waits = Waiting([network], torch.device("cpu"))
    waits.rest()
    with waits.at_work():
        assert network.sent == []


def test_all_but_the_denoiser_and_a_rewards_autoencoder_wait(base: Path, dataset: Path, tmp_path: Path) -> None:
    task = build_task(config(base, dataset, tmp_path / "a"), PartialState(cpu=True))
    assert {type(network).__name__ for network in waiting(task).networks} == {"AutoencoderKL", "CLIPTextModel"}
    rewarded = build_task(config(base, dataset, tmp_path / "b", reward={"weight": 0.5}), PartialState(cpu=True))
    assert [type(network).__name__ for network in waiting(rewarded).networks] == ["CLIPTextModel"]


def test_they_wait_through_a_training_and_work_while_it_draws(
    base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Waiting, "rest", lambda waits: said.append("rest"))
    train_controlnet(
        config(base, dataset, tmp_path / "run", monitor={"every": 2, "fidelity_every": 4, "samples": 2, "steps": 2, "tensorboard": False}),
        lambda run: said.append(f"step {run.step}"),
    )
    assert said == ["rest", "step 1", "step 2", "step 3", "rest", "step 4"]
