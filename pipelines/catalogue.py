"""What models are installed, fetching more, and whether they are still what they were.

Models lie in three places: beside Limn itself, in Limn's own folder ($LIMN_MODELS, else ~/.cache/limn), and in the hub's cache.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core.errors import BadModel, LimnError
from core.files import publish, sha256_file
from pipelines.checkpoint import lone_file, open_checkpoint
from pipelines.engine import FILES, TOYLAND, family_of, from_hub, hub_errors, is_hub_id, models_folder
from pipelines.layouts.header import Header
from pipelines.loading import PICKLES, read_config, weight_files
from pipelines.lora_file import reads_maps

Source = Literal["embedded", "folder", "hub"]
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NO_MODELS = {"loras", "embeddings", "wildcards"}  # folders of other things
# The families of controls by class; those for UNets by the width of the text that they read.
_FAMILIES = {"FluxControlNetModel": "flux", "SD3ControlNetModel": "sd3", "ControlNetUnionModel": "sdxl"}
_FAMILIES |= {"FluxControlLora": "flux", "LimnFluxControlNetModel": "flux", "LimnSD3ControlNetModel": "sd3"}
_FAMILIES |= {"QwenImageControlNetModel": "qwenimage", "SanaControlNetModel": "sana", "ZImageControlNetModel": "zimage"}
_SDXL_WIDTH = 2048
CONTROLS = ("controlnet", "adapter", "control-lora")  # kinds of what a control may name as its model


@dataclass(frozen=True)
class Installed:
    """One model, control, LoRA or estimator.

    name: what a request calls it; family: "" where it cannot be told; problem: why it cannot be used, else "".
    """

    name: str
    kind: str
    family: str
    source: Source
    path: Path
    files: tuple[Path, ...]
    problem: str = ""

    @property
    def size(self) -> int:
        """Bytes of its weights."""
        return sum(file.stat().st_size for file in self.files if file.is_file())

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each weight file by its path within the model; the hub's cache knows them, others are read once and remembered."""
        found = {}
        for file in self.files:
            known = known_hash(file)
            found[self.within(file)] = known or sha256_file(file)
            if known is None and self.source == "folder" and str(file) not in _remembered():  # what was first seen stays, for `check`
                _remember(file, found[self.within(file)])
        return found

    def within(self, file: Path) -> str:
        """A file's path within the model."""
        return file.relative_to(self.path).as_posix() if file != self.path else file.name


def installed() -> list[Installed]:
    """Everything that can be drawn or steered with on this machine, by place and name."""
    return [*_in_folder(TOYLAND.parent, "embedded"), *_in_folder(models_folder(), "folder"), *_in_hub()]


def add(name: str) -> Installed:
    """A model of the hub, downloaded unless it is here. name: 'owner/name' or 'owner/name@revision'.

    Raises:
        BadModel: it cannot be had, has no safetensors, or is nothing that Limn can use.
    """
    repo, _, revision = name.partition("@")
    if not is_hub_id(repo):
        raise BadModel(f"{name!r} is no name of a hub model: write OWNER/NAME, or copy a model of your own into {str(models_folder())!r}")
    _refuse_pickles(repo, revision or None)
    found = _described(from_hub(repo, revision or None), name, "hub")
    if found is None or found.problem:
        raise BadModel(f"{name!r} was fetched, and cannot be used: {found.problem if found else 'it holds no weights of a known kind'}")
    return found


def check(one: Installed) -> list[str]:
    """What is wrong with an installed model now: incomplete, cut short, or other bytes than were published or first seen."""
    problems = [one.problem] if one.problem else []
    known = _remembered()
    for file in one.files:
        if not file.is_file():
            problems.append(f"{one.within(file)} is missing: fetch the model again")
            continue
        now, before = sha256_file(file), _blob_hash(file) or known.get(str(file), {}).get("sha256")
        if before is not None and before != now:
            problems.append(f"{one.within(file)} is damaged: its SHA-256 is {now[:12]}…, it was {before[:12]}…; fetch the model again")
        elif before is None and one.source == "folder":
            _remember(file, now)
    return problems


def renew(one: Installed) -> None:
    """The model's files were written anew on purpose: what they are now is what `check` compares with."""
    for file in one.files:
        _remember(file, sha256_file(file))


def known_hash(file: Path) -> str | None:
    """A file's SHA-256 without reading it, where the hub's cache or an earlier look knows it."""
    entry = _remembered().get(str(file))
    status = file.stat()
    if entry is not None and (entry["bytes"], entry["mtime_ns"]) == (status.st_size, status.st_mtime_ns):
        return str(entry["sha256"])
    return _blob_hash(file)


def _in_folder(root: Path, source: Source) -> Iterator[Installed]:
    """Models in folders and single files, at any depth, each once; a folder that is a model is not looked into."""
    waiting, seen = sorted(root.iterdir()) if root.is_dir() else [], {root.resolve()}
    while waiting:
        path = waiting.pop(0)
        if path.name.startswith(".") or (path.is_dir() and path.resolve() in seen):  # a link may lead back
            continue
        seen.add(path.resolve())
        found = _described(path, path.relative_to(root).as_posix(), source)
        if found is not None:
            yield found
        elif path.is_dir() and path.name not in _NO_MODELS - {"loras"}:
            waiting = [*sorted(path.iterdir()), *waiting]


def _in_hub() -> Iterator[Installed]:
    from huggingface_hub import constants

    for repo in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
        name = "/".join(repo.name.split("--")[1:])
        refs = {file.read_text().strip(): file.name for file in repo.glob("refs/*") if file.is_file()}
        for snapshot in sorted(repo.glob("snapshots/*")):
            revision = refs.get(snapshot.name, snapshot.name)
            found = _described(snapshot, name if revision == "main" else f"{name}@{revision}", "hub")
            if found is not None:
                yield found


def _described(path: Path, name: str, source: Source) -> Installed | None:
    """The model at a path, sound or not; None where there is none."""
    name = "toyland" if source == "embedded" and path == TOYLAND / "base" else name
    if path.is_file():
        return _described_file(path, name.removesuffix(path.suffix), source) if path.suffix in FILES else None
    try:
        if (path / "model_index.json").is_file():
            checkpoint = open_checkpoint(path)
            family = family_of(checkpoint)
            parts = [part for part in checkpoint.classes if part in (*family.weight_parts, "text_encoder_3") and (path / part).is_dir()]
            files = tuple(file for part in parts for file in checkpoint.files(part))
            lacking = next((part for part in family.weight_parts if part not in parts), None)
            problem = f"it has no {lacking!r}: fetch it again" if lacking and family.name != "sdxl" else ""
            return Installed(name, "model", family.name, source, path, files, problem)
        if (path / "config.json").is_file():
            config = read_config(path / "config.json")
            files = tuple(weight_files(path))
            return Installed(name, _kind(config), _family(config), source, path, files)
    except LimnError as error:
        return Installed(name, "?", "", source, path, tuple(sorted(path.rglob("*.safetensors"))), str(error))
    lone = lone_file(path) if source == "hub" else None
    found = None if lone is None else _described_file(lone, name, source)
    return found if found is not None and found.kind in CONTROLS else None


def _described_file(path: Path, name: str, source: Source) -> Installed:
    try:
        header = Header.read(path)
        if any("lora" in key for key in header.shapes) and not reads_maps(header.shapes):
            return Installed(name.removeprefix("loras/"), "lora", "", source, path, (path,))
        checkpoint = open_checkpoint(path)
        config = {"_class_name": checkpoint.classes[""]}
        if "Pipeline" in config["_class_name"]:
            return Installed(name, "model", family_of(checkpoint).name, source, path, (path,))
        config |= checkpoint.config("")
        return Installed(name, _kind(config), _family(config), source, path, (path,))
    except LimnError as error:
        return Installed(name, "?", "", source, path, (path,), str(error))


def _kind(config: dict[str, Any]) -> str:
    name = str(config.get("_class_name") or next(iter(config.get("architectures") or []), config.get("model_type", "?")))
    if "ControlNet" in name:
        return "controlnet"
    known = {"T2IAdapter": "adapter", "AutoencoderTiny": "preview", "FluxControlLora": "control-lora"}
    return known.get(name, "estimator" if "_class_name" not in config else name)


def _family(config: dict[str, Any]) -> str:
    name = str(config.get("_class_name", ""))
    if name in ("ControlNetModel", "LimnControlNetModel"):
        return "sdxl" if config.get("cross_attention_dim") == _SDXL_WIDTH or config.get("addition_embed_type") else "sd"
    return _FAMILIES.get(name, "")


def _refuse_pickles(repo: str, revision: str | None) -> None:
    """
    Raises:
        BadModel: the hub has this model's weights as pickles alone.
    """
    from huggingface_hub import HfApi

    try:
        names = [one.rfilename for one in HfApi().model_info(repo, revision=revision).siblings or ()]
    except hub_errors():
        return  # whether it can be had is said where it is fetched
    pickles = [name for name in names if name.lower().endswith(PICKLES)]
    if pickles and not any(name.endswith(".safetensors") for name in names):
        raise BadModel(
            f"hub model {repo!r} has weights only as {pickles[0]}, a pickle, and reading one can run any code: "
            "ask for a safetensors revision, or convert it (huggingface.co/spaces/safetensors/convert)"
        )


def _blob_hash(file: Path) -> str | None:
    """The hub's cache keeps large files under their SHA-256 and links to them."""
    target = file.resolve().name if file.is_symlink() else ""
    return target if _DIGEST.fullmatch(target) else None


def _index() -> Path:
    return models_folder() / "hashes.json"


def _remembered() -> dict[str, dict[str, Any]]:
    """What files' hashes were when they were first seen; it can be deleted."""
    try:
        values = json.loads(_index().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    entries = values.items() if isinstance(values, dict) else ()
    return {file: entry for file, entry in entries if isinstance(entry, dict) and entry.keys() >= {"bytes", "mtime_ns", "sha256"}}


def _remember(file: Path, sha256: str) -> None:
    status = file.stat()
    entry = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256}
    publish(_index(), json.dumps(_remembered() | {str(file): entry}, indent=1).encode())
