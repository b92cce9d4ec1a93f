"""One request in, finished pictures out: check, extract, denoise, decode, score, record.

renderer = Renderer.open(model="toyland")
for picture in renderer.render(RenderRequest(prompt="a red sphere on grass", seed=7)):
    picture.save(folder)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

import controls
from controls.prepare import Prepared, load_map
from core.control import Control, Image, Score
from core.errors import BadImage, BadModel, BadRequest, OutOfMemory, unknown_name
from core.provenance import ControlRecord, Fidelity, Record, WeightFile, write_picture
from core.request import ControlUnit, Frozen, RenderRequest

if TYPE_CHECKING:  # torch is heavy: imported when a renderer is opened
    from torch import Tensor

    from pipelines.denoise import Plan, Steering
    from pipelines.engine import Engine
    from pipelines.family import Family

# Pictures are drawn in batches of at most so many pixels: more gain nothing and only cost memory.
_BATCH_PX = {"cpu": 8 * 128 * 128, "other": 8 * 512 * 512}
_LARGEST_BATCH = 16


@dataclass(frozen=True, eq=False)
class Picture:
    """A finished picture.

    image: PIL, RGB. fidelity: a score for each of the request's controls, None where it cannot be measured. maps: the control maps as the
    networks saw them. record: all that is needed to make it again.
    """

    image: PIL.Image.Image
    fidelity: tuple[Score | None, ...]
    maps: tuple[Image, ...]
    record: Record

    def save(self, folder: Path | str) -> Path:
        """Publish the picture as PNG, its record inside, under the name its record gives; equal pictures have equal names."""
        path = Path(folder) / self.record.file_name()
        write_picture(path, np.asarray(self.image), self.record)
        return path


@dataclass(frozen=True, eq=False)
class Step:
    """A moment of a render: step `index` of `steps` of the `pictures` (numbers in the request) that are drawn together."""

    index: int
    steps: int
    pictures: range
    _preview: Callable[[], list[Image]]

    def preview(self) -> list[Image]:
        """What the pictures would look like now (RGB uint8 HWC): the denoised estimate, decoded when asked for."""
        return self._preview()


OnStep = Callable[[Step], None]


class Renderer:
    """Draws requests with the models it keeps loaded."""

    def __init__(self, engine: "Engine", model: str) -> None:
        self.engine, self.model = engine, model

    @classmethod
    def open(cls, model: str = "toyland", device: str | None = None, dtype: str | None = None) -> "Renderer":
        """A renderer with `model` loaded; requests that name no model of their own are drawn with it.

        device: 'cuda', 'mps' or 'cpu', by default the first of them on this machine; dtype: 'float32' (default on the CPU), 'float16'
        (default elsewhere) or 'bfloat16'.

        Raises:
            BadModel, Mismatch: the model is missing, incomplete, damaged or of an unknown family.
            BadRequest: no such device or dtype.
        """
        from pipelines.engine import Engine, choose_place, resolve

        renderer = cls(Engine(choose_place(device, dtype)), model)
        renderer.engine.base(resolve(model))
        return renderer

    def render(self, request: RenderRequest, on_step: OnStep | None = None) -> list[Picture]:
        """The request's pictures, in order; `on_step` sees every step and may raise `Cancelled`.

        Raises:
            UserError: the request, a file or a model is wrong; found before anything is drawn.
            OutOfMemory: the pictures are too large for this machine.
        """
        return list(self.stream(request, on_step))

    def stream(self, request: RenderRequest, on_step: OnStep | None = None) -> Iterator[Picture]:
        """As `render`, each picture as soon as its batch is done."""
        if "model" not in request.model_fields_set:
            request = request.model_copy(update={"model": self.model})
        job = self._check(request)
        for first in range(0, request.count, job.batch):
            yield from job.draw(range(first, min(first + job.batch, request.count)), on_step)

    def _check(self, request: RenderRequest) -> "_Job":
        """Everything that can be wrong is found here, cheap things first: names and files, then models, then maps."""
        from pipelines import samplers
        from pipelines.checkpoint import open_checkpoint
        from pipelines.engine import resolve
        from pipelines.schedules import SCHEDULES

        samplers.get(request.sampler)
        if request.schedule not in SCHEDULES:
            raise unknown_name("schedule", request.schedule, SCHEDULES)
        for place, unit in enumerate(request.controls):
            _check_unit(unit, place)
        family = self.engine.base(resolve(request.model))
        for name, value in (("width", request.width), ("height", request.height)):
            if value % family.cell_px:
                raise BadRequest(f"{name} = {value}: this model draws in cells of {family.cell_px} pixels; give a multiple")
        folders = [_control_folder(unit, family) for unit in request.controls]
        for folder in folders:
            family.check_control(open_checkpoint(folder))
        nets = [self.engine.control(family, folder) for folder in folders]
        maps = [load_map(unit, request.width, request.height) for unit in request.controls]
        weights = self.engine.weights("base", family.checkpoint.path, tuple(family.networks()))
        for place, folder in enumerate(folders):
            weights += self.engine.weights(f"control {place}", folder)
        plan, notes = _plan(request, family, nets, maps)
        return _Job(request, family, plan, tuple(maps), tuple(weights), notes)


@dataclass(frozen=True, eq=False)
class _Job:
    """A checked request, ready to draw."""

    request: RenderRequest
    family: "Family"
    plan: "Plan"
    maps: tuple[Prepared, ...]
    weights: tuple[WeightFile, ...]
    notes: tuple[str, ...]

    @property
    def batch(self) -> int:
        limit = _BATCH_PX["cpu" if self.family.place.device.type == "cpu" else "other"]
        return max(1, min(_LARGEST_BATCH, limit // (self.request.width * self.request.height)))

    def draw(self, pictures: range, on_step: OnStep | None) -> Iterator[Picture]:
        """The pictures with these numbers, drawn together."""
        import torch

        from pipelines.denoise import denoise, seeded_noise
        from pipelines.images import tensor_to_pictures

        def decoded(latents: "Tensor") -> list[Image]:
            return tensor_to_pictures(self.family.decode(latents))

        def report(i: int, denoised: "Tensor") -> None:
            if on_step is not None:
                on_step(Step(i, self.request.steps, pictures, lambda: decoded(denoised)))

        shape = self.family.latent_shape(self.request.width, self.request.height)
        noise = seeded_noise([self.request.seed + i for i in pictures], shape, self.family.place.device)
        try:
            latents = denoise(self.family, self.plan, noise, report)
            pixels = self.family.decode(latents)
        except (MemoryError, RuntimeError) as error:
            # On a GPU torch has an exception of its own, on the CPU only words.
            if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "DefaultCPUAllocator" not in str(error):
                raise
            raise OutOfMemory(
                f"no memory for {len(pictures)} pictures of {self.request.width}x{self.request.height} on {self.family.place.device}: "
                "draw smaller or fewer pictures"
            ) from error
        if not bool(pixels.isfinite().all()):
            raise BadModel(f"the picture is not finite after decoding in {self.family.place.dtype}: try dtype float32")
        for i, image_HWC in zip(pictures, tensor_to_pictures(pixels), strict=True):
            yield self._finished(i, image_HWC)

    def _finished(self, index: int, image_HWC: Image) -> Picture:
        scores, records = [], []
        for unit, prepared in zip(self.request.controls, self.maps, strict=True):
            control, params = _kind(unit)
            score = control.compare(prepared.map_HWC, image_HWC, params)
            scores.append(score)
            records.append(
                ControlRecord(
                    source_sha256=prepared.source_sha256,
                    map_sha256=prepared.map_sha256,
                    mask_sha256=prepared.mask_sha256,
                    params={} if unit.ready else params.model_dump(mode="json"),
                    fidelity=None if score is None else Fidelity.of(score),
                )
            )
        record = Record(
            request=self.request,
            index=index,
            seed=self.request.seed + index,
            weights=self.weights,
            controls=tuple(records),
            device=str(self.family.place.device),
            dtype=str(self.family.place.dtype).removeprefix("torch."),
            notes=self.notes,
        )
        maps = tuple(prepared.map_HWC for prepared in self.maps)
        return Picture(PIL.Image.fromarray(image_HWC), tuple(scores), maps, record)


def _kind(unit: ControlUnit) -> tuple[Control, Frozen]:
    control = controls.get(unit.kind)
    return control, control.parse_params(unit.params)


def _check_unit(unit: ControlUnit, place: int) -> None:
    """Whether a control's kind and settings are known and its files are there."""
    control, _ = _kind(unit)
    for what, path in (("image", unit.image), ("mask", unit.mask)):
        if path is not None and not path.is_file():
            raise BadImage(f"control {place} ({unit.kind}): {what} {str(path)!r} is not a file: check the path")
    if not unit.ready and not control.available() and unit.image.suffix.lower() != ".json":
        raise BadRequest(f"control {place}: no {unit.kind} estimator is installed; give a finished {unit.kind} map with 'ready'")


def _control_folder(unit: ControlUnit, family: "Family") -> Path:
    """The ControlNet that a control names, or the one for its kind: beside the base model, else the published one."""
    from pipelines.engine import default_control, resolve

    if unit.model is not None:
        return resolve(unit.model)
    beside = default_control(family.checkpoint.path, unit.kind)
    if beside is not None:
        return beside
    published = controls.get(unit.kind).weights.get(family.name)
    if published is None:
        raise BadRequest(f"no ControlNet for {unit.kind} is known for this model: give one with model=FOLDER")
    return resolve(published.repo, published.revision)


def _plan(request: RenderRequest, family: "Family", nets: list[Any], maps: list[Prepared]) -> tuple["Plan", tuple[str, ...]]:
    """What the loop needs, and what the user should know."""
    from pipelines import samplers
    from pipelines.denoise import Plan
    from pipelines.family import Drawing
    from pipelines.schedules import make_times

    sampler = samplers.get(request.sampler)
    times = make_times(
        family.path,
        request.schedule,
        request.steps,
        sampler.grid,
        steps_offset=family.steps_offset,
        end_on_first=family.end_on_first,
    )
    guided = request.guidance_scale != 1.0
    drawing = Drawing(request.width, request.height, request.guidance_scale)
    positive = family.bind(family.encode_prompt(request.prompt), drawing)
    negative = family.bind(family.encode_prompt(request.negative_prompt), drawing) if guided else None
    notes = [warning for prepared in maps for warning in prepared.warnings]
    for name, text in (("prompt", positive), ("negative prompt", negative)):
        if text is not None and text.dropped:
            notes.append(f"the {name} is longer than the text encoder takes; dropped: {text.dropped!r}")
    controls_ = _steerings(request, family, nets, maps)
    return Plan(sampler, times, positive, negative, request.guidance_scale, controls_), tuple(notes)


def _steerings(request: RenderRequest, family: "Family", nets: list[Any], maps: list[Prepared]) -> tuple["Steering", ...]:
    """The controls ready for the loop; one map through one network is embedded once, however often it is used."""
    import torch

    from pipelines.denoise import Steering
    from pipelines.family import Hint

    prepared: dict[tuple[int, str, str], Any] = {}
    steerings = []
    for unit, net, one in zip(request.controls, nets, maps, strict=True):
        key = (id(net), one.map_sha256, unit.kind)
        if key not in prepared:
            prepared[key] = family.prepare(net, Hint(one.map_HWC, unit.kind))
        mask = None if one.mask_HW is None else torch.from_numpy(one.mask_HW).float() / 255.0
        steerings.append(Steering(prepared[key], unit.weight, unit.start, unit.end, unit.mode, mask))
    return tuple(steerings)
