"""A model's files, whatever their layout: what a family loads its parts from."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from core.errors import BadModel
from pipelines.loading import WEIGHT_NAMES, load_part, load_tokenizer, read_config, weight_files
from pipelines.place import Place


class Checkpoint(Protocol):
    """One base model, ControlNet or adapter on disk. A part is a subfolder's name in the diffusers layout; "" is a model of one part.

    path: folder or file. classes: the class of every part by name, as in `model_index.json`; settings: what stands there besides.
    """

    path: Path

    @property
    def classes(self) -> Mapping[str, str]: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def has(self, part: str) -> bool:
        """Whether a part is there, as far as can be told without reading it."""
        ...

    def remedy(self, part: str) -> str:
        """What to do about a part that is not there."""
        ...

    def config(self, part: str) -> dict[str, Any]:
        """The part's own configuration: config.json, or scheduler_config.json for "scheduler".

        Raises:
            BadModel: it is missing or damaged.
        """
        ...

    def network(self, kind: Any, part: str, place: Place) -> Any:
        """A part as an object of its class in diffusers or transformers, in evaluation mode, without gradients, on its place.

        Raises:
            BadModel: a file is missing or damaged, or tensors are missing or of another shape.
        """
        ...

    def tokenizer(self, kind: Any, part: str) -> Any:
        """A part that is a tokenizer.

        Raises:
            BadModel: it cannot be read.
        """
        ...

    def files(self, part: str) -> list[Path]:
        """The weight files of a part, whole as far as their headers say.

        Raises:
            BadModel: there is none, or one is damaged.
        """
        ...


class Folder:
    """A checkpoint in the diffusers layout; see `Checkpoint`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def classes(self) -> Mapping[str, str]:
        """From `model_index.json`, or from `config.json` for a model of one part."""
        index = self.path / "model_index.json"
        if not index.is_file() and (self.path / "config.json").is_file():
            name = read_config(self.path / "config.json").get("_class_name")
            return {"": name} if isinstance(name, str) else {}
        values = read_config(index)
        parts = {key: value[1] for key, value in values.items() if isinstance(value, list) and len(value) == 2 and value[1]}
        return parts | ({"": values["_class_name"]} if isinstance(values.get("_class_name"), str) else {})

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The plain values of `model_index.json`, such as SDXL's `force_zeros_for_empty_prompt`."""
        index = self.path / "model_index.json"
        values = read_config(index) if index.is_file() else {}
        return {key: value for key, value in values.items() if not isinstance(value, list) and not key.startswith("_")}

    def has(self, part: str) -> bool:
        """See `Checkpoint.has`."""
        return part in self.classes and (self.path / part).is_dir()

    def remedy(self, part: str) -> str:
        """See `Checkpoint.remedy`."""
        return "give a complete diffusers folder"

    def config(self, part: str) -> dict[str, Any]:
        """See `Checkpoint.config`."""
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        return read_config(self.path / part / name)

    def network(self, kind: Any, part: str, place: Place) -> Any:
        """See `Checkpoint.network`."""
        return load_part(kind, self.path / part, place)

    def tokenizer(self, kind: Any, part: str) -> Any:
        """See `Checkpoint.tokenizer`."""
        return load_tokenizer(kind, self.path / part)

    def files(self, part: str) -> list[Path]:
        """See `Checkpoint.files`."""
        return weight_files(self.path / part)


class Wrapped:
    """A checkpoint that answers as another does; what it does otherwise is for those who inherit. See `Checkpoint`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.path = checkpoint, checkpoint.path

    @property
    def classes(self) -> Mapping[str, str]:
        """See `Checkpoint.classes`."""
        return self.checkpoint.classes

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Checkpoint.settings`."""
        return self.checkpoint.settings

    def has(self, part: str) -> bool:
        """See `Checkpoint.has`."""
        return self.checkpoint.has(part)

    def remedy(self, part: str) -> str:
        """See `Checkpoint.remedy`."""
        return self.checkpoint.remedy(part)

    def config(self, part: str) -> dict[str, Any]:
        """See `Checkpoint.config`."""
        return self.checkpoint.config(part)

    def network(self, kind: Any, part: str, place: Place) -> Any:
        """See `Checkpoint.network`."""
        return self.checkpoint.network(kind, part, place)

    def tokenizer(self, kind: Any, part: str) -> Any:
        """See `Checkpoint.tokenizer`."""
        return self.checkpoint.tokenizer(kind, part)

    def files(self, part: str) -> list[Path]:
        """See `Checkpoint.files`."""
        return self.checkpoint.files(part)


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at a path: a folder, or one file. A file with its config.json beside it is the folder they are in; a folder that holds
    one control's file and says nothing of it is that file.

    Raises:
        BadModel: a file that is damaged, a pickle, or neither a model nor a control.
    """
    alone = None if path.is_file() else lone_file(path)
    if not path.is_file() and alone is None:
        return Folder(path)
    if path.name in WEIGHT_NAMES and (path.parent / "config.json").is_file():
        return Folder(path.parent)
    from pipelines.singlefile import SingleFile  # which reads parts that it lacks from a Folder

    if alone is None:
        return SingleFile(path)
    found = SingleFile(alone)
    return Folder(path) if found.family else found


def lone_file(folder: Path) -> Path | None:
    """The one .safetensors file of a folder that has no configuration of any kind, as some controls are published."""
    if not folder.is_dir() or any((folder / name).is_file() for name in ("model_index.json", "config.json")):
        return None
    files = sorted(folder.glob("*.safetensors"))
    return files[0] if len(files) == 1 else None


def need(checkpoint: Checkpoint, parts: tuple[str, ...], title: str) -> None:
    """
    Raises:
        BadModel: one of the parts that a model of this family consists of is not there.
    """
    for part in parts:
        if not checkpoint.has(part):
            where = str(checkpoint.path)
            raise BadModel(f"model {where!r} has no {part!r}: a {title} model needs {', '.join(parts)}; {checkpoint.remedy(part)}")
