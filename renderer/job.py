"""A checked request being drawn: batches of pictures that share their words, each picture scored and recorded."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.Image

from controls.prepare import Prepared, settled
from core.errors import Cancelled
from core.provenance import ControlRecord, Fidelity, Record, WeightFile
from renderer.picture import OnStep, Picture, Step
from renderer.sources import digest_of, kind_of

if TYPE_CHECKING:  # torch is heavy: imported when a renderer is opened
    from torch import Tensor

    from pipelines.adapters import Lora
    from pipelines.passes import Drawn, Passes
    from pipelines.planning import Words
    from pipelines.preview import Preview

# Pictures are drawn in batches of at most so many pixels: more gain nothing and only cost memory.
_BATCH_PX = {"cpu": 8 * 128 * 128, "other": 8 * 512 * 512}
_LARGEST_BATCH = 16


@dataclass(frozen=True, eq=False)
class Job:
    """A checked request, ready to draw. words: each picture's; maps: at the size of the finished pictures."""

    passes: "Passes"
    words: "tuple[Words, ...]"
    loras: "dict[Words, tuple[Lora, ...]]"
    maps: tuple[Prepared, ...]
    weights: tuple[WeightFile, ...]
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

        def before_call() -> None:
            if cancelled is not None and cancelled():
                raise Cancelled("cancelled by the caller")

        words = self.words[pictures.start]
        found = passes.draw(pictures, words, self.loras[words], report, before_call)
        for i, drawn in zip(pictures, found, strict=True):
            yield self._finished(i, drawn)

    def _finished(self, index: int, drawn: "Drawn") -> Picture:
        request, words, place_ = self.passes.request, self.words[index], self.passes.family.place
        scores, records = [], []
        for unit, prepared in zip(request.controls, self.maps, strict=True):
            control, params = kind_of(unit)
            score = control.compare(prepared.map_HWC, drawn.image_HWC, settled(control, params, request.model))
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
            weights=self.weights,
            controls=tuple(records),
            init_sha256=_hash(request.init_image),
            mask_sha256=_hash(request.mask),
            device=str(place_.device),
            dtype=str(place_.dtype).removeprefix("torch."),
            notes=(*dict.fromkeys(warning for prepared in self.maps for warning in prepared.warnings), *drawn.notes),
        )
        maps = tuple(prepared.map_HWC for prepared in self.maps)
        return Picture(PIL.Image.fromarray(drawn.image_HWC), tuple(scores), maps, record)


def together(pixels: int, device: str) -> int:
    """How many pictures of so many pixels are drawn in one batch at most."""
    return max(1, min(_LARGEST_BATCH, _BATCH_PX["cpu" if device == "cpu" else "other"] // pixels))


def _size_of(passes: "Passes", latents: "Tensor") -> tuple[int, int]:
    """Width and height, in pixels, of the stage that latents are of."""
    sizes = [(stage.width, stage.height) for stage in passes.stages]
    return next(size for size in sizes if passes.family.latent_shape(*size)[1:] == tuple(latents.shape[-2:]))


def _hash(path: Path | None) -> str | None:
    return None if path is None else digest_of(path, path.stat().st_mtime_ns)
