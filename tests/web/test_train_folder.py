"""A training's folder, read while it is written, cut off or damaged."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import BadRequest
from web import train_folder


def folder(home: Path, *, log: list[Any] = (), said: str = "", saved: tuple[int, ...] = ()) -> Path:  # type: ignore[assignment]
    """A training of 8 steps, as its files tell it."""
    home.mkdir(parents=True)
    (home / "settings.yaml").write_text("train: {steps: 8}\ndata: {condition: canny}\n")
    (home / "log.jsonl").write_text("".join(f"{json.dumps(row) if isinstance(row, dict) else row}\n" for row in log))
    (home / "said.log").write_text(said)
    for step in saved:
        (home / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    return home


def test_a_new_training_has_nothing_to_show(tmp_path: Path) -> None:
    told = train_folder.read(folder(tmp_path / "new", said="--- now\ncaching text 1/2\n"))
    assert (told.step, told.steps, told.saved, told.finished, told.usable, told.problem, told.grid) == (0, 8, 0, False, None, None, None)


def test_steps_done_again_after_a_cut_are_those_of_the_second_time(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss_smooth": 0.9, "lr": 1e-4}, {"step": 2, "loss_smooth": 0.8}, {"step": 3, "loss_smooth": 0.7}]
    again = [{"step": 2, "loss_smooth": 0.5}, "[1]", {"step": "x"}, '{"step": 3, "loss_smo']
    told = train_folder.read(folder(tmp_path / "cut", log=rows + again, saved=(1,)))
    assert train_folder.curve(told.log, loss="loss_smooth", rate="lr") == [(1, 0.9, "loss"), (2, 0.5, "loss"), (1, 1e-4, "rate")]
    assert (told.step, told.saved) == (2, 1)


def test_a_long_log_is_thinned_and_keeps_its_last_row(tmp_path: Path) -> None:
    rows = [{"step": step, "loss_smooth": 0.1} for step in range(1, 2002)]
    told = train_folder.read(folder(tmp_path / "long", log=rows))
    assert len(told.log) <= train_folder.MOST_POINTS
    assert told.log[-1]["step"] == told.step == 2001


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("--- 1\nlimn: no dataset: give one\n", "no dataset: give one"),
        ("--- 1\nlimn: no dataset: give one\n--- 2\ncaching text 1/2\n", None),
        ("--- 1\nlimn: controlnet-canny: stopped after step 2 of 8; the same command goes on from there\n", None),
        ("--- 1\nlimn: interrupted\n", None),
        ("--- 1\nTraceback (most recent call last):\n  File x\nRuntimeError: no room\n", "RuntimeError: no room"),
        ("--- 1\nTraceback (most recent call last):\n  in a library, ignored\ncontrolnet-canny step 3/8\n", None),
        ("", None),
    ],
)
def test_the_last_words_say_whether_it_failed(said: str, problem: str | None, tmp_path: Path) -> None:
    assert train_folder.read(folder(tmp_path / "run", said=said)).problem == problem


def test_weights_are_used_as_soon_as_there_are_some(tmp_path: Path) -> None:
    home = folder(tmp_path / "run", saved=(4,))
    for name in ("first_converged", "best_fidelity", "weights"):
        (home / name).mkdir()
        (home / name / "config.json").write_text("{}")
        usable = train_folder.read(home).usable
        assert usable is not None
        assert usable[0] == home / name
        assert not train_folder.read(home).finished
    (home / "checkpoints" / "step-00000008").mkdir()
    assert train_folder.read(home).finished


def test_the_newest_training_comes_first_and_others_folders_are_none(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder(tmp_path / name)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "a" / "log.jsonl").touch()
    assert train_folder.names(tmp_path) == ["a", "b"]
    assert train_folder.names(tmp_path / "missing") == []
    with pytest.raises(BadRequest, match="there is no training 'pictures'"):
        train_folder.read(tmp_path / "pictures")
    (tmp_path / "a" / "config.yaml").write_text("- 1\n")
    with pytest.raises(BadRequest, match=r"settings of training 'a' cannot be read \(config.yaml is no YAML\)"):
        train_folder.read(tmp_path / "a")
