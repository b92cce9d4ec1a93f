"""What a request names, found on this machine: its files, the networks of its controls, LoRAs and word lists beside the models."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import controls
from controls.prepare import takes_own_file
from core.control import Control
from core.errors import BadImage, BadRequest
from core.files import sha256_file
from core.provenance import WeightFile
from core.request import ControlUnit, Frozen, RenderRequest

if TYPE_CHECKING:  # torch is heavy: imported when a renderer is opened
    from pipelines.family import Family

ROOT = Path(__file__).resolve().parents[1]


def folders_of(name: str, base: Path | None = None) -> list[Path]:
    """Where files of a kind ("loras", "wildcards") lie: beside the base model, in the working directory, in Limn's own two folders."""
    from pipelines.engine import models_folder

    beside = [] if base is None else [base.resolve().parent / name]
    places = dict.fromkeys(folder.resolve() for folder in (*beside, Path(name), models_folder() / name, ROOT / "models" / name))
    return [folder for folder in places if folder.is_dir()]


def control_folder(unit: ControlUnit, family: "Family", *, fetch: bool = True) -> Path | None:
    """The ControlNet that a control names, or the one for its kind: beside the base model, else the published one.

    None for a base model that reads maps itself.
    """
    from pipelines.engine import default_control, resolve

    if unit.model is not None:
        return resolve(unit.model, fetch=fetch)
    beside = default_control(family.checkpoint.path, unit.kind)
    if beside is not None:
        return beside
    if family.own_control() is not None:
        return None
    published = controls.get(unit.kind).weights.get(family.name)
    if published is None:
        raise BadRequest(f"no ControlNet for {unit.kind} is known for this model: give one with model=FOLDER")
    return resolve(published.repo, published.revision, fetch=fetch)


def kind_of(unit: ControlUnit) -> tuple[Control, Frozen]:
    """A control's kind, and its settings checked."""
    control = controls.get(unit.kind)
    return control, control.parse_params(unit.params)


@lru_cache(256)
def digest_of(path: Path, changed_ns: int) -> str:
    """A file's SHA-256, computed once for as long as the file stays as it is."""
    return sha256_file(path)


def weights_of(part: str, paths: Sequence[Path]) -> tuple[WeightFile, ...]:
    """Weight files as a record names them, each once: "lora 0", "lora 1", …"""
    once = enumerate(dict.fromkeys(paths))
    return tuple(WeightFile(part=f"{part} {i}", file=path.name, sha256=digest_of(path, path.stat().st_mtime_ns)) for i, path in once)


def check_files(request: RenderRequest) -> None:
    """Raises BadImage where a picture the request begins with is not there."""
    for what, path in (("init_image", request.init_image), ("mask", request.mask)):
        if path is not None and not path.is_file():
            raise BadImage(f"{what} {str(path)!r} is not a file: check the path")


def check_unit(unit: ControlUnit, index: int) -> None:
    """Whether a control's kind and settings are known and its files are there."""
    control, params = kind_of(unit)
    for what, path in (("image", unit.image), ("mask", unit.mask)):
        if path is not None and not path.is_file():
            raise BadImage(f"control {index} ({unit.kind}): {what} {str(path)!r} is not a file: check the path")
    if not unit.ready and not control.available(params) and not takes_own_file(control, unit.image):
        raise BadRequest(f"control {index}: no {unit.kind} estimator is installed; give a finished {unit.kind} map with 'ready'")
