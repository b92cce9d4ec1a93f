"""The contract of a model family: what `pipelines/families/<family>.py` defines as `FAMILY`.

A family knows its checkpoints and its networks. It has no loop, no sampler, no guidance and no callbacks; those stand once, in
`pipelines/denoise.py`. Axes: B pictures, C channels, H and W pixels or latent cells, L text tokens, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from core.control import Image
from pipelines.parameterisation import Parameterisation, Path


@dataclass(frozen=True)
class Place:
    """Where networks live and in which numbers they compute."""

    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Text:
    """Encoded prompts, one row per picture; dropped: the end of the prompt that did not fit into the encoder."""

    tokens_BLD: Tensor
    pooled_BD: Tensor | None = None
    dropped: str = ""

    @staticmethod
    def rows(texts: Sequence["Text"]) -> "Text":
        """All rows of all texts under one another."""
        pooled = [text.pooled_BD for text in texts if text.pooled_BD is not None]
        return Text(torch.cat([text.tokens_BLD for text in texts]), torch.cat(pooled) if pooled else None)


class PreparedControl(Protocol):
    """A ControlNet with its map, and everything done that does not change from step to step."""

    @property
    def positive_only(self) -> bool:
        """Whether the network is made to steer the prompt's half of guidance alone."""
        ...

    def residuals(self, x_BCHW: Tensor, t: Tensor, text: Text) -> list[Tensor]:
        """What to add at each level of the base network, outermost first, the middle last; unscaled."""
        ...


class Family(Protocol):
    """One kind of base model, loaded.

    weight_parts: the subfolders that hold weights; cell_px: pixels to a latent cell. `path`, `parameterisation`, `steps_offset` and
    `end_on_first` are the checkpoint's own; with the last, a sampler on the table ends at its first entry, not at the pure picture.
    """

    name: ClassVar[str]
    weight_parts: ClassVar[tuple[str, ...]]
    folder: FilePath
    place: Place
    path: Path
    parameterisation: Parameterisation
    steps_offset: int
    end_on_first: bool
    cell_px: int

    @classmethod
    def recognises(cls, index: Mapping[str, Any]) -> bool:
        """Whether a diffusers `model_index.json` describes a checkpoint of this family."""
        ...

    @classmethod
    def load(cls, folder: FilePath, place: Place) -> Self:
        """The checkpoint in a diffusers folder, ready to predict.

        Raises:
            BadModel: a part is missing, damaged, or in a format that is refused.
        """
        ...

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, H, W) of the latents of a picture of this size in pixels."""
        ...

    def encode_prompt(self, prompt: str) -> Text:
        """One row of text; the same prompt is encoded once."""
        ...

    def encode_image(self, image_HWC: Image) -> Tensor:
        """The latents (1, C, H, W) of a picture: the mean of their distribution, scaled as the network expects."""
        ...

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in about [−1, 1]."""
        ...

    def check_control(self, folder: FilePath) -> None:
        """Whether the ControlNet in a folder fits this model, from its configuration alone.

        Raises:
            BadModel: it is no ControlNet of a kind this family knows.
            Mismatch: it is one for another base.
        """
        ...

    def load_control(self, folder: FilePath) -> Any:
        """The ControlNet in a diffusers folder, checked and placed beside this model."""
        ...

    def prepare(self, net: Any, map_HWC: Image) -> PreparedControl:
        """A loaded ControlNet with its map; the hint is embedded here, once."""
        ...

    def predict(self, x_BCHW: Tensor, t: Tensor, text: Text, residuals: list[Tensor] | None) -> Tensor:
        """The network's output for noisy latents at timestep t, in x's dtype."""
        ...
