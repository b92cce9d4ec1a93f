"""A request's pictures, batch by batch: denoised in one stage or two, decoded, and checked, with as little memory as it takes.

Axes: B pictures, C channels, H and W pixels, h and w latent cells.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from core.control import Image
from core.errors import OutOfMemory
from core.request import RenderRequest
from pipelines.adapters import Lora, LoraStack
from pipelines.canvas import Canvas, begin, pasted
from pipelines.denoise import Plan, denoise, invert, never
from pipelines.family import Family
from pipelines.images import tensor_to_pictures
from pipelines.memory import BLACK, TILED_FROM_PX, decode, fitting_size, frugally, persistently
from pipelines.noise import seeded_noise
from pipelines.planning import Stage, Words, make_inverting_plan, make_plan

# (the pictures that are drawn together, the step of all stages', x̂_0)
Report: TypeAlias = Callable[[range, int, Tensor], None]


@dataclass(frozen=True, eq=False)
class Source:
    """The picture to begin from at the size to draw, RGB uint8 HWC, and where to paint: 255, uint8 (H, W)."""

    image_HWC: Image
    mask_HW: NDArray[np.uint8] | None = None


@dataclass(frozen=True, eq=False)
class Drawn:
    """A finished picture, RGB uint8 HWC, and what the user should know about it."""

    image_HWC: Image
    notes: tuple[str, ...]


@dataclass(eq=False)
class Passes:
    """One request on one family. stages: with their controls; stack: the family's LoRAs."""

    request: RenderRequest
    family: Family
    stages: Sequence[Stage]
    stack: LoraStack
    source: Source | None = None
    _plans: dict[Words, tuple[list[Plan], list[str]]] = field(default_factory=dict, init=False)
    _canvas: Canvas | None = field(default=None, init=False)

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.times.steps for stage in self.stages)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the finished pictures."""
        return self.stages[-1].width, self.stages[-1].height

    @property
    def tiles(self) -> bool:
        """Whether pictures are decoded in tiles from the start."""
        width, height = self.size
        return self.request.tile_vae == "on" or (self.request.tile_vae == "auto" and width * height >= TILED_FROM_PX)

    def prepare(self, words: Words, loras: Sequence[Lora]) -> tuple[list[Plan], list[str]]:
        """The plans of all stages for these prompts, made once, and what the user should know; the LoRAs are in use from now on.

        Raises:
            BadRequest, BadModel, Mismatch: something that was asked for is wrong or does not fit.
        """
        if self.stack.use(loras):
            self.family.forget_texts()
        if words not in self._plans:
            notes: list[str] = []
            self._plans[words] = [make_plan(self.request, self.family, stage, words, notes) for stage in self.stages], notes
        return self._plans[words]

    def draw(
        self, pictures: range, words: Words, loras: Sequence[Lora], report: Report, before_call: Callable[[], None] = never
    ) -> list[Drawn]:
        """The request's pictures with these numbers, drawn together with the same prompts.

        Raises:
            BadModel: latents or pictures are not finite.
            OutOfMemory: nothing helped; the message names a size that fits.
        """
        plans, known = self.prepare(words, loras)
        notes: list[str] = []
        try:
            if self.source is not None and self._canvas is None:
                self._canvas = persistently(lambda: self._begin(before_call), self.family, notes)
            found = self.develop(lambda rows: self._latents(rows, plans, report, before_call, notes), pictures, notes)
        except OutOfMemory as error:
            raise self.too_large(len(pictures), plans[0]) from error
        images = [self._finished(image_HWC) for image_HWC in found]
        return [Drawn(image, (*known, *notes, *(() if image.any() else (BLACK,)))) for image in images]

    def develop(self, latents: Callable[[range], Tensor], rows: range, notes: list[str]) -> list[Image]:
        """latents(rows) as pictures, RGB uint8 HWC, in as few parts as memory allows; what was done is added to `notes`.

        Raises:
            BadModel: a picture is not finite.
            OutOfMemory: nothing helped.
        """
        latents_BChw = frugally(latents, rows, self.family, notes)

        def pixels(some: range) -> Tensor:
            return decode(self.family, latents_BChw[some.start - rows.start : some.stop - rows.start], tiles=self.tiles, notes=notes)

        return tensor_to_pictures(frugally(pixels, rows, self.family, notes))

    def _begin(self, before_call: Callable[[], None]) -> Canvas:
        assert self.source is not None
        canvas = begin(self.family, self.source.image_HWC, self.source.mask_HW, strength=self.request.strength)
        asked = self.request.inversion
        if asked is None:
            return canvas
        plan = make_inverting_plan(self.request, self.family, self.stages[0])
        x = invert(self.family, plan, canvas.latents_1Chw, iterations=asked.iterations, before_call=before_call)
        return replace(canvas, inverted_1Chw=x)

    def _latents(self, rows: range, plans: Sequence[Plan], report: Report, before_call: Callable[[], None], notes: list[str]) -> Tensor:
        canvas, before, latents = self._canvas, 0, torch.empty(0)
        seeds, variations = zip(*(self.request.seeds(i) for i in rows), strict=True)
        for stage, plan in zip(self.stages, plans, strict=True):
            if before:
                canvas = self._enlarged(latents, stage, notes)

            def on_step(i: int, denoised: Tensor, before: int = before) -> None:
                report(rows, before + i, denoised)

            noise = seeded_noise(
                seeds,
                self.family.latent_shape(stage.width, stage.height),
                self.family.place.device,
                variation_seeds=variations,
                variation_strength=self.request.variation_strength,
            )
            latents = denoise(self.family, replace(plan, canvas=canvas), noise, on_step, before_call=before_call)
            before += stage.times.steps
        return latents

    @torch.inference_mode()
    def _enlarged(self, latents_BChw: Tensor, stage: Stage, notes: list[str]) -> Canvas:
        """Where the second stage begins: the first one's latents, or the picture that they decode to, at its size."""
        assert self.request.hires is not None
        if self.request.hires.upscaler == "latent":
            shape = self.family.latent_shape(stage.width, stage.height)[1:]
            return Canvas(F.interpolate(latents_BChw, shape, mode="bilinear", align_corners=False))
        larger = []
        for image_HWC in tensor_to_pictures(decode(self.family, latents_BChw, notes=notes)):
            resized = PIL.Image.fromarray(image_HWC).resize((stage.width, stage.height), PIL.Image.Resampling.LANCZOS)
            larger.append(self.family.encode_image(np.array(resized)))
        return Canvas(torch.cat(larger).to(latents_BChw.device))

    def _finished(self, image_HWC: Image) -> Image:
        if self.source is None or self.source.mask_HW is None or not self.request.paste_back:
            return image_HWC
        return pasted(self.source.image_HWC, image_HWC, self.source.mask_HW)

    def too_large(self, count: int, plan: Plan) -> OutOfMemory:
        """The error that names a size at which one step and decoding found memory."""

        @torch.inference_mode()
        def attempt(width: int, height: int) -> None:
            branches = plan.branches(0)
            latents = torch.zeros(1, *self.family.latent_shape(width, height), device=self.family.place.device)
            for text in branches.texts:
                self.family.predict(latents, torch.tensor(0.5 * len(self.family.path), device=latents.device), text, None)
            self.family.decode(latents)

        width, height = self.size
        fits = fitting_size(self.family, attempt, width, height)
        remedy = (
            f"{fits[0]}x{fits[1]} fits without controls" if fits else "no smaller size fits either; use a smaller model or dtype float16"
        )
        return OutOfMemory(f"no memory for {count} pictures of {width}x{height} on {self.family.place.device}: {remedy}")
