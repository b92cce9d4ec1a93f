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
        (lambda folder: _rename(folder, '"canny":', '"cany":'), BadRequest, "unknown column 'canny': did you mean 'cany'"),
        (lambda folder: _rename(folder, '"text":', '"test":'), BadRequest, "unknown column 'text': did you mean 'test'"),
        (lambda folder: (_double(folder), _cut(folder / "canny" / "1.png")), BadImage, r"canny/1\.png"),
        (lambda folder: (_double(folder), _cut(folder / "images" / "3.png")), BadImage, r"images/3\.png"),
        (lambda folder: (_double(folder), _narrow(folder / "canny" / "5.png")), Mismatch, "the same proportions"),
        (lambda folder: _as_folders(folder), BadRequest, r"'.*3\.txt' is not UTF-8 \(byte \d+\): save it as UTF-8"),
        (
            lambda folder: (_as_folders(folder), [(folder / "canny" / f"{i}.png").unlink() for i in range(5)]),
            BadRequest,
            "5 of 10 pairs have no condition in .*canny', the first is '0'",
        ),
    ],
    ids=[
        "no pairs", "half missing", "cut picture", "other size", "latin-1", "no such column", "no such caption column",
        "cut condition far in", "cut picture far in", "other size far in", "latin-1 captions", "half of a folder missing",
    ],
)  # fmt: skip
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
    with pytest.raises(error, match=message) as raised:
        train_controlnet(config(base, folder, tmp_path / "run"))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_what_is_changed_after_it_was_cached_is_looked_at_again(base: Path, dataset: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "data"
    shutil.copytree(dataset, folder, ignore=shutil.ignore_patterns("cache"))
    _double(folder)  # so that the few pairs that are looked at first do not hold the fifth
    train_controlnet(config(base, folder, tmp_path / "run"))
    looked_at = (folder / "cache" / "checked.json").read_bytes()
    shards = sorted((folder / "cache").rglob("shard-*"))
    condition = folder / "canny" / "5.png"
    whole = condition.read_bytes()
    _narrow(condition)
    with pytest.raises(Mismatch, match=r"canny/5\.png' 40x72: both need the same proportions"):
        train_controlnet(config(base, folder, tmp_path / "again"))
    condition.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadImage, match=r"canny/5\.png"):
        train_controlnet(config(base, folder, tmp_path / "again"))
    assert not (tmp_path / "again").exists()
    condition.write_bytes(whole)
    train_controlnet(config(base, folder, tmp_path / "again"))
    assert (folder / "cache" / "checked.json").read_bytes() == looked_at
    assert sorted((folder / "cache").rglob("shard-*")) == shards


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_goes_while_it_is_trained_on_is_named_in_a_line(base: Path, dataset: Path, tmp_path: Path, workers: int) -> None:
    import shutil

    folder = tmp_path / "data"
    shutil.copytree(dataset, folder, ignore=shutil.ignore_patterns("cache"))

    def cut(run: Any) -> None:
        for path in (folder / "canny").glob("*.png"):
            path.write_bytes(b"")

    with pytest.raises(BadImage, match=r"canny/\d\.png") as raised:
        train_controlnet(config(base, folder, tmp_path / "run", train={"workers": workers, "steps": 40}), cut)
    assert "\n" not in str(raised.value)


def test_a_base_that_is_a_controlnet_is_refused(base: Path, dataset: Path, tmp_path: Path) -> None:
    net = build_controlnet(tmp_path / "net", base)
    with pytest.raises(BadModel, match=r"is itself a ControlNet \(ControlNetModel\): give the model .*, name it as init"):
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


def test_a_disk_without_room_for_a_line_of_the_log_is_said(base: Path, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(DiskFull, match=r"no room to write in '.*/run' \(No space left on device\): free some space") as raised:
        train_controlnet(config(base, dataset, tmp_path / "run", train={"checkpoint_every": 1}))
    assert "\n" not in str(raised.value)
    (tmp_path / "run" / "log.jsonl").unlink()
    assert train_controlnet(config(base, dataset, tmp_path / "run", train={"resume": "must", "checkpoint_every": 1})).step == 4


def _cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _narrow(path: Path) -> None:
    from core.images import decode, encode_png

    path.write_bytes(encode_png(decode(path)[:, :40].copy()))


def _rename(folder: Path, old: str, new: str) -> None:
    path = folder / "metadata.jsonl"
    path.write_text(path.read_text().replace(old, new))


def _double(folder: Path) -> None:
    """Twice as many rows as are looked at before the cache is made: every other one is not."""
    path = folder / "metadata.jsonl"
    path.write_text(path.read_text() * 2)


def _as_folders(folder: Path) -> None:
    """The pairs as files of the same names, one caption in another encoding."""
    (folder / "metadata.jsonl").unlink()
    for number in range(10):
        (folder / "images" / f"{number}.txt").write_bytes(("Größe" if number == 3 else "a sphere").encode("latin-1"))


def _latin(path: Path) -> None:
    path.write_bytes(path.read_text().replace("grass", "Größe").encode("latin-1"))
