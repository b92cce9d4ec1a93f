"""What a picture is made from: one frozen model shared by the web page, the command line, manifests, records and job keys."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from core.errors import BadRequest, shortened, unknown_name

Mode = Literal["balanced", "prompt", "control", "guess"]
Resize = Literal["just", "crop", "fill"]

MAX_SIZE_PX = 4096
MAX_CONTROLS = 8


class Frozen(BaseModel):
    """Base of every request model: immutable, unknown keys refused, NaN refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _plain_mistakes(cls, values: Any) -> Any:
        """Name the nearest key for an unknown one; refuse true and false where pydantic would read 1 and 0."""
        for key, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(key)
            if field is None:
                raise ValueError(str(unknown_name("key", str(key), cls.model_fields)))
            if isinstance(value, bool) and field.annotation in (int, float):
                raise ValueError(f"{key} = {value!r}: expected a number, not true or false")
        return values


class ControlUnit(Frozen):
    """One control image and how it steers the picture."""

    kind: str = Field(description="extractor and ControlNet kind, as in `limn extract --help`")
    image: Path = Field(description="picture to extract from, or the finished map when `ready`")
    ready: bool = Field(False, description="`image` is the finished map; do not extract again")
    params: dict[str, Any] = Field(default_factory=dict, description="the extractor's own parameters")
    model: str | None = Field(None, description="ControlNet: hub id, folder or .safetensors; default: the one for kind and model")
    weight: float = Field(1.0, ge=0.0, le=2.0, description="factor on the ControlNet's residuals")
    start: float = Field(0.0, ge=0.0, le=1.0, description="fraction of the steps after which the control begins")
    end: float = Field(1.0, ge=0.0, le=1.0, description="fraction of the steps after which the control ends")
    mode: Mode = Field("balanced", description="who wins where prompt and control disagree")
    resize: Resize = Field("crop", description="how the control image is brought to the picture's size")
    processor_px: int | None = Field(
        None, ge=64, le=2048, description="shorter side at which the extractor works; default: the picture's own size, pixel-perfect"
    )
    mask: Path | None = Field(None, description="region mask: the control acts where it is white")

    @model_validator(mode="after")
    def _window_in_order(self) -> "ControlUnit":
        if self.start > self.end:
            raise ValueError(f"start {self.start:g} is after end {self.end:g}: give start <= end")
        return self


class RenderRequest(Frozen):
    """Everything that determines `count` pictures, apart from the bytes of the files it names."""

    prompt: str = Field("", max_length=100_000, description="what to draw")
    negative_prompt: str = Field("", max_length=100_000, description="what to keep away from")
    model: str = Field("toyland", description="'toyland', a hub id, a diffusers folder or a .safetensors file")
    width: int = Field(128, ge=64, le=MAX_SIZE_PX, multiple_of=8, description="pixels")
    height: int = Field(128, ge=64, le=MAX_SIZE_PX, multiple_of=8, description="pixels")
    steps: int = Field(20, ge=1, le=1000, description="sampler steps")
    sampler: str = Field("euler", description="as in `limn render --help`")
    schedule: str = Field("uniform", description="how the steps are spread over the noise levels")
    guidance_scale: float = Field(4.0, ge=0.0, le=50.0, description="classifier-free guidance; 1 turns it off")
    seed: int = Field(0, ge=0, lt=2**63, description="picture i draws its noise with seed + i")
    count: int = Field(1, ge=1, le=1000, description="pictures")
    controls: tuple[ControlUnit, ...] = Field((), max_length=MAX_CONTROLS, description="control units, all active at once")

    def canonical_json(self) -> str:
        """The request as JSON with sorted keys and no spaces: equal requests give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def sha256(self) -> str:
        """SHA-256 of the canonical JSON, in hex."""
        # A file's name may hold bytes that are not UTF-8; Python shows them as lone surrogates.
        return hashlib.sha256(self.canonical_json().encode("utf-8", "surrogatepass")).hexdigest()


def build_request(values: dict[str, Any]) -> RenderRequest:
    """A validated request from plain values.

    Raises:
        BadRequest: one line that names every bad field, its value and its limit.
    """
    try:
        return RenderRequest.model_validate(values)
    except ValidationError as error:
        raise BadRequest(explain(error)) from None


def explain(error: ValidationError) -> str:
    """A pydantic error as one line: `width = 100: input should be a multiple of 8, for example 96; …`."""
    parts = []
    for item in error.errors(include_url=False):
        where = ".".join(str(step) for step in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        value = item.get("input")
        if item["type"] == "multiple_of":
            step = item["ctx"]["multiple_of"]
            message += f", for example {max(round(item['input'] / step), 1) * step}"
        shown = f" = {shortened(value)}" if isinstance(value, (int, float, str, bool)) else ""
        parts.append(f"{where}{shown}: {message}" if where else message)
    return "; ".join(parts)
