"""Guidance: which rows a step asks the network about, and one output from all of them.

Blocks of B rows follow one another: the negative prompt's, one for each side of the prompt's ANDs, and the sides' once more for each way in
which the network is made weaker: without some of its layers, with perturbed attention. Axes: B pictures, C channels, H and W latent cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import BadRequest
from pipelines.family import Text


@dataclass(frozen=True, eq=False)
class Side:
    """One side of an AND. texts: (the step before which it ends, the text), in order; the last holds to the end."""

    texts: tuple[tuple[int, Text], ...]
    weight: float = 1.0

    @staticmethod
    def of(text: "Text | Side") -> "Side":
        """One text for all steps."""
        return text if isinstance(text, Side) else Side(((0, text),))

    def at(self, step: int) -> Text:
        """The text of a step, counted from 0."""
        return next((text for end, text in self.texts if step < end), self.texts[-1][1])


@dataclass(frozen=True)
class Guidance:
    """How strongly the prompt pulls, and when: from the fraction `start` of the steps to `end`; outside, the prompt alone is asked.

    scale: classifier-free guidance, from the negative prompt's output at 0 to the prompt's at 1 and beyond. rescale: how far the result
    is brought back to the deviation of the prompt's own output. skipped, perturbed: skip-layer and perturbed-attention guidance; 0 leaves
    them out.

    Source: Ho and Salimans, Classifier-Free Diffusion Guidance, 2022; Lin et al., Common Diffusion Noise Schedules and Sample Steps are
    Flawed, 2023, section 3.4; Kynkäänniemi et al., Applying Guidance in a Limited Interval, 2024; Ahn et al., Self-Rectifying Diffusion
    Sampling with Perturbed-Attention Guidance, 2024, eq. 16; Stability AI's sd3.5 (SkipLayerCFGDenoiser), 2024; Liu et al., Compositional
    Visual Generation, 2022, for the sum over sides.
    """

    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    rescale: float = 0.0
    skipped: float = 0.0
    perturbed: float = 0.0


@dataclass(frozen=True, eq=False)
class Branches:
    """What one step asks: negative None where nothing is guided by it."""

    negative: Text | None
    sides: tuple[Text, ...]
    weights: tuple[float, ...]
    skipped: bool = False
    perturbed: bool = False

    @property
    def whole(self) -> tuple[Text, ...]:
        """The texts of the blocks that the whole network sees."""
        return (*(() if self.negative is None else (self.negative,)), *self.sides)

    @property
    def weaker(self) -> int:
        """How often the sides are asked about once more."""
        return self.skipped + self.perturbed

    @property
    def texts(self) -> tuple[Text, ...]:
        """The text of every block; those of perturbed attention are the last."""
        return (*self.whole, *self.sides * self.weaker)

    def guided(self, out: Tensor, guidance: Guidance) -> tuple[Tensor, Tensor]:
        """One output (B, C, H, W) from those of all blocks; and the prompt's own."""
        blocks = list(out.chunk(len(self.texts)))
        negative = None if self.negative is None else blocks.pop(0)
        sides, weak = blocks[: len(self.sides)], blocks[len(self.sides) :]
        prompted = _mean(sides, self.weights)
        result = prompted
        if negative is not None:
            result = negative
            for side, weight in zip(sides, self.weights, strict=True):
                result = result + (guidance.scale * weight) * (side - negative)
        total = sum(self.weights) if negative is None else 1.0
        for scale in [guidance.skipped] * self.skipped + [guidance.perturbed] * self.perturbed:
            for side, weight in zip(sides, self.weights, strict=True):
                result = result + (scale * weight / total) * (side - weak.pop(0))
        if guidance.rescale and result is not prompted:
            result = rescaled(result, prompted, guidance.rescale)
        return result, prompted


def rescaled(guided: Tensor, prompted: Tensor, share: float) -> Tensor:
    """The guided output brought, by `share`, to the deviation of the prompt's own. Source: Lin et al., 2023, eq. 15 and 16."""
    axes = tuple(range(1, guided.ndim))
    factor = prompted.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    return guided * (share * factor + (1.0 - share))


def check_weights(sides: Sequence[Side]) -> None:
    """
    Raises:
        BadRequest: the weights of an AND do not add up to more than nothing, so that they have no mean.
    """
    if sum(side.weight for side in sides) <= 0.0:
        raise BadRequest("the weights of the prompt's ANDs add up to 0 or less: give at least one side more weight")


def _mean(sides: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean over the sides of an AND."""
    if len(sides) == 1:
        return sides[0]
    total = sum(weights)
    return torch.stack([side * (weight / total) for side, weight in zip(sides, weights, strict=True)]).sum(0)
