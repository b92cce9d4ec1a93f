"""A checkpoint is whole or it is refused; a failed one costs nothing that stood before."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from core.errors import BadModel, DiskFull
from training import checkpoint as checkpoints
from training.checkpoint import Checkpoint, load, publish_again, save, steps


def made(step: int, size: int = 50) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    model = {"a.weight": torch.randn(size, generator=generator), "a.bias": torch.randn(3, generator=generator)}
    tied = {**model, "b.weight": model["a.weight"], "view": model["a.weight"][::2]}
    return Checkpoint(step, tied, model, {"a.weight/step": torch.tensor(float(step))}, {"task": "toy", "note": "grün"})


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    wanted = made(3)
    save(tmp_path, wanted, keep=2)
    found = load(tmp_path, 3)
    for part in ("model", "average", "optimiser"):
        saved = getattr(wanted, part)
        assert getattr(found, part).keys() == saved.keys()
        assert all(torch.equal(getattr(found, part)[name], tensor) for name, tensor in saved.items())
    assert found.state == {"task": "toy", "note": "grün", "step": 3}


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        save(tmp_path, made(step), keep=2)
    assert steps(tmp_path) == [3, 10]
    assert steps(tmp_path / "nowhere") == []


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    home = save(tmp_path, made(7), keep=2)
    rng = np.random.default_rng(0)
    files = sorted(path for path in home.iterdir() if path.name != checkpoints.MANIFEST)
    for trial in range(50):
        file = files[trial % len(files)]
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        with pytest.raises(BadModel, match="the file is damaged"):
            load(tmp_path, 7)
        file.write_bytes(whole)
    load(tmp_path, 7)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": {}}', '{"files": 3}', '{"files": {"model.safetensors": {}}}'])
def test_a_damaged_manifest_is_found(tmp_path: Path, text: str) -> None:
    home = save(tmp_path, made(7), keep=2)
    (home / checkpoints.MANIFEST).write_text(text)
    with pytest.raises(BadModel):
        load(tmp_path, 7)


def test_a_missing_file_and_a_renamed_folder_are_found(tmp_path: Path) -> None:
    home = save(tmp_path, made(7), keep=2)
    home.rename(tmp_path / "step-00000009")
    with pytest.raises(BadModel, match="holds step 7"):
        load(tmp_path, 9)
    (tmp_path / "step-00000009" / "average.safetensors").unlink()
    with pytest.raises(BadModel, match=r"average\.safetensors"):
        load(tmp_path, 9)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 1 MiB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_costs_no_older_checkpoint(small_disk: Path) -> None:
    for step in (1, 2):
        save(small_disk, made(step), keep=2)
    with pytest.raises(DiskFull, match="no room"):
        save(small_disk, made(3, size=200_000), keep=2)
    assert steps(small_disk) == [1, 2]
    assert {path.name for path in small_disk.iterdir()} == {"step-00000001", "step-00000002"}
    assert torch.equal(load(small_disk, 2).model["a.weight"], made(2).model["a.weight"])


def test_a_folder_is_replaced_only_by_a_whole_one(tmp_path: Path) -> None:
    final = tmp_path / "weights"

    def good(text: str) -> None:
        def write(folder: Path) -> None:
            (folder / "a").write_text(text)

        publish_again(final, write)

    good("first")
    good("second")
    assert (final / "a").read_text() == "second"

    def fails(folder: Path) -> None:
        (folder / "a").write_text("third")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        publish_again(final, fails)
    assert (final / "a").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
