"""The one loop: noise becomes latents, for every family.

Guidance, control windows, modes, weights and region masks, batching, cancellation and the finite check stand here, once; nothing in
here knows a family's name. Axes: B pictures (twice as many rows under guidance, the negative prompt's first), C channels, H and W
latent cells, N steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from core.errors import BadModel, Mismatch
from core.request import Mode
from pipelines.family import Family, PreparedControl, Residuals, Text
from pipelines.samplers import Noise, OnStep, Sampler
from pipelines.schedules import Times

PROMPT_FADE = 0.825  # per level away from the middle, as in sd-webui-controlnet's unbalanced modes


@dataclass(frozen=True, eq=False)
class Steering:
    """One prepared control and how it acts: from the fraction `start` of the steps to `end`, where `mask_HW` (0 … 1) lets it.

    mode: "prompt" fades the control towards the outer levels; "control" does so too, and steers the prompt's half of guidance alone;
    "guess" is that half with diffusers' curve for guess mode.
    """

    control: PreparedControl
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: Mode = "balanced"
    mask_HW: Tensor | None = None
    _masks: dict[tuple[tuple[int, int], bool], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.mask_HW is not None and self.control.positive_only:
            raise Mismatch("a ControlNet that pools its control over the whole picture knows no region: leave out its mask")

    @property
    def positive_only(self) -> bool:
        """Whether the negative prompt's half goes unsteered."""
        return self.mode in ("control", "guess") or self.control.positive_only

    def active(self, i: int, steps: int) -> bool:
        """Whether the control acts in step i of `steps`: with weight, and with the whole step inside the window."""
        return self.weight != 0.0 and i / steps >= self.start and (i + 1) / steps <= self.end

    def residuals(self, x: Tensor, t: Tensor, text: Text) -> Residuals:
        """The network's residuals, weighted by level and region."""
        found = self.control.residuals(x, t, text)
        factors = iter(level_factors(self.mode, sum(map(len, found.values()))))
        cells = (x.shape[-2] // self.control.patch, x.shape[-1] // self.control.patch)
        return {name: [self._scaled(one, self.weight * next(factors), cells) for one in group] for name, group in found.items()}

    def _scaled(self, residual: Tensor, factor: float, cells: tuple[int, int]) -> Tensor:
        if self.mask_HW is not None:
            return residual * (self._mask_at(residual, cells) * factor)
        return residual * factor if factor != 1.0 else residual

    def _mask_at(self, residual: Tensor, cells: tuple[int, int]) -> Tensor:
        """The mask averaged over the cells of a level: (1, 1, H, W), or (1, L, 1) for tokens."""
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


def level_factors(mode: Mode, levels: int) -> list[float]:
    """The factor on the residual of each level, outermost first, the middle last.

    Source: sd-webui-controlnet, hook.py, 0.825^(12 − i) for its 13 levels, here counted from the middle for any number of them; diffusers,
    ControlNetModel, logspace(−1, 0) for guess mode.
    """
    if mode == "guess":
        return [10.0 ** (level / (levels - 1) - 1.0) for level in range(levels)] if levels > 1 else [1.0]
    return [1.0 if mode == "balanced" else PROMPT_FADE ** (levels - 1 - level) for level in range(levels)]


@dataclass(frozen=True, eq=False)
class Plan:
    """What to draw and how; negative: None leaves guidance out."""

    sampler: Sampler
    times: Times
    positive: Text
    negative: Text | None = None
    guidance_scale: float = 1.0
    controls: tuple[Steering, ...] = ()


def seeded_noise(seeds: Sequence[int], shape_CHW: tuple[int, int, int], device: torch.device) -> Noise:
    """Standard noise (B, C, H, W), each picture from a CPU generator of its own: neither batch nor device change it."""
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]

    def noise() -> Tensor:
        drawn = torch.cat([torch.randn((1, *shape_CHW), generator=generator) for generator in generators])
        if device.type == "cuda":  # from pinned memory the copy does not hold up the loop
            return drawn.pin_memory().to(device, non_blocking=True)
        return drawn.to(device)

    return noise


@torch.inference_mode()
def denoise(family: Family, plan: Plan, noise: Noise, on_step: OnStep) -> Tensor:
    """Noise to latents (B, C, H, W), float32; on_step(i, x̂_0) sees every step and may raise `Cancelled`.

    Raises:
        BadModel: the latents are not finite at the end.
    """
    times = plan.times
    x = noise() * times.initial
    latents = plan.sampler.run(_model(family, plan, x), x, times, on_step, noise)
    if not bool(latents.isfinite().all()):
        raise BadModel(
            f"the latents are not finite after denoising in {family.place.dtype}: the weights are damaged or overflow; try dtype float32"
        )
    return latents


def _model(family: Family, plan: Plan, x: Tensor) -> Callable[[Tensor, int], Tensor]:
    """(x at point i, i) → x̂_0, guided and steered."""
    times, count = plan.times, x.shape[0]
    positive = Text.rows([plan.positive] * count)
    text = positive if plan.negative is None else Text.rows([plan.negative] * count + [plan.positive] * count)
    t_N = torch.tensor(times.timesteps, dtype=torch.float32, device=x.device)

    def model(x: Tensor, i: int) -> Tensor:
        rows = x if plan.negative is None else torch.cat([x, x])
        controls = [control for control in plan.controls if control.active(i, len(times))]
        if family.residuals_shared and plan.negative is not None:
            shared = _sum([c.residuals(x, t_N[i], positive) for c in controls if not c.positive_only])
            everywhere = {name: [torch.cat([one, one]) for one in group] for name, group in shared.items()} if shared else None
        else:
            everywhere = _sum([c.residuals(rows, t_N[i], text) for c in controls if not c.positive_only])
        on_prompt = _sum([c.residuals(x, t_N[i], positive) for c in controls if c.positive_only])
        out = family.predict(rows, t_N[i], text, _combined(everywhere, on_prompt, rows.shape[0]))
        if plan.negative is not None:
            without, prompted = out.chunk(2)
            out = family.after_guidance(without + plan.guidance_scale * (prompted - without), prompted)
        return family.parameterisation.denoised(x, out, times.alphas[i], times.sigmas[i])

    return model


def _sum(found: Sequence[Residuals]) -> Residuals | None:
    """Several controls' residuals added place by place and level by level."""
    total: Residuals = {}
    for one in found:
        for name, group in one.items():
            total[name] = [a + b for a, b in zip(total[name], group, strict=True)] if name in total else group
    return total or None


def _combined(everywhere: Residuals | None, on_prompt: Residuals | None, rows: int) -> Residuals | None:
    """Residuals for all rows; those for the prompt's half, the last rows, are nothing for the negative one's."""
    if on_prompt is None:
        return everywhere
    whole = {name: [_lower(residual, rows) for residual in group] for name, group in on_prompt.items()}
    return _sum([whole] if everywhere is None else [everywhere, whole])


def _lower(residual: Tensor, rows: int) -> Tensor:
    return residual if residual.shape[0] == rows else torch.cat([torch.zeros_like(residual), residual])
