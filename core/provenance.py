"""The record inside every picture: all that is needed to make it again, and to see how well it obeys its controls.

A PNG carries two texts: `limn`, our record as JSON, which `read_record` reads back; and `parameters`, the summary that
AUTOMATIC1111's web UI writes and that galleries and other tools show.
"""

import functools
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints, ValidationError, model_validator

from core.control import Score
from core.errors import BadRequest
from core.files import output_name, publish
from core.images import Image, encode_png, read_png_text
from core.infotext import infotext
from core.request import Frozen, RenderRequest, explain

SCHEMA_VERSION: Final = 1
ROUNDED: Final = "the denoising network's weights are rounded: "  # begins a note on what changes every picture of a model
_LIBRARIES = ("limn", "torch", "diffusers", "transformers", "numpy", "pillow", "opencv-python")
_OTHER_BUILDS = {"opencv-python": "opencv-python-headless"}  # the same library without windows

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


@functools.cache
def library_versions() -> dict[str, str]:
    """The installed versions of Limn and of every library that decides what the pixels are; nothing is imported."""
    found = {}
    for name in _LIBRARIES:
        found[name] = _version(name) or _version(_OTHER_BUILDS.get(name, name)) or "not installed"
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


class WeightFile(Frozen):
    """One file of weights that took part."""

    part: str = Field(description="'base', 'vae', 'control 0', … by the control's place in the request, 'lora 0', …, 'embedding 0', …")
    file: str = Field(description="path inside the model's folder, or the file's name")
    sha256: Sha256


class Fidelity(Frozen):
    """How well the picture obeys one control; see `core.control.Score`."""

    value: float = Field(ge=0.0, le=1.0)
    metric: str
    raw: float
    unit: str
    parts: dict[str, float] = Field(default_factory=dict, description="what the metric is made of, by name")

    @classmethod
    def of(cls, score: Score) -> "Fidelity":
        return cls(value=score.value, metric=score.metric, raw=score.raw, unit=score.unit, parts=dict(score.parts))


class ControlRecord(Frozen):
    """What one control of the request came to."""

    source_sha256: Sha256 = Field(description="the control image's file")
    map_sha256: Sha256 = Field(description="the finished map at the picture's size, as `core.images.sha256_pixels`")
    mask_sha256: Sha256 | None = Field(None, description="the region mask's file")
    params: dict[str, Any] = Field(default_factory=dict, description="the extractor's settings, defaults filled in; empty for a ready map")
    fidelity: Fidelity | None = Field(None, description="None where it was not measured")


class Record(Frozen):
    """One picture's origin."""

    schema_version: Literal[1] = SCHEMA_VERSION
    request: RenderRequest
    index: int = Field(ge=0, description="which of the request's pictures")
    seed: int = Field(ge=0, description="this picture's own: the request's + index, or just the request's where it varies")
    prompt: str | None = Field(None, description="the prompt with wildcards and choices drawn; None where it is the request's")
    negative_prompt: str | None = Field(None, description="likewise")
    weights: tuple[WeightFile, ...] = Field(min_length=1)
    controls: tuple[ControlRecord, ...] = Field((), description="one for each of the request's controls, in its order")
    init_sha256: Sha256 | None = Field(None, description="the file of the picture it began from")
    mask_sha256: Sha256 | None = Field(None, description="the file of the mask it was painted through")
    device: str = Field("cpu", description="what it was computed on")
    dtype: str = Field("float32", description="the numbers it was computed with")
    threads: int | None = Field(None, ge=1, description="of the CPU; None on other devices")
    batch_row: int = Field(0, ge=0, description="the row it had in a batch of several requests, from 0")
    batch_rows: int = Field(1, ge=1, description="how many rows that batch had; 1 for a request that was drawn by itself")
    versions: dict[str, str] = Field(default_factory=library_versions, description="of Limn and the libraries that decide pixels")
    notes: tuple[str, ...] = Field((), description="warnings, and what was done to fit into memory")

    @model_validator(mode="after")
    def _agrees_with_request(self) -> "Record":
        if self.seed != self.request.seeds(self.index)[0] or self.index >= self.request.count:
            raise ValueError(f"seed {self.seed} is not that of picture {self.index} of {self.request.count} from {self.request.seed}")
        if len(self.controls) != len(self.request.controls):
            raise ValueError(f"{len(self.controls)} control records for {len(self.request.controls)} controls")
        return self

    def canonical_json(self) -> str:
        """The record as ASCII JSON with sorted keys and no spaces: equal records give equal text."""
        return _canonical(self.model_dump(mode="json"))

    def key(self) -> str:
        """SHA-256, in hex, of what decides the picture apart from its seed: settings, weights, and the controls' content.

        Where the control images lay and how many pictures were asked for at once does not matter.
        """
        elsewhere: dict[str, Any] = {
            "seed": True,
            "count": True,
            "init_image": True,
            "mask": True,
            "variation_seed": True,
            "controls": {"__all__": {"image", "mask"}},
            "loras": {"__all__": {"name"}},
            "vae": True,
        }
        settings = self.request.model_dump(mode="json", exclude=elsewhere)
        if self.request.variation_strength > 0.0:  # the number in the name is the variation's
            settings["seed"] = self.seed
        if self.dtype != "float32":
            settings["dtype"] = self.dtype
        if rounded := [note for note in self.notes if note.startswith(ROUNDED)]:
            settings["rounded"] = rounded
        settings |= {name: own for name in ("prompt", "negative_prompt") if (own := getattr(self, name)) is not None}
        content = [[control.source_sha256, control.mask_sha256] for control in self.controls] + [[self.init_sha256, self.mask_sha256]]
        weights = sorted([weight.part, weight.sha256] for weight in self.weights)
        return hashlib.sha256(_canonical([settings, content, weights]).encode()).hexdigest()

    def file_name(self) -> str:
        """The picture's file name: equal for equal pictures, and without any text of the user's."""
        _, variation = self.request.seeds(self.index)
        return output_name(self.key(), self.seed if variation is None else variation)

    def infotext(self) -> str:
        """The summary that other tools read; see `core.infotext`."""
        hashes = {}
        for weight in self.weights:
            network = any(name in weight.file for name in ("unet", "transformer"))
            if network or weight.part not in hashes:
                hashes[weight.part] = weight.sha256
        params = [control.params for control in self.controls]
        drawn = {name: own for name in ("prompt", "negative_prompt") if (own := getattr(self, name)) is not None}
        request = self.request.model_copy(update=drawn) if drawn else self.request
        return infotext(request, self.index, hashes, params, self.versions.get("limn", ""))


def picture_bytes(image_HWC: Image, record: Record) -> bytes:
    """The picture as the bytes of a PNG file with its record inside."""
    return encode_png(image_HWC, {"parameters": record.infotext(), "limn": record.canonical_json()})


def write_picture(path: Path, image_HWC: Image, record: Record) -> None:
    """Publish the picture as PNG with its record inside, in one rename.

    Raises:
        DiskFull, BadRequest: as `core.files.publish`.
    """
    publish(path, picture_bytes(image_HWC, record))


def read_record(path: Path) -> Record:
    """The record inside a picture that Limn made.

    Raises:
        BadImage: no such file, not a PNG, or damaged.
        BadRequest: a picture without a record, or with one that this version cannot read.
    """
    text = read_png_text(path).get("limn")
    if text is None:
        raise BadRequest(
            f"{str(path)!r} holds no Limn record: it was not made by Limn, or another program saved it again without the record"
        )
    try:
        values = json.loads(text)
        version = values["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadRequest(f"the Limn record in {str(path)!r} is damaged: use an undamaged copy of the picture") from None
    if version != SCHEMA_VERSION:
        raise BadRequest(
            f"the Limn record in {str(path)!r} has schema {version!r}, this Limn reads {SCHEMA_VERSION}: use the Limn that made it"
        )
    try:
        return Record.model_validate(values)
    except ValidationError as error:
        raise BadRequest(f"the Limn record in {str(path)!r} is not valid: {explain(error)}") from None


def _canonical(values: Any) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
