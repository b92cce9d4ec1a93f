"""How controls act: weight, window, mode, levels and region of each, which of them are asked in one call, and the sum of all.

Axes: B rows, C channels, H and W latent cells, L tokens of the picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from core.errors import Mismatch
from core.request import Mode
from pipelines.family import PreparedControl, Residuals, Text
from pipelines.tuning import Tunes, check_parts

PROMPT_FADE = 0.825  # per level away from the middle, as in sd-webui-controlnet's unbalanced modes


@runtime_checkable
class Joins(Protocol):
    """A prepared control whose network can read another map in the same call."""

    def join(self, weight: float, other: PreparedControl, other_weight: float) -> tuple[PreparedControl, float] | None:
        """Both as one control, and its weight; None where the network has no way to."""
        ...


@runtime_checkable
class Fades(Protocol):
    """A prepared control that fades towards the outer levels by a curve of its own, outermost first; empty for the usual one."""

    @property
    def fade(self) -> Sequence[float]: ...


@dataclass(frozen=True, eq=False)
class Steering:
    """One prepared control and how it acts: from the fraction `start` of the steps to `end`, where `mask_HW` (0 … 1) lets it.

    mode: "prompt" fades the control towards the outer levels; "control" does so too, and steers the prompt's half of guidance alone;
    "guess" is that half with diffusers' curve for guess mode. layer_weights: a factor for each level, outermost first, the middle last;
    empty for 1 everywhere.

    Raises:
        Mismatch: a mask for a control without places, or another number of layer weights than the ControlNet has levels; anything but
            weight and window for a control that changes the network as a whole.
    """

    control: PreparedControl
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: Mode = "balanced"
    mask_HW: Tensor | None = None
    layer_weights: tuple[float, ...] = ()
    _masks: dict[tuple[tuple[int, int], bool], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.control, Tunes):
            check_parts(self.mode, self.layer_weights, masked=self.mask_HW is not None)
        check_acts(self.layer_weights, self.control.levels, masked=self.mask_HW is not None, pooled=self.control.positive_only)

    @property
    def positive_only(self) -> bool:
        """Whether the negative prompt's half goes unsteered."""
        return self.mode in ("control", "guess") or self.control.positive_only

    @property
    def silent(self) -> bool:
        """Whether it has no weight anywhere."""
        return self.weight == 0.0 or (self.layer_weights != () and not any(self.layer_weights))

    def active(self, i: int, steps: int) -> bool:
        """Whether the control acts in step i of `steps`: with weight, and with the whole step inside the window."""
        return not self.silent and inside(i, steps, self.start, self.end)

    def joined(self, other: "Steering") -> "Steering | None":
        """Both as one, where they act alike and one call of their network can serve them."""
        alike = all(getattr(self, name) == getattr(other, name) for name in ("start", "end", "mode", "layer_weights"))
        if self.silent or other.silent or not alike or not isinstance(self.control, Joins) or not _equal(self.mask_HW, other.mask_HW):
            return None
        found = self.control.join(self.weight, other.control, other.weight)
        return None if found is None else replace(self, control=found[0], weight=found[1])

    def residuals(self, x: Tensor, t: Tensor, text: Text) -> Residuals:
        """The network's residuals, weighted by level and region."""
        found = self.control.residuals(x, t, text)
        levels = sum(map(len, found.values()))
        weights = self.layer_weights or (1.0,) * levels
        fade = self.control.fade if isinstance(self.control, Fades) else ()
        curve = level_factors(self.mode, levels, fade)
        factors = iter([self.weight * own * factor for own, factor in zip(weights, curve, strict=True)])
        cells = (x.shape[-2] // self.control.patch, x.shape[-1] // self.control.patch)
        return {name: [self._scaled(one, next(factors), cells) for one in group] for name, group in found.items()}

    def _scaled(self, residual: Tensor, factor: float, cells: tuple[int, int]) -> Tensor:
        if self.mask_HW is not None:
            return residual * (self._mask_at(residual, cells) * factor)
        return residual * factor if factor != 1.0 else residual

    def _mask_at(self, residual: Tensor, cells: tuple[int, int]) -> Tensor:
        """The mask averaged over the cells of a level: (1, 1, H, W), or (1, L, 1) for tokens, its mean for those that are no cells."""
        assert self.mask_HW is not None
        tokens = residual.ndim == 3
        size = cells if tokens else (residual.shape[-2], residual.shape[-1])
        if (size, tokens) not in self._masks:
            mask = F.interpolate(self.mask_HW[None, None].float(), size, mode="area").to(residual.device, residual.dtype)
            self._masks[size, tokens] = mask.flatten(2).transpose(1, 2) if tokens else mask
        if tokens and residual.shape[1] > cells[0] * cells[1]:
            mask = self._masks[size, tokens]
            others = mask.mean().expand(1, residual.shape[1] - mask.shape[1], 1)
            return torch.cat([mask, others], dim=1)
        return self._masks[size, tokens]


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def united(steerings: Sequence[Steering]) -> tuple[Steering, ...]:
    """The controls, with those made one that act alike and that one call of their network can serve."""
    found: list[Steering] = []
    for one in steerings:
        for place, before in enumerate(found):
            if (both := before.joined(one)) is not None:
                found[place] = both
                break
        else:
            found.append(one)
    return tuple(found)


def check_acts(layer_weights: Sequence[float], levels: int | None, *, masked: bool, pooled: bool) -> None:
    """Whether a control can act so. levels: None where nobody knows; pooled: it is pooled over the whole picture.

    Raises:
        Mismatch: a region for a pooled control, or another number of layer weights than the ControlNet has levels.
    """
    if masked and pooled:
        raise Mismatch("a ControlNet that pools its control over the whole picture knows no region: leave out its mask")
    if layer_weights and levels is not None and len(layer_weights) != levels:
        raise Mismatch(
            f"layer_weights has {len(layer_weights)} numbers, this ControlNet has {levels} levels: give one for each, outermost first"
        )


def inside(i: int, steps: int, start: float, end: float) -> bool:
    """Whether the whole of step i lies between the fractions `start` and `end` of the steps, as diffusers counts."""
    return i / steps >= start and (i + 1) / steps <= end


def idle_window(start: float, end: float, steps: int) -> str | None:
    """What is wrong with a window in which no whole one of the steps lies, without its subject; None for others."""
    if steps == 0 or any(inside(i, steps, start, end) for i in range(steps)):
        return None
    return f"from {start:g} to {end:g} acts in none of the {steps} steps, for no whole one lies in between: widen its window"


def level_factors(mode: Mode, levels: int, fade: Sequence[float] = ()) -> list[float]:
    """The factor on the residual of each level, outermost first, the middle last. fade: a control's own in the modes that fade it.

    Source: sd-webui-controlnet, hook.py, 0.825^(12 − i) for its 13 levels, here counted from the middle for any number of them; diffusers,
    ControlNetModel, logspace(−1, 0) for guess mode.
    """
    if mode == "guess":
        return [10.0 ** (level / (levels - 1) - 1.0) for level in range(levels)] if levels > 1 else [1.0]
    if mode != "balanced" and fade:
        return list(fade)
    return [1.0 if mode == "balanced" else PROMPT_FADE ** (levels - 1 - level) for level in range(levels)]


def added(found: Sequence[Residuals]) -> Residuals | None:
    """Several controls' residuals added place by place and level by level."""
    total: Residuals = {}
    for one in found:
        for name, group in one.items():
            total[name] = [a + b for a, b in zip(total[name], group, strict=True)] if name in total else group
    return total or None


def lowered(residuals: Residuals, rows: int) -> Residuals:
    """Residuals of the last rows as residuals of all `rows`: nothing for the first ones."""
    return {name: [_lowered(residual, rows) for residual in group] for name, group in residuals.items()}


def _lowered(residual: Tensor, rows: int) -> Tensor:
    missing = rows - residual.shape[0]
    return torch.cat([residual.new_zeros(missing, *residual.shape[1:]), residual]) if missing else residual


def preceded(residuals: Residuals, rows: int) -> Residuals:
    """Residuals of the last rows as residuals of all `rows`: the first ones get those of the first that are there."""
    return {
        name: [torch.cat([one[: rows - one.shape[0]], one]) if one.shape[0] != rows else one for one in group]
        for name, group in residuals.items()
    }


def extended(residuals: Residuals, again: int, times: int) -> Residuals:
    """Residuals with their last `again` rows at the end so many times more."""
    if not times:
        return residuals
    return {name: [torch.cat([residual, *[residual[-again:]] * times]) for residual in group] for name, group in residuals.items()}


def spread_rows(residuals: Residuals, rows: int) -> Residuals:
    """Residuals of one row for `rows` rows."""
    return {
        name: [residual.expand(rows, *residual.shape[1:]) if residual.shape[0] == 1 else residual for residual in group]
        for name, group in residuals.items()
    }
