"""Checkpoints that are whole or absent: written aside, hashed, synced, renamed; old ones go only afterwards.

    <out>/checkpoints/step-00001000/
        model.safetensors       every trainable module, as `<module>.<tensor>`
        average.safetensors     their moving average
        optimiser.safetensors   AdamW's moments and step counts, as `<parameter>/<moment>`
        state.json              step, sample counter, settings, versions
        manifest.json           SHA-256 and size of the files above

Nothing in a checkpoint is a pickle.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.errors import BadModel, DiskFull

MANIFEST = "manifest.json"
PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on as if it had not stopped."""

    step: int
    model: dict[str, Tensor]
    average: dict[str, Tensor]
    optimiser: dict[str, Tensor]
    state: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Publishes `<folder>/step-<step>` and then removes all but the newest `keep`.

    Raises:
        DiskFull: nothing was published and the older checkpoints are as they were.
    """
    final = folder / f"{PREFIX}{checkpoint.step:08d}"
    with publishing(final) as aside:
        for name in ("model", "average", "optimiser"):
            save_file(_apart(getattr(checkpoint, name)), aside / f"{name}.safetensors")
        (aside / "state.json").write_text(json.dumps({**checkpoint.state, "step": checkpoint.step}, indent=1))
        files = {path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in sorted(aside.iterdir())}
        (aside / MANIFEST).write_text(json.dumps({"files": files}, indent=1))
    for old in steps(folder)[:-keep]:
        shutil.rmtree(folder / f"{PREFIX}{old:08d}")
    return final


def load(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of `step`, every byte checked against its manifest.

    Raises:
        BadModel: a file is missing, or is not what was written.
    """
    home = folder / f"{PREFIX}{step:08d}"
    try:
        manifest = json.loads((home / MANIFEST).read_text())["files"]
        for name, wanted in manifest.items():
            found = sha256(home / name)
            if found != wanted["sha256"]:
                raise BadModel(
                    f"{home / name}: SHA-256 is {found[:12]}…, the manifest says {str(wanted['sha256'])[:12]}…: the file is damaged"
                )
        state = json.loads((home / "state.json").read_text())
        tensors = {name: load_file(home / f"{name}.safetensors") for name in ("model", "average", "optimiser")}
        if state["step"] != step or "state.json" not in manifest:
            raise BadModel(f"{home}: holds step {state['step']}: the folder was renamed or its manifest changed")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise BadModel(f"{home}: cannot be read ({type(error).__name__}: {error}): the checkpoint is damaged") from None
    return Checkpoint(step=step, state=state, **tensors)


def steps(folder: Path) -> list[int]:
    """The steps of the published checkpoints, ascending."""
    found = (path.name.removeprefix(PREFIX) for path in folder.glob(f"{PREFIX}*") if path.is_dir())
    return sorted(int(digits) for digits in found if digits.isdigit())


def set_aside(folder: Path, step: int) -> Path:
    """Takes a damaged checkpoint out of the count without deleting it."""
    damaged = folder / f"damaged-{PREFIX}{step:08d}"
    shutil.rmtree(damaged, ignore_errors=True)
    (folder / f"{PREFIX}{step:08d}").rename(damaged)
    return damaged


def sweep(folder: Path) -> None:
    """Removes what a killed writer left half-written. Only for the one process that writes here."""
    for leftover in [*folder.glob(".*.writing"), *folder.glob(".*.replaced")]:
        shutil.rmtree(leftover)


@contextmanager
def publishing(final: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `final` in one rename when the block ends well, and vanishes when it does not.

    An older `final` is replaced. Every file and the parent folder are synced to disk.

    Raises:
        DiskFull: the disk had no room.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = final.parent / f".{final.name}.writing"
    replaced = final.parent / f".{final.name}.replaced"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        yield aside
        for path in sorted(aside.rglob("*"), reverse=True):
            _sync(path)
        _sync(aside)
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
        aside.rename(final)
        _sync(final.parent)
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "os error 28" in str(error)
        if full:
            room = shutil.disk_usage(final.parent).free / 2**20
            raise DiskFull(f"{final}: no room to write it, {room:.0f} MiB are free: make room and start again, nothing was lost") from None
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CPU copies where safetensors needs them: no two tensors in one storage, all contiguous."""
    seen: set[int] = set()
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        out[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return out


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
