"""A checked request being drawn: batches of pictures that share their words, each picture scored and recorded."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

from controls.fidelity import compare
from controls.prepare import Prepared, settled
from core.control import Image
from core.errors import Cancelled
from core.provenance import ControlRecord, Fidelity, Record, WeightFile
from core.request import ControlUnit
from renderer.picture import OnStep, Picture, Step
from renderer.sources import digest_of, kind_of

if TYPE_CHECKING:  # torch is heavy: imported when a renderer is opened
    from torch import Tensor

    from pipelines.adapters import Lora
    from pipelines.mixing import Single
    from pipelines.passes import Drawn, Passes
    from pipelines.planning import Words
    from pipelines.preview import Preview

# Pictures are drawn in batches of at most so many pixels: more gain nothing and only cost memory.
_BATCH_PX = {"cpu": 8 * 128 * 128, "other": 8 * 512 * 512}
_LARGEST_BATCH = 16


@dataclass(frozen=True, eq=False)
class Job:
    """A checked request, ready to draw. words: each picture's; maps: at the size of the finished pictures; weights: all that take part."""

    passes: "Passes"
    words: "tuple[Words, ...]"
    loras: "dict[Words, tuple[Lora, ...]]"
    maps: tuple[Prepared, ...]
    weights: "dict[Words, tuple[WeightFile, ...]]"
    preview: "Preview | None"

    def batches(self) -> Iterator[range]:
        """Pictures that are drawn together: neighbours with the same words, as many as gain anything."""
        request, (width, height) = self.passes.request, self.passes.size
        most, first = together(width * height, self.passes.family.place.device.type), 0
        for i in range(1, request.count + 1):
            if i == request.count or i - first == most or self.words[i] != self.words[first]:
                yield range(first, i)
                first = i

    def draw(self, pictures: range, on_step: OnStep | None, cancelled: Callable[[], bool] | None) -> Iterator[Picture]:
        """The pictures with these numbers, drawn together."""
        from pipelines.images import tensor_to_pictures
        from pipelines.preview import default_preview, previews

        passes, family = self.passes, self.passes.family

        def report(rows: range, i: int, denoised: "Tensor") -> None:
            if on_step is not None:
                shown = lambda: previews(self.preview or default_preview(family), denoised, *_size_of(passes, denoised))  # noqa: E731
                on_step(Step(i, passes.steps, rows, shown, lambda: tensor_to_pictures(family.decode(denoised))))

        words = self.words[pictures.start]
        found = passes.draw(pictures, words, self.loras[words], report, asking(cancelled))
        for i, drawn in zip(pictures, found, strict=True):
            yield self.finished(i, drawn)

    @property
    def single(self) -> "Single":
        """Its first picture, as it can be mixed with other requests'."""
        from pipelines.mixing import Single

        return Single(self.passes, self.words[0], self.loras[self.words[0]])

    def finished(self, index: int, drawn: "Drawn", *, row: int = 0, rows: int = 1) -> Picture:
        """The picture with this number, scored and recorded. row: of the `rows` of a batch of several requests."""
        request, words, place_ = self.passes.request, self.words[index], self.passes.family.place
        image_HWC = _kept(drawn.image_HWC, request.controls, self.maps)
        scores, records = [], []
        for unit, prepared in zip(request.controls, self.maps, strict=True):
            control, params = kind_of(unit)
            params = settled(control, params, request.model)
            score = compare(control, prepared.map_HWC, image_HWC, params, where_HW=prepared.mask_HW, scale=prepared.scale)
            scores.append(score)
            records.append(
                ControlRecord(
                    source_sha256=prepared.source_sha256,
                    map_sha256=prepared.map_sha256,
                    mask_sha256=prepared.mask_sha256,
                    params=dict(prepared.params),
                    fidelity=None if score is None else Fidelity.of(score),
                )
            )
        record = Record(
            request=request,
            index=index,
            seed=request.seeds(index)[0],
            prompt=words.prompt if words.prompt != request.prompt else None,
            negative_prompt=words.negative if words.negative != request.negative_prompt else None,
            weights=self.weights[words],
            controls=tuple(records),
            init_sha256=_hash(request.init_image),
            mask_sha256=_hash(request.mask),
            device=str(place_.device),
            dtype=str(place_.dtype).removeprefix("torch."),
            threads=threads_of(place_.device.type),
            batch_row=row,
            batch_rows=rows,
            notes=(*dict.fromkeys(warning for prepared in self.maps for warning in prepared.warnings), *drawn.notes),
        )
        maps = tuple(prepared.map_HWC for prepared in self.maps)
        return Picture(PIL.Image.fromarray(image_HWC), tuple(scores), maps, record)


def _kept(image_HWC: Image, units: Sequence[ControlUnit], maps: Sequence[Prepared]) -> Image:
    """The drawn picture with what its controls promise of the finished pixels, each within its region."""
    for unit, prepared in zip(units, maps, strict=True):
        control, params = kind_of(unit)
        if control.finish is None or unit.weight == 0:
            continue
        finished_HWC = control.finish(image_HWC, prepared.map_HWC, params)
        if prepared.mask_HW is not None:
            share_HW1 = prepared.mask_HW[..., None] / np.float32(255)
            finished_HWC = np.rint(image_HWC + share_HW1 * (finished_HWC.astype(np.float32) - image_HWC)).astype(np.uint8)
        image_HWC = finished_HWC
    return image_HWC


def together(pixels: int, device: str) -> int:
    """How many pictures of so many pixels are drawn in one batch at most."""
    return max(1, min(_LARGEST_BATCH, _BATCH_PX["cpu" if device == "cpu" else "other"] // pixels))


def draw_many(jobs: Sequence[Job], cancelled: Callable[[], bool] | None) -> list[list[Picture]]:
    """The pictures of every job; those that agree in all but their rows' own are drawn in one batch."""
    from pipelines.mixing import kind_of as mixable

    groups: dict[Hashable, list[int]] = {}
    for i, job in enumerate(jobs):
        groups.setdefault(mixable(job.single) or i, []).append(i)
    found: dict[int, list[Picture]] = {}
    for numbers in groups.values():
        width, height = jobs[numbers[0]].passes.size
        most = together(width * height, jobs[numbers[0]].passes.family.place.device.type)
        for start in range(0, len(numbers), most):
            some = numbers[start : start + most]
            found |= zip(some, _draw_batch([jobs[i] for i in some], cancelled), strict=True)
    return [found[i] for i in range(len(jobs))]


def _draw_batch(jobs: Sequence[Job], cancelled: Callable[[], bool] | None) -> Iterator[list[Picture]]:
    """The pictures of jobs that can be mixed, or of one job."""
    from pipelines.mixing import draw_together

    if len(jobs) == 1:
        yield [picture for pictures in jobs[0].batches() for picture in jobs[0].draw(pictures, None, cancelled)]
        return
    drawn = draw_together([job.single for job in jobs], asking(cancelled))
    for row, (job, one) in enumerate(zip(jobs, drawn, strict=True)):
        yield [job.finished(0, one, row=row, rows=len(jobs))]


def asking(cancelled: Callable[[], bool] | None) -> Callable[[], None]:
    """What raises `Cancelled` when it is called after somebody has asked to stop."""

    def ask() -> None:
        if cancelled is not None and cancelled():
            raise Cancelled("cancelled by the caller")

    return ask


def threads_of(device: str) -> int | None:
    """How many threads compute on the CPU; the sums of other numbers of threads are rounded otherwise."""
    import torch

    return torch.get_num_threads() if device == "cpu" else None


def _size_of(passes: "Passes", latents: "Tensor") -> tuple[int, int]:
    """Width and height, in pixels, of the stage that latents are of."""
    sizes = [(stage.width, stage.height) for stage in passes.stages]
    return next(size for size in sizes if passes.family.latent_shape(*size)[1:] == tuple(latents.shape[-2:]))


def _hash(path: Path | None) -> str | None:
    return None if path is None else digest_of(path, path.stat().st_mtime_ns)
