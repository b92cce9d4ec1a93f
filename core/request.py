"""What a picture is made from: one frozen model shared by the web page, the command line, manifests, records and job keys."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from core.errors import BadRequest, shortened, unknown_name

Mode = Literal["balanced", "prompt", "control", "guess"]
Resize = Literal["just", "crop", "fill"]
Upscaler = Literal["latent", "lanczos"]
Tiles = Literal["auto", "on", "off"]

MIN_SIZE_PX, MAX_SIZE_PX = 64, 4096
MAX_CONTROLS = 8
MAX_LEVELS = 256  # residuals of a ControlNet; published ones have 6 to 40
MAX_LORAS = 16
MAX_BLOCKS = 100  # of a transformer; published ones have 20 to 60


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
    layer_weights: tuple[float, ...] = Field(
        (), max_length=MAX_LEVELS, description="a factor for each of the ControlNet's levels, outermost first; empty for 1 everywhere"
    )

    @field_validator("layer_weights", mode="before")
    @classmethod
    def _in_text(cls, value: Any) -> Any:
        return _numbers(value)

    @model_validator(mode="after")
    def _window_in_order(self) -> "ControlUnit":
        if self.start > self.end:
            raise ValueError(f"start {self.start:g} is after end {self.end:g}: give start <= end")
        return self


class LoraUnit(Frozen):
    """One LoRA to draw with."""

    name: str = Field(min_length=1, max_length=4096, description="a .safetensors file, or the name of one in a `loras` folder")
    weight: float = Field(1.0, ge=-10.0, le=10.0, description="factor on what it adds to the denoising network")
    text_weight: float | None = Field(None, ge=-10.0, le=10.0, description="factor for the text encoders; by default `weight`")


class SkipLayers(Frozen):
    """Skip-layer guidance: away from what a transformer draws without some of its blocks. SD 3.5 medium's are 7, 8 and 9."""

    blocks: tuple[Annotated[int, Field(ge=0, lt=MAX_BLOCKS)], ...] = Field(
        (7, 8, 9), min_length=1, max_length=MAX_BLOCKS, description="which are left out, counted from 0 in the order they run"
    )
    scale: float = Field(2.8, ge=0.0, le=20.0, description="how strongly; 0 turns it off")
    start: float = Field(0.01, ge=0.0, le=1.0, description="fraction of the steps after which it begins")
    end: float = Field(0.2, ge=0.0, le=1.0, description="fraction of the steps after which it ends")

    @field_validator("blocks", mode="before")
    @classmethod
    def _in_text(cls, value: Any) -> Any:
        return _numbers(value)

    @field_validator("blocks")
    @classmethod
    def _each_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        """In order, so that equal settings are equal requests."""
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _window_in_order(self) -> "SkipLayers":
        if self.start > self.end:
            raise ValueError(f"start {self.start:g} is after end {self.end:g}: give start <= end")
        return self


class Hires(Frozen):
    """A second, larger pass over the finished picture."""

    scale: float = Field(2.0, gt=1.0, le=4.0, description="how many times wider and higher; rounded to whole latent cells")
    upscaler: Upscaler = Field("latent", description="enlarge the latents, or the decoded picture")
    steps: int | None = Field(
        None, ge=1, le=1000, description="steps of a whole second pass, of which `strength` are done; default: `steps`"
    )
    strength: float = Field(0.7, gt=0.0, le=1.0, description="share of the second pass's steps that are done")
    with_control: bool = Field(True, description="the controls act in the second pass too")


class Inversion(Frozen):
    """The init_image's own noise to begin from: what the sampler would have drawn the picture from, found by walking it backwards."""

    prompt: str = Field("", max_length=100_000, description="what the init_image shows")
    iterations: int = Field(5, ge=1, le=50, description="corrections at every step; with 1 the error of plain DDIM inversion remains")


ROWS_OWN = frozenset({"prompt", "negative_prompt", "seed", "variation_seed", "controls"})
"""Fields in which pictures may differ that are drawn in one batch; of controls what they read and how strongly."""


class RenderRequest(Frozen):
    """Everything that determines `count` pictures, apart from the bytes of the files it names.

    A field that is left out takes the model's own default, where the model has one.
    """

    prompt: str = Field("", max_length=100_000, description="what to draw")
    negative_prompt: str = Field("", max_length=100_000, description="what to keep away from")
    model: str = Field("toyland", description="'toyland', a hub id, a diffusers folder, or a .safetensors or .gguf file")
    vae: str | None = Field(None, description="another autoencoder: hub id, folder or .safetensors; default: the model's own")
    width: int = Field(128, ge=MIN_SIZE_PX, le=MAX_SIZE_PX, multiple_of=8, description="pixels")
    height: int = Field(128, ge=MIN_SIZE_PX, le=MAX_SIZE_PX, multiple_of=8, description="pixels")
    steps: int = Field(20, ge=1, le=1000, description="sampler steps")
    sampler: str = Field("euler", description="as in `limn render --help`")
    schedule: str = Field("uniform", description="how the steps are spread over the noise levels")
    shift: float | None = Field(
        None, gt=0.0, le=100.0, description="factor on the noise level σ/α of every step; larger pictures want more; default: the model's"
    )
    eta: float | None = Field(
        None, ge=0.0, le=1.0, description="noise that ddim and its like add back, from 0 to DDPM's 1; default: the sampler's"
    )
    guidance_scale: float = Field(4.0, ge=0.0, le=50.0, description="classifier-free guidance; 1 turns it off")
    true_cfg_scale: float = Field(
        1.0,
        ge=0.0,
        le=50.0,
        description="classifier-free guidance of models that are told `guidance_scale` as a number (FLUX); 1 turns it off",
    )
    guidance_start: float = Field(0.0, ge=0.0, le=1.0, description="fraction of the steps after which guidance begins")
    guidance_end: float = Field(1.0, ge=0.0, le=1.0, description="fraction of the steps after which guidance ends")
    guidance_rescale: float = Field(0.0, ge=0.0, le=1.0, description="how far guided output is brought back to its unguided contrast")
    pag_scale: float = Field(0.0, ge=0.0, le=20.0, description="perturbed-attention guidance; 0 turns it off")
    skip_layers: SkipLayers | None = Field(
        None,
        exclude_if=lambda value: value is None,  # no part of what is hashed where it is not asked for: older jobs keep their keys
        description="guidance away from what the model draws without some of its blocks",
    )
    clip_skip: int = Field(1, ge=1, le=12, description="CLIP layer that is read, counted from the last, which is 1")
    loras: tuple[LoraUnit, ...] = Field((), max_length=MAX_LORAS, description="beside those that the prompt names")
    seed: int = Field(0, ge=0, lt=2**63, description="picture i draws its noise with seed + i; with a variation all with seed")
    variation_seed: int = Field(0, ge=0, lt=2**63, description="picture i varies towards the noise of variation_seed + i")
    variation_strength: float = Field(0.0, ge=0.0, le=1.0, description="how far; 0 turns it off")
    count: int = Field(1, ge=1, le=1000, description="pictures")
    controls: tuple[ControlUnit, ...] = Field((), max_length=MAX_CONTROLS, description="control units, all active at once")
    init_image: Path | None = Field(None, description="picture to begin from, brought to the size")
    resize: Resize = Field("crop", description="how it is brought to the size")
    strength: float = Field(
        0.75, ge=0.0, le=1.0, description="how much of the way from it is drawn anew: 0 keeps it, 1 keeps next to nothing"
    )
    inversion: Inversion | None = Field(None, description="begin from the init_image's own noise instead of noise from the seed")
    mask: Path | None = Field(None, description="of the init_image's size: what is white is painted anew")
    paste_back: bool = Field(True, description="outside the mask every pixel stays as it was; otherwise as the autoencoder has it")
    hires: Hires | None = Field(None, description="a second, larger pass over the finished picture")
    tile_vae: Tiles = Field("auto", description="decode in overlapping tiles: saves memory, changes little; auto: from 2048 × 2048 on")

    @model_validator(mode="after")
    def _fields_agree(self) -> "RenderRequest":
        if self.mask is not None and self.init_image is None:
            raise ValueError("mask without init_image: give the picture that the mask belongs to")
        if self.inversion is not None and self.init_image is None:
            raise ValueError("inversion without init_image: give the picture to invert")
        if self.inversion is not None and self.mask is not None:
            raise ValueError("inversion with mask: a picture is inverted as a whole; leave one of them out")
        if self.hires is not None and self.init_image is not None:
            raise ValueError("hires with init_image: the second pass goes with pictures drawn from noise; draw larger at once instead")
        if self.guidance_start > self.guidance_end:
            raise ValueError(
                f"guidance_start {self.guidance_start:g} is after guidance_end {self.guidance_end:g}: give guidance_start <= guidance_end"
            )
        return self

    def seeds(self, index: int) -> tuple[int, int | None]:
        """Of the request's picture `index`: its seed, and its variation seed where it varies."""
        if self.variation_strength > 0.0:
            return self.seed, self.variation_seed + index
        return self.seed + index, None

    def canonical_json(self) -> str:
        """The request as JSON with sorted keys and no spaces: equal requests give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def sha256(self) -> str:
        """SHA-256 of the canonical JSON, in hex."""
        # A file's name may hold bytes that are not UTF-8; Python shows them as lone surrogates.
        return hashlib.sha256(self.canonical_json().encode("utf-8", "surrogatepass")).hexdigest()


def _numbers(value: Any) -> Any:
    """`1 0.5 0.2` as it is written on a command line."""
    return value.replace(";", " ").split() if isinstance(value, str) else value


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
            example = max(round(item["input"] / step), 1) * step
            message += f", for example {min(max(example, MIN_SIZE_PX), MAX_SIZE_PX)}"
        shown = f" = {shortened(value)}" if isinstance(value, (int, float, str, bool)) else ""
        parts.append(f"{where}{shown}: {message}" if where else message)
    return "; ".join(parts)
