"""The one loop: noise becomes latents, for every family.

What a step asks the network is put together here, from guidance, controls and canvas; nothing in here knows a family's name. Axes: B
pictures (rows are blocks of B, see `pipelines.guidance`), C channels, H and W latent cells, N points.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from core.errors import BadModel, Mismatch
from core.request import SkipLayers
from pipelines import samplers
from pipelines.attention import perturbed, remembered, shared_start
from pipelines.canvas import Canvas
from pipelines.family import Family, Residuals, Text
from pipelines.guidance import Branches, Guidance, Side, check_weights
from pipelines.lora_names import DENOISERS
from pipelines.noise import Noise
from pipelines.noise import seeded_noise as seeded_noise
from pipelines.onednn import by_onednn
from pipelines.samplers import OnStep, Sampler
from pipelines.schedules import Times
from pipelines.skipping import passed_by, skipped_blocks, skips
from pipelines.steering import Steering, added, extended, inside, lowered, preceded, spread_rows
from pipelines.steering import level_factors as level_factors
from pipelines.tuning import tuned


@runtime_checkable
class HasNetwork(Protocol):
    """A prepared control that says which network it asks, so that the text is projected once for it too."""

    @property
    def network(self) -> nn.Module: ...


@dataclass(frozen=True, eq=False)
class Plan:
    """What to draw and how.

    positive: a text, or the sides of its ANDs; negative: None leaves classifier-free guidance out. guidance_scale to skip: see
    `Guidance`. canvas: where to begin; None for pure noise. share_start: the halves of guidance begin as one (see `shared_start`).
    """

    sampler: Sampler
    times: Times
    positive: Text | Sequence[Side]
    negative: Text | Side | None = None
    guidance_scale: float = 1.0
    controls: tuple[Steering, ...] = ()
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    guidance_rescale: float = 0.0
    pag_scale: float = 0.0
    skip: SkipLayers | None = None
    canvas: Canvas | None = None
    share_start: bool = False

    @property
    def guidance(self) -> Guidance:
        """The plan's guidance in one."""
        skipped = 0.0 if self.skip is None else self.skip.scale
        return Guidance(self.guidance_scale, self.guidance_start, self.guidance_end, self.guidance_rescale, skipped, self.pag_scale)

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides of the prompt's ANDs, one at least."""
        return (Side.of(self.positive),) if isinstance(self.positive, Text) else tuple(self.positive)

    def branches(self, step: int) -> Branches:
        """What step `step` asks."""
        guided = inside(step, self.times.steps, self.guidance_start, self.guidance_end)
        negative = Side.of(self.negative).at(step) if guided and self.negative is not None else None
        sides = self.sides
        return Branches(
            negative,
            tuple(side.at(step) for side in sides),
            tuple(side.weight for side in sides),
            self.skip is not None and skips(self.skip, step, self.times.steps),
            guided and self.pag_scale != 0.0,
        )


def never() -> None:
    """Nobody asks to stop."""


@torch.inference_mode()
def denoise(family: Family, plan: Plan, noise: Noise, on_step: OnStep, *, before_call: Callable[[], None] = never) -> Tensor:
    """Noise to latents (B, C, H, W), float32; on_step(i, x̂_0) sees every step, `before_call` every forward; both may raise `Cancelled`.

    Raises:
        BadModel: the latents are not finite at the end.
        BadRequest: the weights of the prompt's ANDs have no mean, or blocks are to be skipped that there are not.
        Mismatch: the family has no attention that could be perturbed, or no blocks that could be skipped.
    """
    check_weights(plan.sides)
    times, canvas, first = plan.times, plan.canvas, noise()
    x = first * times.initial if canvas is None else canvas.first(first, times)
    if len(times) == 0:  # strength 0: the picture stays
        return x if canvas is None else canvas.latents_1Chw.expand_as(first).clone()
    loop = _Loop(family, plan, first, before_call)
    controls = [steering.control for steering in plan.controls]
    networks = [*_denoisers(family), *(control.network for control in controls if isinstance(control, HasNetwork))]
    with by_onednn(networks, family.place), remembered(networks):
        latents = plan.sampler.run(loop.model, x, times, on_step, noise)
    if canvas is not None:
        latents = canvas.fixed(latents)
    if not bool(latents.isfinite().all()):
        raise BadModel(
            f"the latents are not finite after denoising in {family.place.dtype}: the weights are damaged or overflow; try dtype float32"
        )
    return latents


@torch.inference_mode()
def invert(family: Family, plan: Plan, latents: Tensor, *, iterations: int = 5, before_call: Callable[[], None] = never) -> Tensor:
    """The x (B, C, H, W) from which the plan draws these latents; its times end on the path's first point.

    Raises:
        BadModel: the result is not finite.
        BadRequest: the plan's sampler has no single way back.
    """
    loop = _Loop(family, plan, latents, before_call)
    networks = _denoisers(family)
    with by_onednn(networks, family.place), remembered(networks):
        x = samplers.invert(loop.model, latents, plan.times, sampler=plan.sampler.name, iterations=iterations)
    if not bool(x.isfinite().all()):
        raise BadModel(f"inversion in {family.place.dtype} overflowed: try dtype float32, more steps or more iterations")
    return x


def _denoisers(family: Family) -> list[nn.Module]:
    """The networks that are at work in the loop; the autoencoder is not, so that it rounds alike wherever it is called."""
    return [network for name, network in family.networks().items() if name in DENOISERS]


class _Loop:
    """What the sampler calls: (x at point i, i) → x̂_0, guided and steered."""

    def __init__(self, family: Family, plan: Plan, noise: Tensor, before_call: Callable[[], None]) -> None:
        self.family, self.plan, self.noise, self.before_call = family, plan, noise, before_call
        self.t_N = torch.tensor(plan.times.timesteps, dtype=torch.float32, device=noise.device)
        self._texts: dict[tuple[int, ...], Text] = {}

    def model(self, x: Tensor, i: int) -> Tensor:
        """x̂_0 (B, C, H, W)."""
        self.before_call()
        plan, times, canvas = self.plan, self.plan.times, self.plan.canvas
        step = i // times.substeps
        if canvas is not None and not (i == 0 and canvas.from_noise):
            x = canvas.noised(x, self.noise, times, i)
        branches = plan.branches(step)
        rows = x.repeat(len(branches.texts), 1, 1, 1)
        controls = [control for control in plan.controls if control.active(step, times.steps)]
        residuals = self._residuals(x, i, branches, controls)
        tuning = tuned(self._network, [control.control for control in controls], residuals)
        with self._attention(branches, x.shape[0]), tuning as left:
            out = self.family.predict(rows, self.t_N[i], self._rows(branches.texts, x.shape[0]), left)
        out, prompted = branches.guided(out, plan.guidance)
        if branches.negative is not None:
            out = self.family.after_guidance(out, prompted)
        denoised = self.family.parameterisation.denoised(x, out, times.alphas[i], times.sigmas[i])
        return denoised if canvas is None else canvas.fixed(denoised)

    @property
    def _network(self) -> nn.Module:
        return next(iter(_denoisers(self.family)), nn.Identity())

    def _residuals(self, x: Tensor, i: int, branches: Branches, controls: Sequence[Steering]) -> Residuals | None:
        """What is added to the network: the controls' residuals block by block, and what an inpainting model is told."""
        count = x.shape[0]
        found = []
        for control in controls:
            prompted = control.positive_only or self.family.residuals_shared
            texts = branches.sides if prompted else branches.whole
            one = control.residuals(x.repeat(len(texts), 1, 1, 1), self.t_N[i], self._rows(texts, count))
            one, rows = spread_rows(one, len(texts) * count), len(branches.whole) * count
            found.append(lowered(one, rows) if control.positive_only else preceded(one, rows))
        total = added(found)
        if total is not None:  # as if the sides had been asked again: only the base is made weaker
            total = extended(total, len(branches.sides) * count, branches.weaker)
        told = None if self.plan.canvas is None else self.plan.canvas.told
        return total if told is None else (total or {}) | spread_rows(told, len(branches.texts) * count)

    def _rows(self, texts: tuple[Text, ...], count: int) -> Text:
        """The texts of all blocks, `count` rows each, or as many as a text has; the same tensors at every step."""
        key = (count, *map(id, texts))
        if key not in self._texts:
            self._texts[key] = Text.rows([text for text in texts for _ in range(count if text.tokens_BLD.shape[0] == 1 else 1)])
        return self._texts[key]

    @contextmanager
    def _attention(self, branches: Branches, count: int) -> Iterator[None]:
        networks = self.family.networks()
        network = networks.get("unet") or networks.get("transformer")
        if branches.perturbed and not (network and self.family.perturbed_layers):
            raise Mismatch(f"{self.family.title} has no perturbed-attention guidance: set pag_scale to 0")
        shared, rows = len(branches.texts) if self.plan.share_start else 1, len(branches.sides) * count
        with shared_start(network or nn.Identity(), shared), ExitStack() as weaker:
            if branches.skipped and self.plan.skip is not None:
                first = len(branches.whole) * count
                weaker.enter_context(passed_by(skipped_blocks(self.family, self.plan.skip), range(first, first + rows)))
            if branches.perturbed and network is not None:
                weaker.enter_context(perturbed(network, self.family.perturbed_layers, rows))
            yield
