"""Real trainings of a tiny model in processes of their own: one at a time, found again, stopped, resumed."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import BadRequest
from tests.web.pairs import write_pairs
from training.config import ControlNetConfig
from web import train_folder
from web.train_folder import Told
from web.train_process import Trainings
from web.train_settings import Places

pytestmark = pytest.mark.timeout(1500)  # every start imports the libraries anew
PATIENCE_S = 400.0


@pytest.fixture
def trainings(tmp_path: Path) -> Iterator[Trainings]:
    made = Trainings(Places(tmp_path / "runs", tmp_path))
    yield made
    made.close()
    left = made.running()
    if left is not None:  # a test has failed, and its training never ends by itself
        os.kill(left.process, signal.SIGKILL)
    assert left is None


def config(base: Path, out: Path, data: Path) -> ControlNetConfig:
    """A training that never ends by itself."""
    return ControlNetConfig.model_validate(
        {
            "base": str(base),
            "hint_channels": [4, 4, 4, 4],
            "data": {"folder": data, "condition": "canny", "width": 64, "height": 64},
            "monitor": {"every": 0, "tensorboard": False},
            "train": {"out": out, "steps": 10**6, "batch_size": 2, "device": "cpu", "log_every": 1},
        }
    )


def wait(trainings: Trainings, name: str, until: str) -> Told:
    """The training's folder as soon as it has a step more (`until` "step"), or has ended ("end")."""
    began, first = time.monotonic(), train_folder.read(trainings.runs / name).step
    while True:
        told = train_folder.read(trainings.runs / name)
        running = trainings.running()
        if (until == "end" and running is None) or (until == "step" and told.step > first):
            return told
        assert until == "end" or running is not None, told.said
        assert time.monotonic() - began < PATIENCE_S, told.said
        time.sleep(0.1)


def test_a_dataset_that_is_not_there_is_refused_at_once(trainings: Trainings, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="dataset 'nowhere' is not there: choose another"):
        trainings.start(config(tmp_path / "base", trainings.runs / "mine", tmp_path / "nowhere"))
    assert not trainings.runs.exists()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "uploads", "uploads/..", "uploads/../other", "uploads/link", "uploads/none", "uploads/one/canny", "/etc"]
)
def test_nothing_but_an_upload_is_removed(name: str, trainings: Trainings, tmp_path: Path) -> None:
    (tmp_path / "uploads").mkdir()
    for folder in (write_pairs(tmp_path / "uploads" / "one", 1), write_pairs(tmp_path / "other", 1)):
        assert (folder / "canny" / "0.png").is_file()
    (tmp_path / "uploads" / "link").symlink_to(tmp_path / "other")
    with pytest.raises(BadRequest, match="is no uploaded dataset: choose one from 'uploads' first"):
        trainings.remove_upload(str(tmp_path / name))
    assert len(list(tmp_path.rglob("0.png"))) == 4
    assert trainings.remove_upload(f"{tmp_path / 'uploads' / 'one'} ") == "one"
    assert not (tmp_path / "uploads" / "one").exists()


def test_one_training_at_a_time_stopped_and_resumed(models: Path, trainings: Trainings, tmp_path: Path) -> None:
    settings = config(models / "base", trainings.runs / "mine", write_pairs(tmp_path / "uploads" / "pairs"))
    assert trainings.start(settings) == "mine"
    running = trainings.running()
    assert running is not None
    assert running.name == "mine"
    other = settings.model_copy(update={"train": settings.train.model_copy(update={"out": trainings.runs / "other"})})
    with pytest.raises(BadRequest, match="training 'mine' is running, and there is one at a time"):
        trainings.start(other)
    assert not (trainings.runs / "other").exists()
    with pytest.raises(BadRequest, match="training 'mine' is reading 'pairs': stop it first"):
        trainings.remove_upload(str(tmp_path / "uploads" / "pairs"))
    assert wait(trainings, "mine", "step").step >= 1

    later = Trainings(trainings.places)  # another page, as after a crash of the first
    assert later.running() == running
    with pytest.raises(BadRequest, match="is running"):
        later.resume(trainings.runs / "mine")
    later.stop()
    told = wait(trainings, "mine", "end")
    assert (told.problem, told.saved) == (None, told.step)
    assert told.saved >= 1
    with pytest.raises(BadRequest, match="'mine' exists already"):
        trainings.start(settings)

    later.resume(trainings.runs / "mine")
    assert wait(later, "mine", "step").step > told.step
    later.close()  # as when the page is left with Ctrl-C
    again = wait(later, "mine", "end")
    assert (again.problem, again.saved) == (None, again.step)
    assert again.saved > told.saved
    assert [row["step"] for row in again.log] == list(range(1, again.step + 1))


def test_what_fails_says_why_and_can_be_started_again(models: Path, trainings: Trainings, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    settings = config(models / "base", trainings.runs / "mine", tmp_path / "empty")
    trainings.start(settings)
    told = wait(trainings, "mine", "end")
    assert told.problem is not None
    assert told.problem.startswith(f"dataset {str(tmp_path / 'empty')!r} is of no known format")
    trainings.start(settings)
    trainings.stop()
    stopped = wait(trainings, "mine", "end")
    assert (stopped.saved, stopped.problem) == (0, None)


def test_a_folder_of_something_else_is_left_alone(trainings: Trainings, models: Path, tmp_path: Path) -> None:
    (trainings.runs / "photos").mkdir(parents=True)
    (trainings.runs / "photos" / "one.txt").write_text("mine")
    with pytest.raises(BadRequest, match="'photos' exists already"):
        trainings.start(config(models / "base", trainings.runs / "photos", tmp_path))
    assert [path.name for path in (trainings.runs / "photos").iterdir()] == ["one.txt"]
    with pytest.raises(BadRequest, match="there is no training 'photos'"):
        trainings.resume(trainings.runs / "photos")
    (tmp_path / "file").touch()
    blocked = Trainings(Places(tmp_path / "file" / "runs", tmp_path))
    with pytest.raises(BadRequest, match="folder 'runs' cannot be written to"):
        blocked.start(config(models / "base", blocked.runs / "mine", tmp_path))
    assert blocked.running() is None
