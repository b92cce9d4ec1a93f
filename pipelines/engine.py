"""Finding models, loading them once, and deciding where they compute."""

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch

import pipelines.families
from core.errors import BadModel, BadRequest, unknown_name
from core.files import sha256_file
from core.provenance import WeightFile
from core.registry import discover
from pipelines.checkpoint import Checkpoint, open_checkpoint
from pipelines.family import Family, Place
from pipelines.loading import quiet, refuse_pickle

if TYPE_CHECKING:
    from pipelines.residency import Memory

TOYLAND = Path(__file__).resolve().parent.parent / "models" / "toyland"
FILES = (".safetensors", ".gguf")  # of models in one file
BASES_KEPT, CONTROLNETS_KEPT = 2, 8

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FETCHED = ["*.json", "*.txt", "*.safetensors"]
_LEFT_OUT = ["*.fp16.*", "*.non_ema.*", "safety_checker/*"]

T = TypeVar("T")
Version: TypeAlias = tuple[tuple[str, tuple[int, int] | None], ...]


@cache
def families() -> dict[str, type[Family]]:
    """Every model family in `pipelines/families`, by name."""
    return discover(pipelines.families, "FAMILY")


def choose_place(device: str | None = None, dtype: str | None = None) -> Place:
    """A device and the numbers to compute in: CUDA, MPS or CPU, whichever comes first; fp32 on the CPU, else 16 bits (`place_of`).

    Raises:
        BadRequest: the device or the dtype is unknown or not on this machine.
    """
    here = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    kind = (device or here[0]).partition(":")[0]
    if kind not in here:
        raise BadRequest(f"device {device!r} is not on this machine: use one of {', '.join(here)}")
    if dtype is not None and dtype not in _DTYPES:
        raise unknown_name("dtype", dtype, _DTYPES)
    try:
        chosen = torch.device(device or here[0])
    except RuntimeError:
        raise BadRequest(f"device {device!r} is not a device's name: use one of {', '.join(here)}") from None
    if kind == "cpu":
        chosen = torch.device("cpu")  # which has no numbers
    elif kind == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise BadRequest(f"device {device!r} is not on this machine: it has {torch.cuda.device_count()}, counted from cuda:0")
    return Place(chosen, _DTYPES[dtype or ("float32" if kind == "cpu" else "float16")], by_default=dtype is None)


def place_of(family: type[Family], place: Place) -> Place:
    """Where a family computes: in its own 16-bit numbers, unless somebody asked for others."""
    return replace(place, dtype=family.half) if place.by_default and place.dtype == torch.float16 else place


def resolve(model: str, revision: str | None = None, *, fetch: bool = True) -> Path:
    """The folder or file of a model: 'toyland', a folder, a .safetensors or .gguf file, a name in Limn's models folder, or a hub id.

    'owner/name@revision' pins a hub id to a commit, tag or branch. fetch: what is not here may be downloaded, where the machine may.

    Raises:
        BadModel: there is no such model, or it is a file in a format that is refused.
    """
    if model == "toyland":
        folder = TOYLAND / "base"
        if not folder.is_dir():
            raise BadModel(f"the embedded model is missing from {str(folder)!r}: restore models/toyland, or run 'limn toyland train'")
        return folder
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    refuse_pickle(path)
    if path.is_file():
        return path
    own = [TOYLAND.parent / model] if model.startswith(f"{TOYLAND.name}/") else []
    for installed in (*own, models_folder() / model, *(models_folder() / f"{model}{ending}" for ending in FILES)):
        if not path.is_absolute() and ".." not in path.parts and installed.exists():
            return installed
    name, _, pinned = model.partition("@")
    if path.suffix not in FILES and _HUB_ID.fullmatch(name):
        return from_hub(name, pinned or revision, fetch=fetch)
    raise BadModel(f"no model {model!r}: give 'toyland', a diffusers folder, a .safetensors or .gguf file or a hub id such as 'owner/name'")


def is_hub_id(name: str) -> bool:
    """Whether a name is written as those of the hub are: OWNER/NAME."""
    return _HUB_ID.fullmatch(name) is not None


def models_folder() -> Path:
    """Where Limn keeps models of the user's: $LIMN_MODELS, else ~/.cache/limn."""
    return Path(os.environ.get("LIMN_MODELS") or Path.home() / ".cache" / "limn")


def default_control(base: Path, kind: str) -> Path | None:
    """The ControlNet for a kind that lies beside a base model, as `controlnet-<kind>`, a folder or a .safetensors file, or None."""
    folder = base.resolve().parent / f"controlnet-{kind}"
    file = folder.with_name(f"{folder.name}.safetensors")
    return folder if folder.is_dir() else file if file.is_file() else None


class Engine:
    """Loaded models on one place; the least recently used go first, and one whose files have changed is loaded anew.

    memory: how base models lie in memory; ControlNets stay on the device.
    """

    def __init__(self, place: Place, memory: "Memory | None" = None) -> None:
        self.place, self.memory = place, memory
        if memory is not None:
            memory.check(place.device.type)
        self._bases: OrderedDict[tuple[Path, Path | None], tuple[Version, Family]] = OrderedDict()
        self._controls: OrderedDict[tuple[Any, Path], tuple[Version, Any]] = OrderedDict()
        self._outlines: OrderedDict[tuple[Path, Path | None], tuple[Version, Family]] = OrderedDict()
        self._hashes: dict[tuple[Path, tuple[str, ...]], dict[str, str]] = {}

    def base(self, folder: Path, vae: Path | None = None) -> Family:
        """The base model in a diffusers folder or a file, with its own autoencoder or another's; one base is kept with one of them.

        Raises:
            BadModel, Mismatch: it is of no known family, incomplete or damaged, or the autoencoder does not fit.
        """
        key = (folder.resolve(), vae and vae.resolve())
        for other in [other for other in self._bases if other[0] == key[0] and other != key]:
            del self._bases[other]
        return _kept(self._bases, key, _version(folder, vae), lambda: self._load_base(folder, vae), BASES_KEPT)

    def control(self, family: Family, folder: Path) -> Any:
        """The ControlNet in a folder, checked against the base model.

        Raises:
            BadModel, Mismatch: it does not fit, or is incomplete or damaged.
        """
        checkpoint = open_checkpoint(folder)
        family.check_control(checkpoint)
        alone = family.lends_nothing(checkpoint)
        key = (family.name if alone else family.key, folder.resolve())
        version = _version(folder, None if alone else family.checkpoint.path)
        return _kept(self._controls, key, version, lambda: self._load_control(family, folder), CONTROLNETS_KEPT)

    def outline(self, folder: Path, vae: Path | None = None) -> Family:
        """The base model without its weights, for questions; see `pipelines.outline`.

        Raises:
            BadModel, Mismatch: as `base`, as far as can be told without weights.
        """
        from pipelines.outline import outline_of

        key = (folder.resolve(), vae and vae.resolve())
        return _kept(self._outlines, key, _version(folder, vae), lambda: outline_of(_opened(folder, vae), self.place), BASES_KEPT)

    def holds(self, folder: Path) -> bool:
        """Whether the base model is loaded."""
        return any(base == folder.resolve() for base, _ in self._bases)

    def weights(self, part: str, folder: Path, subfolders: Sequence[str] = ("",)) -> list[WeightFile]:
        """The weight files of a loaded model with their SHA-256; part: 'base' or 'control <place in the request>'."""
        key = (folder.resolve(), tuple(subfolders))
        if key not in self._hashes:  # hashed once per loading: what counts is the file that was loaded
            checkpoint = open_checkpoint(folder)
            files = dict.fromkeys(file for subfolder in subfolders for file in checkpoint.files(subfolder))
            self._hashes[key] = {_shown(file, folder): sha256_file(file) for file in files}
        return [WeightFile(part=part, file=file, sha256=sha256) for file, sha256 in self._hashes[key].items()]

    def weights_of(self, family: Family) -> list[WeightFile]:
        """The weight files of a loaded base model; of an autoencoder that is another's as the part 'vae'."""
        from pipelines.autoencoders import WithVae

        checkpoint, parts = family.checkpoint, tuple(family.networks())
        if not isinstance(checkpoint, WithVae):
            return self.weights("base", checkpoint.path, parts)
        own = self.weights("base", checkpoint.path, tuple(part for part in parts if part != "vae"))
        return own + [WeightFile(part="vae", file=file.name, sha256=sha256_file(file)) for file in checkpoint.files("vae")]

    def _load_base(self, folder: Path, vae: Path | None) -> Family:
        checkpoint = _opened(folder, vae)
        family = family_of(checkpoint)
        self._forget_hashes(folder)
        place = place_of(family, self.place)
        return family.load(checkpoint, place) if self.memory is None else self.memory.load(family, checkpoint, place)

    def _load_control(self, family: Family, folder: Path) -> Any:
        self._forget_hashes(folder)
        return family.load_control(open_checkpoint(folder))

    def _forget_hashes(self, path: Path) -> None:
        for key in [key for key in self._hashes if key[0] == path.resolve()]:
            del self._hashes[key]


def _opened(folder: Path, vae: Path | None) -> Checkpoint:
    """The base's checkpoint, with another autoencoder where one is given."""
    checkpoint = open_checkpoint(folder)
    if vae is None:
        return checkpoint
    from pipelines.autoencoders import WithVae

    return WithVae(checkpoint, vae)


def family_of(checkpoint: Checkpoint) -> type[Family]:
    """The family of a base model.

    Raises:
        BadModel: it is of none that is known.
    """
    for family in families().values():
        if family.recognises(checkpoint):
            return family
    kind = checkpoint.classes.get("", "of an unknown class")
    raise BadModel(f"model {str(checkpoint.path)!r} is {kind}: known families are {', '.join(families())}")


def from_hub(repo: str, revision: str | None = None, *, fetch: bool = True) -> Path:
    """The folder of a hub model, downloaded unless it is here already.

    Raises:
        BadModel: it is neither here nor can be had.
    """
    from huggingface_hub import snapshot_download

    shown = f"{repo}@{revision}" if revision else repo
    try:
        with quiet():
            found = snapshot_download(
                repo, revision=revision, allow_patterns=_FETCHED, ignore_patterns=_LEFT_OUT, local_files_only=not fetch
            )
            return Path(str(found))
    except hub_errors() as error:
        if not fetch:
            raise BadModel(f"hub model {shown!r} is not installed: run 'limn models add {shown}'") from error
        raise BadModel(f"no folder {shown!r} here, and hub model {shown!r} cannot be fetched: {_why(error, repo, revision)}") from error


def hub_errors() -> tuple[type[Exception], ...]:
    """What goes wrong with the hub: its own errors, and the network's."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    return HfHubHTTPError, HFValidationError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError


def _why(error: Exception, repo: str, revision: str | None) -> str:
    """The reason with its remedy."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return f"its owner asks for its licence to be accepted; do so at huggingface.co/{repo}, then run 'hf auth login'"
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such model, or it is private; check its name, or run 'hf auth login'"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision!r}; check its name, or leave it out"
    if isinstance(error, HFValidationError):
        return "that is no name of a hub model; write OWNER/NAME"
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, so nothing is downloaded; unset it, or give a diffusers folder"
    return f"the hub cannot be reached ({type(error).__name__}); try again later, or give a diffusers folder"


def _shown(file: Path, folder: Path) -> str:
    """A weight file's name in a record: its path inside its model."""
    return file.relative_to(folder if file.is_relative_to(folder) else folder.parent).as_posix() if file != folder else file.name


def _version(*models: Path | None) -> Version:
    """What models' files are at this moment, by names, bytes and times of change: of a folder all in it, of a file those beside it too."""
    found = []
    for model in filter(None, models):
        folder = model if model.is_dir() else model.with_suffix("")
        within = (*folder.glob("*"), *folder.glob("*/*"))  # as deep as models are
        for file in (model, *sorted(file for file in within if file.suffix in (*FILES, ".json"))):
            status = file.stat() if file.is_file() else None
            found.append((str(file), status and (status.st_size, status.st_mtime_ns)))
    return tuple(found)


def _kept(models: OrderedDict[Any, tuple[Version, T]], key: Any, version: Version, load: Callable[[], T], limit: int) -> T:
    """The model under `key`, loaded if need be or if it is of another version; beyond `limit` the one used longest ago is let go."""
    if key in models and models[key][0] != version:
        del models[key]
    if key not in models:
        while len(models) >= limit:
            models.popitem(last=False)
        models[key] = version, load()
    models.move_to_end(key)
    return models[key][1]
