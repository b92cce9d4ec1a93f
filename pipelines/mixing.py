"""Pictures of several requests in one batch: a row each, with prompts, a seed, control maps and control weights of its own.

What a batch is drawn with as a whole (size, steps, sampler, guidance, the controls' networks, windows and modes) must agree. Requests that
begin from a picture, have a second pass or a region, or want several pictures are not mixed.

Axes: B rows, C channels, H and W latent cells, L tokens, D width.
"""

import json
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import OutOfMemory
from core.request import ROWS_OWN
from pipelines.adapters import Lora
from pipelines.denoise import HasNetwork, Plan, denoise, never
from pipelines.family import PreparedControl, Residuals, Text
from pipelines.guidance import Side
from pipelines.memory import BLACK
from pipelines.noise import seeded_noise
from pipelines.passes import Drawn, Passes
from pipelines.planning import Words
from pipelines.steering import Fades, Steering
from pipelines.tuning import Tunes


@dataclass(frozen=True, eq=False)
class Single:
    """A request for one picture, ready to be drawn."""

    passes: Passes
    words: Words
    loras: tuple[Lora, ...]

    def plan(self) -> tuple[Plan, list[str]]:
        """Its plan, and what the user should know; its LoRAs are in use from now on."""
        plans, notes = self.passes.prepare(self.words, self.loras)
        return plans[0], notes


def kind_of(single: Single) -> Hashable | None:
    """What must agree for two requests to be drawn in one batch; None for one that is drawn by itself."""
    passes = single.passes
    plan, _ = single.plan()
    if passes.request.count > 1 or len(passes.stages) > 1 or passes.source is not None:
        return None
    if any(steering.mask_HW is not None for steering in plan.controls):
        return None
    settings = json.dumps(passes.request.model_dump(mode="json", exclude=set(ROWS_OWN)), sort_keys=True)
    controls = [(one.start, one.end, one.mode, one.layer_weights, *_identity(one.control)) for one in plan.controls]
    return (id(passes.family), settings, single.loras, plan.guidance_scale, *_outline(plan), *controls)


def draw_together(singles: Sequence[Single], before_call: Callable[[], None] = never) -> list[Drawn]:
    """One picture for each of the requests, which are of one kind; equal to rounding to the one that is drawn alone.

    Raises:
        BadModel: latents or pictures are not finite.
        OutOfMemory: nothing helped; the message names a size that fits.
    """
    first, notes = singles[0].passes, list[str]()
    plans, known = zip(*(single.plan() for single in singles), strict=True)
    seeds, variations = zip(*(single.passes.request.seeds(0) for single in singles), strict=True)

    def latents(rows: range) -> Tensor:
        some = slice(rows.start, rows.stop)
        noise = seeded_noise(
            seeds[some],
            first.family.latent_shape(*first.size),
            first.family.place.device,
            variation_seeds=variations[some],
            variation_strength=first.request.variation_strength,
        )
        return denoise(first.family, mixed(plans[some]), noise, lambda i, denoised: None, before_call=before_call)

    try:
        found = first.develop(latents, range(len(singles)), notes)
    except OutOfMemory as error:
        raise first.too_large(len(singles), plans[0]) from error
    return [Drawn(image, (*own, *notes, *(() if image.any() else (BLACK,)))) for image, own in zip(found, known, strict=True)]


def mixed(plans: Sequence[Plan]) -> Plan:
    """Plans of one kind as one, a row each."""
    first = plans[0]
    if len(plans) == 1:
        return first
    sides = tuple(_mixed_side(some) for some in zip(*(plan.sides for plan in plans), strict=True))
    negatives = [Side.of(plan.negative) for plan in plans if plan.negative is not None]
    controls = tuple(_mixed_steering(some) for some in zip(*(plan.controls for plan in plans), strict=True))
    return replace(first, positive=sides, negative=_mixed_side(negatives) if negatives else None, controls=controls)


def _mixed_side(sides: Sequence[Side]) -> Side:
    texts = [(some[0][0], Text.rows([text for _, text in some])) for some in zip(*(side.texts for side in sides), strict=True)]
    return replace(sides[0], texts=tuple(texts))


def _mixed_steering(steerings: Sequence[Steering]) -> Steering:
    weights = [one.weight for one in steerings]
    alike = len(set(weights)) == 1
    kind = TunedRows if isinstance(steerings[0].control, Tunes) else Rows
    control = kind(tuple(one.control for one in steerings), () if alike else tuple(weights))
    return replace(steerings[0], control=control, weight=weights[0] if alike else 1.0)


@dataclass(frozen=True, eq=False)
class Rows:
    """Prepared controls of one network as one control, a row each; see `pipelines.family.PreparedControl`.

    weights: a factor for each row's residuals; empty for 1 everywhere.
    """

    controls: tuple[PreparedControl, ...]
    weights: tuple[float, ...] = ()
    _stacked: dict[int, PreparedControl] = field(default_factory=dict, init=False, repr=False)

    @property
    def network(self) -> nn.Module:
        """The ControlNet, where it says that it reads the text."""
        first = self.controls[0]
        return first.network if isinstance(first, HasNetwork) else nn.Identity()

    @property
    def positive_only(self) -> bool:
        """As each of them."""
        return self.controls[0].positive_only

    @property
    def levels(self) -> int:
        """As each of them."""
        return self.controls[0].levels

    @property
    def patch(self) -> int:
        """As each of them."""
        return self.controls[0].patch

    @property
    def fade(self) -> Sequence[float]:
        """As each of them."""
        first = self.controls[0]
        return first.fade if isinstance(first, Fades) else ()

    def residuals(self, x_BCHW: Tensor, t: Tensor, text: Text) -> Residuals:
        """The network's residuals for blocks of these rows."""
        blocks = x_BCHW.shape[0] // len(self.controls)
        if blocks not in self._stacked:
            self._stacked[blocks] = stacked(self.controls * blocks)
        found = self._stacked[blocks].residuals(x_BCHW, t, text)
        if not self.weights:
            return found
        weights_B = torch.tensor(self.weights * blocks, dtype=torch.float32, device=x_BCHW.device)
        return {name: [_weighted(one, weights_B) for one in group] for name, group in found.items()}


class TunedRows(Rows):
    """The same for controls that change the base network; see `pipelines.tuning.Tunes`."""

    def tuned(self, network: nn.Module, residuals: Residuals) -> AbstractContextManager[Residuals]:
        """As each of them, whose loaded network is one."""
        first = self.controls[0]
        assert isinstance(first, Tunes)
        return first.tuned(network, residuals)


def stacked(controls: Sequence[PreparedControl]) -> PreparedControl:
    """Prepared controls of one network as one of its own class: their tensors, of one row each, under one another."""
    first: Any = controls[0]
    changed: dict[str, Any] = {}
    for name in _names(first):
        values = [getattr(control, name) for control in controls]
        if isinstance(values[0], Tensor):
            changed[name] = torch.cat(values)
        elif _holds_tensors(values[0]):
            changed[name] = tuple(torch.cat(level) for level in zip(*values, strict=True))
    found: PreparedControl = replace(first, **changed)
    return found


def _identity(control: PreparedControl) -> tuple[Hashable, ...]:
    """What must agree for controls to be stacked: all but what their tensors hold."""
    parts: list[Hashable] = [type(control)]
    for name in _names(control):
        value = getattr(control, name)
        if isinstance(value, Tensor):
            parts.append(tuple(value.shape))
        elif _holds_tensors(value):
            parts.append(tuple(tuple(one.shape) for one in value))
        else:
            parts.append(value if isinstance(value, (bool, int, float, str, type(None))) else id(value))
    return tuple(parts)


def _names(control: Any) -> list[str]:
    return [one.name for one in fields(control) if one.init]


def _holds_tensors(value: object) -> bool:
    return isinstance(value, (tuple, list)) and len(value) > 0 and all(isinstance(one, Tensor) for one in value)


def _weighted(residual: Tensor, weights_B: Tensor) -> Tensor:
    """A factor for each row; rounded once, as by a factor for all rows."""
    return (residual * weights_B.view(-1, *(1,) * (residual.ndim - 1))).to(residual.dtype)


def _outline(plan: Plan) -> tuple[Hashable, ...]:
    """How a plan's texts are laid out; lengths too, where a shorter text is filled up with something that is read."""
    sides = [*plan.sides, *([] if plan.negative is None else [Side.of(plan.negative)])]
    texts = [text for side in sides for _, text in side.texts]
    filled = any(text.filler is not None for text in texts)
    length = max(text.tokens_BLD.shape[1] for text in texts) if filled else None
    return (length, *((side.weight, tuple(end for end, _ in side.texts)) for side in sides))
