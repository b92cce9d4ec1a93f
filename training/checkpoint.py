"""Checkpoints that are whole or absent: written aside, hashed, synced, renamed; old ones go only afterwards.

    <out>/checkpoints/step-00001000/
        model.safetensors       every trainable module, as `<module>.<tensor>`
        average.safetensors     their moving average
        optimiser.safetensors   AdamW's moments and step counts, as `<parameter>/<moment>`
        state.json              step, sample counter, settings, versions
        manifest.json           SHA-256 and size of the files above

Nothing in a checkpoint is a pickle.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.errors import BadModel
from core.files import publish_folder

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

    def write(aside: Path) -> None:
        for name in ("model", "average", "optimiser"):
            save_file(_apart(getattr(checkpoint, name)), aside / f"{name}.safetensors")
        (aside / "state.json").write_text(json.dumps({**checkpoint.state, "step": checkpoint.step}, indent=1))
        files = {path.name: {"sha256": _sha256(path), "bytes": path.stat().st_size} for path in sorted(aside.iterdir())}
        (aside / MANIFEST).write_text(json.dumps({"files": files}, indent=1))

    final = folder / f"{PREFIX}{checkpoint.step:08d}"
    publish_folder(final, write)
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
            found = _sha256(home / name)
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


def newest_whole(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and a line for each newer one that is damaged; those are moved out of the way.

    Raises:
        BadModel: there are checkpoints and none is whole; they stay where they are, so that this is said again and again.
    """
    found, damaged = steps(folder), dict[int, BadModel]()
    for step in reversed(found):
        try:
            whole = load(folder, step)
        except BadModel as error:
            damaged[step] = error
        else:
            aside = "WARNING: {}; moved to {}, using the one before"
            return whole, [aside.format(error, set_aside(folder, other).name) for other, error in damaged.items()]
    if damaged:
        raise BadModel(f"{folder}: none of {len(found)} checkpoints is whole ({damaged[found[-1]]}): start anew with another `out`")
    return None, []


def set_aside(folder: Path, step: int) -> Path:
    """Takes a damaged checkpoint out of the count without deleting it."""
    damaged = folder / f"damaged-{PREFIX}{step:08d}"
    shutil.rmtree(damaged, ignore_errors=True)
    (folder / f"{PREFIX}{step:08d}").rename(damaged)
    return damaged


def publish_again(final: Path, write: Callable[[Path], None]) -> None:
    """Publishes a folder that may stand there already: the new one is whole on the disk before the old one gives way.

    Raises:
        DiskFull: the older folder is as it was.
    """
    new, old = final.with_name(f"{final.name}.new"), final.with_name(f"{final.name}.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    publish_folder(new, write)
    if final.exists():
        final.rename(old)
    new.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _sha256(path: Path) -> str:
    """Read anew each time: core.files.sha256_file trusts a file whose time of change is the same."""
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
