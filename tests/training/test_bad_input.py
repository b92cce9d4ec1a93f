"""What goes wrong before a training begins is named, and nothing is left behind; what fills up in the middle loses nothing."""

import errno
from pathlib import Path
from typing import Any

import pytest

from core.errors import BadImage, BadModel, BadRequest, DiskFull, LimnError, Mismatch
from tests.tinymodels import build_controlnet
from tests.training.test_controlnet import config
from training.run import train_controlnet


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda folder: (folder / "metadata.jsonl").write_text(""), BadRequest, "has no rows"),
        (lambda folder: [(folder / "canny" / f"{i}.png").unlink() for i in range(5)], BadRequest, "5 of the 20 files .* are missing"),
        (lambda folder: _cut(folder / "images" / "0.png"), BadImage, r"0\.png"),
        (lambda folder: _narrow(folder / "canny" / "0.png"), Mismatch, "the same proportions"),
        (lambda folder: _latin(folder / "metadata.jsonl"), BadRequest, "is not UTF-8"),
    ],
    ids=["no pairs", "half missing", "cut picture", "other size", "latin-1"],
)
def test_a_bad_dataset_is_named_before_anything_is_trained(
    damage: Any,
    error: type[LimnError],
    message: str,
    base: Path,
    dataset: Path,
    tmp_path: Path,
) -> None:
    import shutil

    folder = tmp_path / "data"
    shutil.copytree(dataset, folder, ignore=shutil.ignore_patterns("cache"))
    damage(folder)
    with pytest.raises(error, match=message):
        train_controlnet(config(base, folder, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_base_that_is_a_controlnet_is_refused(base: Path, dataset: Path, tmp_path: Path) -> None:
    net = build_controlnet(tmp_path / "net", base)
    with pytest.raises(BadModel):
        train_controlnet(config(net, dataset, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_up_keeps_the_checkpoint_before(
    base: Path,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from training import checkpoint as checkpoints

    written, save_file = [0], checkpoints.save_file

    def full(tensors: Any, path: Path) -> None:
        written[0] += 1
        if written[0] > 4:  # the second checkpoint's second file
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(DiskFull):
        train_controlnet(config(base, dataset, tmp_path / "run"))
    assert checkpoints.steps(tmp_path / "run" / "checkpoints") == [2]
    assert checkpoints.load(tmp_path / "run" / "checkpoints", 2).step == 2
    monkeypatch.undo()
    assert train_controlnet(config(base, dataset, tmp_path / "run", train={"resume": "must"})).step == 4


def _cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _narrow(path: Path) -> None:
    from core.images import decode, encode_png

    path.write_bytes(encode_png(decode(path)[:, :40].copy()))


def _latin(path: Path) -> None:
    path.write_bytes(path.read_text().replace("grass", "Größe").encode("latin-1"))
