"""TensorBoard shows a run that was cut as one line; Weights & Biases that cannot be reached is said before training, or costs nothing."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import BadRequest
from training.board import Board, check_installed


def test_what_is_measured_again_after_a_cut_counts_once(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    before, after = Board(tmp_path), Board(tmp_path)
    for step in (10, 20, 30):
        before.add(step, {"loss": 1.0})
    for step in (20, 30, 40):  # killed after step 30, the last checkpoint was of step 10
        after.add(step, {"loss": 2.0})
    found = accumulator.EventAccumulator(str(tmp_path))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(10, 1.0), (20, 2.0), (30, 2.0), (40, 2.0)]


def refusing(error: type[Exception]) -> Any:
    """Raises as wandb 0.31 does where there is no key."""

    def refuse(**values: Any) -> None:
        raise error("No API key configured.\nUse `wandb login` to log in.")

    return refuse


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is used of the library, which is not installed here, as it behaves without a key."""
    error = type("Error", (Exception,), {})
    stand_in = SimpleNamespace(login=refusing(error), init=refusing(error), errors=SimpleNamespace(Error=error))
    monkeypatch.setitem(sys.modules, "wandb", stand_in)


def test_who_is_not_logged_in_hears_it_before_anything_is_built(wandb: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(BadRequest, match=r"'mine': nobody is logged in \(No API key configured. Use .*: run `wandb login`, set WANDB_MODE"):
        check_installed("mine")
    check_installed("")
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_installed("mine")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("RANK", "1")  # one process asks
    check_installed("mine")


def test_a_project_that_is_not_reached_later_ends_no_training(wandb: None, capsys: pytest.CaptureFixture[str]) -> None:
    board = Board(None, "mine")
    for step in (1, 2):
        board.add(step, {"loss": 1.0})
    said = capsys.readouterr().out
    assert said.count("Weights & Biases gets nothing of this run: No API key configured. Use") == 1


def test_a_folder_of_that_name_is_not_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb writes its runs into a folder `wandb` where it is started, which can be imported."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(entry for entry in sys.path if not (Path(entry) / "wandb").exists())])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(BadRequest, match="not installed"):
        check_installed("mine")
    assert sys.modules.pop("wandb").__file__ is None
