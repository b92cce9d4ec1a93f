"""The contract of a model family: what `pipelines/families/<family>.py` defines as `FAMILY`.

A family knows its checkpoints and its networks. It has no loop, no sampler, no guidance and no callbacks; those stand once, in
`pipelines/denoise.py`. Axes: B pictures, C channels, H and W pixels or latent cells, L text tokens, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal, Protocol, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from core.control import Image
from pipelines import vae
from pipelines.checkpoint import Checkpoint
from pipelines.clip import Layer
from pipelines.parameterisation import Parameterisation, Path
from pipelines.place import Place as Place
from pipelines.prompt import Wording, plain

# What is added to the network, by the family's own names for the places: one tensor a level, outermost first. Rows are (B, C, H, W), or
# (B, L, C) for tokens: the picture's in reading order, then whatever else the network has there (text), which a region scales by its mean.
Residuals: TypeAlias = dict[str, list[Tensor]]
# How a family follows `guidance_scale`: by a second forward without the prompt, by a number the network is told, or not at all.
Guidance = Literal["classifier_free", "embedded", "none"]

PROMPTS_KEPT = 256


@dataclass(frozen=True, eq=False)
class Text:
    """Encoded prompts, one row per picture.

    tokens_BLD: what cross-attention reads. pooled_BD: one vector a prompt, where the family has one. mask_BL: 1 where a token counts; None
    for everywhere. extra: what else belongs to the rows, by the family's own names. dropped: the end of the prompt that did not fit.
    empty: there was no prompt. filler: gives what a shorter text is lengthened with, one window (1, L, D), where the network is to read
    nothing there instead of being told to look away; CLIP's states of the empty prompt.
    """

    tokens_BLD: Tensor
    pooled_BD: Tensor | None = None
    mask_BL: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    dropped: str = ""
    empty: bool = False
    filler: Callable[[], Tensor] | None = None

    @staticmethod
    def rows(texts: Sequence["Text"]) -> "Text":
        """All rows of all texts under one another; where lengths differ the shorter are filled, or padded with zeros that do not count."""
        longest = max(text.tokens_BLD.shape[1] for text in texts)
        texts = [_filled(text, longest) for text in texts]
        first = texts[0]
        masked = first.mask_BL is not None or any(text.tokens_BLD.shape[1] != longest for text in texts)
        return Text(
            torch.cat([_padded(text.tokens_BLD, longest) for text in texts]),
            None if first.pooled_BD is None else torch.cat([text.pooled_BD for text in texts if text.pooled_BD is not None]),
            torch.cat([_padded(text.mask(), longest) for text in texts]) if masked else None,
            {name: torch.cat([text.extra[name] for text in texts]) for name in first.extra},
            filler=first.filler,
        )

    def mask(self) -> Tensor:
        """The mask, with ones where it was left out."""
        return self.mask_BL if self.mask_BL is not None else self.tokens_BLD.new_ones(self.tokens_BLD.shape[:2])


@dataclass(frozen=True)
class Drawing:
    """What of a request some networks are told beside the prompt. Sizes in pixels; negative: the text is the negative prompt."""

    width: int
    height: int
    guidance_scale: float
    negative: bool = False


@dataclass(frozen=True)
class Shift:
    """How far a flow model's noise levels are moved towards noise: σ' = f·σ / (1 + (f − 1)·σ).

    terminal: where given, the levels are stretched so that the last one before the picture is this. Source: Esser et al., Scaling Rectified
    Flow Transformers, 2024, section 5.3.2.
    """

    factor: float = 1.0
    terminal: float | None = None


@dataclass(frozen=True, eq=False)
class Hint:
    """A control as a ControlNet is given it: its map and its kind ("canny").

    mask_HW: for inpainting ControlNets, where to paint: uint8, 255 there.
    """

    map_HWC: Image
    kind: str
    mask_HW: NDArray[np.uint8] | None = None


class PreparedControl(Protocol):
    """A ControlNet with its map, and everything done that does not change from step to step."""

    @property
    def positive_only(self) -> bool:
        """Whether the network is made to steer the prompt's half of guidance alone."""
        ...

    @property
    def levels(self) -> int:
        """How many residuals it gives, over all places."""
        ...

    @property
    def patch(self) -> int:
        """Latent cells to a side of a token, for residuals of tokens; 1 elsewhere."""
        ...

    def residuals(self, x_BCHW: Tensor, t: Tensor, text: Text) -> Residuals:
        """What to add to the base network for these rows; unscaled."""
        ...


class Family(ABC):
    """One kind of base model, loaded.

    title: its name for people. weight_parts: the parts that hold weights. cell_px: pixels to a latent cell. `path`, `parameterisation`,
    `steps_offset` and `end_on_first` are the checkpoint's own; with the last, a sampler on the table ends at its first entry, not at the
    pure picture. residuals_shared: a ControlNet reads the prompt alone, and what it gives steers both halves of guidance. perturbed_layers:
    which attention layers perturbed-attention guidance breaks, as a pattern of their names in the denoising network; none where empty.
    skippable: the lists of its blocks that skip-layer guidance can leave out, in the order they run; none where empty.
    half: the 16-bit numbers that it computes in where nobody asks for others; bfloat16 where activations outgrow float16's range.
    clip_layer: whose states it reads of its CLIP encoders, from where clip_skip counts; None for a family that reads none.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    weight_parts: ClassVar[tuple[str, ...]]
    residuals_shared: ClassVar[bool] = False
    perturbed_layers: ClassVar[str] = ""
    skippable: ClassVar[tuple[str, ...]] = ()
    half: ClassVar[torch.dtype] = torch.float16
    clip_layer: ClassVar[Layer | None] = None
    checkpoint: Checkpoint
    place: Place
    vae: Any
    path: Path
    parameterisation: Parameterisation
    guidance: Guidance = "classifier_free"
    steps_offset: int = 0
    end_on_first: bool = False
    cell_px: int = 8
    offloads: bool = False
    lent: bool = False
    rounding: tuple[str, ...] = ()

    def __init__(self, checkpoint: Checkpoint, place: Place) -> None:
        self.checkpoint, self.place = checkpoint, place
        # Kept on the instance, so that the texts go when the model goes.
        self._encoded = lru_cache(PROMPTS_KEPT)(self.encode_wording)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Fields of a request that people of this family would set, used where a request leaves them out; a class may give a constant."""
        return {}

    @property
    def key(self) -> tuple[str, ...]:
        """What tells this model from others that are loaded: its path, and where its autoencoder is from."""
        return tuple(str(file) for file in (self.checkpoint.path, *self.checkpoint.files("vae")[:1]))

    @classmethod
    def lends_nothing(cls, control: Checkpoint) -> bool:
        """Whether a loaded ControlNet holds no part of its base, so that it serves every base of the family."""
        return False

    def lend(self, kind: Any, part: str = "transformer") -> Any:
        """The denoising network, of class `kind`, for a ControlNet to take parts of, which it calls whenever it likes.

        Where networks do not stay on the device, it is another of the same weights, on the CPU.
        """
        self.lent = True
        if not self.offloads:
            return getattr(self, part)
        return self.checkpoint.network(kind, part, replace(self.place, device=torch.device("cpu")))

    @property
    def side_px(self) -> int:
        """What the sides of pictures are multiples of: a cell, or where cells are taken together to tokens, a token."""
        return self.cell_px

    @classmethod
    @abstractmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """Whether a base model is of this family, from its configuration and tensors, never from its name."""

    @classmethod
    @abstractmethod
    def load(cls, checkpoint: Checkpoint, place: Place) -> Self:
        """The checkpoint, ready to predict.

        Raises:
            BadModel: a part is missing, damaged, or in a format that is refused.
            Mismatch: the parts are whole but do not belong together.
        """

    @abstractmethod
    def networks(self) -> Mapping[str, nn.Module]:
        """Every loaded network by the name of its part."""

    @abstractmethod
    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, H, W) of the latents of a picture of this size in pixels."""

    def shift(self, width: int, height: int) -> Shift:
        """How a flow model moves its noise levels for a picture of this size."""
        return Shift()

    def encode_prompt(self, prompt: str | Wording, clip_skip: int = 1) -> Text:
        """One row of text; the same words are encoded once."""
        return self._encoded(plain(prompt) if isinstance(prompt, str) else prompt, clip_skip)

    def forget_texts(self) -> None:
        """Encode every text anew from now on: the encoders have changed."""
        self._encoded.cache_clear()

    @abstractmethod
    def encode_wording(self, wording: Wording, clip_skip: int) -> Text:
        """One row of text, encoded anew. clip_skip: the CLIP layer that is read, counted from the last, which is 1."""

    def bind(self, text: Text, drawing: Drawing) -> Text:
        """The text with what else the network is told about the picture: SDXL's sizes, FLUX's guidance."""
        return text

    def encode_image(self, image_HWC: Image) -> Tensor:
        """The latents (1, C, H, W) of a picture: the mean of their distribution, scaled as the network expects."""
        return vae.encode(self.vae, image_HWC, self.place)

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in about [−1, 1]."""
        return vae.decode(self.vae, latents_BCHW, self.place)

    def inpaint(self, image_HWC: Image, mask_HW: NDArray[np.uint8]) -> Residuals | None:
        """What a model made for inpainting is told at every step: picture and mask (255: paint here); None for a plain model."""
        return None

    def own_control(self) -> Any | None:
        """What `prepare` takes for a model that reads a map without any ControlNet (FLUX.1 Canny, Depth); None for the others."""
        return None

    @abstractmethod
    def check_control(self, checkpoint: Checkpoint) -> None:
        """Whether a ControlNet (or adapter) fits this model, from its configuration alone.

        Raises:
            BadModel: it is no ControlNet of a kind this family knows.
            Mismatch: it is one for another base.
        """

    @abstractmethod
    def load_control(self, checkpoint: Checkpoint) -> Any:
        """The ControlNet, checked and placed beside this model."""

    @abstractmethod
    def prepare(self, net: Any, hint: Hint) -> PreparedControl:
        """A loaded ControlNet with its map; whatever stays the same at every step is computed here, once."""

    @abstractmethod
    def predict(self, x_BCHW: Tensor, t: Tensor, text: Text, residuals: Residuals | None) -> Tensor:
        """The network's output for noisy latents at timestep t of the training schedule, in x's shape and dtype."""

    def after_guidance(self, guided_BCHW: Tensor, prompted_BCHW: Tensor) -> Tensor:
        """What becomes of the guided output, given the prompt's own: nothing, unless the family was made to be guided otherwise."""
        return guided_BCHW


def _padded(rows: Tensor, length: int) -> Tensor:
    """Rows (B, L, …) with zeros up to a length."""
    missing = length - rows.shape[1]
    return F.pad(rows, (0, 0) * (rows.ndim - 2) + (0, missing)) if missing else rows


def _filled(text: Text, length: int) -> Text:
    """A text with windows of its filler after it, as many as fit into a length."""
    missing = length - text.tokens_BLD.shape[1]
    if not missing or text.filler is None:
        return text
    window_1LD = text.filler()
    windows_BLD = window_1LD.repeat(text.tokens_BLD.shape[0], missing // window_1LD.shape[1], 1)
    return replace(text, tokens_BLD=torch.cat([text.tokens_BLD, windows_BLD], dim=1))
