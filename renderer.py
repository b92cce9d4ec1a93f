"""One request in, finished pictures out: check, extract, denoise, decode, score, record.

renderer = Renderer.open(model="toyland")
for picture in renderer.render(RenderRequest(prompt="a red sphere on grass", seed=7)):
    picture.save(folder)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import PIL.Image

import controls
from controls.prepare import Prepared, load_map, settled, takes_own_file
from controls.source import load_source
from core.control import Control, Image, Score
from core.errors import BadImage, BadRequest, Cancelled, unknown_name
from core.files import sha256_file
from core.provenance import ControlRecord, Fidelity, Record, WeightFile, write_picture
from core.request import ControlUnit, Frozen, RenderRequest

if TYPE_CHECKING:  # torch is heavy: imported when a renderer is opened
    from torch import Tensor

    from pipelines.adapters import Lora, LoraStack
    from pipelines.doctor import Finding
    from pipelines.engine import Engine
    from pipelines.family import Family
    from pipelines.passes import Drawn, Passes, Source
    from pipelines.planning import Given, Words
    from pipelines.preview import Preview
    from pipelines.residency import Memory

ROOT = Path(__file__).resolve().parent
# Pictures are drawn in batches of at most so many pixels: more gain nothing and only cost memory.
_BATCH_PX = {"cpu": 8 * 128 * 128, "other": 8 * 512 * 512}
_LARGEST_BATCH = 16


@dataclass(frozen=True, eq=False)
class Picture:
    """A finished picture.

    image: PIL, RGB. fidelity: a score for each of the request's controls, None where it cannot be measured. maps: the control maps as the
    networks saw them last, at the picture's size. record: all that is needed to make it again.
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
    _decode: Callable[[], list[Image]]

    def preview(self) -> list[Image]:
        """What the pictures look like now (RGB uint8 HWC), fast and coarse: x̂_0 without the autoencoder."""
        return self._preview()

    def decode(self) -> list[Image]:
        """The same through the autoencoder: exact, and as slow as the end of a render."""
        return self._decode()


OnStep = Callable[[Step], None]


class LoadMap(Protocol):
    """As `controls.prepare.load_map`."""

    def __call__(self, unit: ControlUnit, width: int, height: int, *, model: str = ...) -> Prepared: ...


class Renderer:
    """Draws requests with the models it keeps loaded."""

    def __init__(self, engine: "Engine", model: str, preview: "Preview | None" = None) -> None:
        self.engine, self.model, self.preview = engine, model, preview
        self.load_map: LoadMap = load_map  # a batch puts one in its place that has extracted ahead
        self._stacks: WeakKeyDictionary[Family, LoraStack] = WeakKeyDictionary()

    @classmethod
    def open(
        cls,
        model: str = "toyland",
        device: str | None = None,
        dtype: str | None = None,
        *,
        preview: str | None = None,
        memory: "Memory | None" = None,
    ) -> "Renderer":
        """A renderer with `model` loaded; requests that name no model of their own are drawn with it.

        device: 'cuda', 'mps' or 'cpu', by default the first of them here; dtype: 'float32' (default on the CPU), 'float16' (elsewhere) or
        'bfloat16'; preview: an AutoencoderTiny, by default see `pipelines.preview.default_preview`; memory: by default all on the device.

        Raises:
            BadModel, Mismatch: the model is missing, incomplete, damaged or of an unknown family.
            BadRequest: no such device or dtype.
            OutOfMemory: the model is too large for this machine.
        """
        from pipelines.engine import Engine, choose_place, resolve
        from pipelines.preview import TinyPreview

        spot = choose_place(device, dtype)
        renderer = cls(Engine(spot, memory), model, None if preview is None else TinyPreview.load(resolve(preview), spot))
        renderer._base(model)
        return renderer

    def render(
        self, request: RenderRequest, on_step: OnStep | None = None, *, cancelled: Callable[[], bool] | None = None
    ) -> list[Picture]:
        """The request's pictures, in order; `on_step` sees every step and may raise `Cancelled`; `cancelled` is asked before every network.

        Raises:
            UserError: the request, a file or a model is wrong; found before anything is drawn.
            OutOfMemory: the pictures are too large for this machine; the message names a size that fits.
        """
        return list(self.stream(request, on_step, cancelled=cancelled))

    def stream(
        self, request: RenderRequest, on_step: OnStep | None = None, *, cancelled: Callable[[], bool] | None = None
    ) -> Iterator[Picture]:
        """As `render`, each picture as soon as its batch is done."""
        request = self._named(request)
        for finding in self.examine(request, fetch=True):
            if finding.error is not None:
                raise finding.error
        job = self._check(request)
        for pictures in job.batches():
            yield from job.draw(pictures, on_step, cancelled)

    def examine(self, request: RenderRequest, *, fetch: bool = False) -> "list[Finding]":
        """What will be wrong with a request, errors and warnings, before any weight is moved. fetch: models may be downloaded."""
        return examine(self._named(request), self.engine, fetch=fetch)

    def _named(self, request: RenderRequest) -> RenderRequest:
        return request if "model" in request.model_fields_set else request.model_copy(update={"model": self.model})

    def _check(self, request: RenderRequest) -> "_Job":
        """Everything that can be wrong is found here, cheap things first: names and files, then models, then maps."""
        from pipelines import samplers
        from pipelines.memory import explained
        from pipelines.passes import Passes, Source
        from pipelines.planning import loras_of, stages_of, with_controls, with_defaults, words_of
        from pipelines.schedules import SCHEDULES

        samplers.get(request.sampler)
        if request.schedule not in SCHEDULES:
            raise unknown_name("schedule", request.schedule, SCHEDULES)
        _check_files(request)
        for i, unit in enumerate(request.controls):
            _check_unit(unit, i)
        words = [words_of(request, i, next(iter(folders_of("wildcards")), None)) for i in range(request.count)]
        family = self._base(request.model)
        request = with_defaults(request, family)
        for name, value in (("width", request.width), ("height", request.height)):
            if value % family.side_px:
                raise BadRequest(f"{name} = {value}: this model draws in cells of {family.side_px} pixels; give a multiple")
        stages = stages_of(request, family)
        folders = folders_of("loras", family.checkpoint.path)
        loras = {one: loras_of(request, one, folders) for one in dict.fromkeys(words)}
        nets, weights = self._nets(request, family)
        for i, path in enumerate(dict.fromkeys(lora.path for some in loras.values() for lora in some)):
            weights.append(WeightFile(part=f"lora {i}", file=path.name, sha256=_digest(path, path.stat().st_mtime_ns)))
        begin = load_source(request)
        source = None if begin is None else Source(*begin)
        maps = [tuple(self.load_map(unit, stage.width, stage.height, model=request.model) for unit in request.controls) for stage in stages]
        with explained("to prepare the controls and the text", "give fewer controls or a smaller size, or use a smaller model"):
            for i, found in enumerate(maps):
                if i == 0 or request.hires is None or request.hires.with_control:
                    given = [_given(*one, source) for one in zip(request.controls, nets, found, strict=True)]
                    stages[i] = with_controls(stages[i], family, given)
            passes = Passes(request, family, stages, self._stack(family), source)
            passes.prepare(words[0], loras[words[0]])
        return _Job(passes, tuple(words), loras, maps[-1], tuple(weights), self.preview)

    def _base(self, model: str) -> "Family":
        from pipelines.engine import resolve
        from pipelines.memory import explained

        with explained(f"to load {model!r}", "use a smaller model, or dtype float16"):
            family = self.engine.base(resolve(model))
        embeddings = folders_of("embeddings", family.checkpoint.path)
        if embeddings and getattr(family, "inversions", ()) is None:
            from pipelines.inversion import load_inversions

            setattr(family, "inversions", load_inversions(*embeddings))  # noqa: B010 (UNet families alone have them)
        return family

    def _stack(self, family: "Family") -> "LoraStack":
        from pipelines.adapters import LoraStack

        if family not in self._stacks:
            self._stacks[family] = LoraStack(family.networks())
        return self._stacks[family]

    def _nets(self, request: RenderRequest, family: "Family") -> tuple[list[Any], list[WeightFile]]:
        """A network for each control, and all weight files that take part."""
        from pipelines.checkpoint import open_checkpoint
        from pipelines.memory import explained

        folders = [_control_folder(unit, family) for unit in request.controls]
        for folder in folders:
            if folder is not None:
                family.check_control(open_checkpoint(folder))
        with explained("to load the ControlNets", "give fewer controls, or use dtype float16"):
            nets = [family.own_control() if folder is None else self.engine.control(family, folder) for folder in folders]
        weights = self.engine.weights("base", family.checkpoint.path, tuple(family.networks()))
        for i, folder in enumerate(folders):
            weights += [] if folder is None else self.engine.weights(f"control {i}", folder)
        return nets, weights


@dataclass(frozen=True, eq=False)
class _Job:
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
        most, first = _together(width * height, self.passes.family.place.device.type), 0
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
            control, params = _kind(unit)
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


def _size_of(passes: "Passes", latents: "Tensor") -> tuple[int, int]:
    """Width and height, in pixels, of the stage that latents are of."""
    sizes = [(stage.width, stage.height) for stage in passes.stages]
    return next(size for size in sizes if passes.family.latent_shape(*size)[1:] == tuple(latents.shape[-2:]))


def _together(pixels: int, device: str) -> int:
    """How many pictures of so many pixels are drawn in one batch at most."""
    return max(1, min(_LARGEST_BATCH, _BATCH_PX["cpu" if device == "cpu" else "other"] // pixels))


def _kind(unit: ControlUnit) -> tuple[Control, Frozen]:
    control = controls.get(unit.kind)
    return control, control.parse_params(unit.params)


def _hash(path: Path | None) -> str | None:
    return None if path is None else _digest(path, path.stat().st_mtime_ns)


@lru_cache(256)
def _digest(path: Path, changed_ns: int) -> str:
    """A file's SHA-256, computed once for as long as the file stays as it is."""
    return sha256_file(path)


def folders_of(name: str, base: Path | None = None) -> list[Path]:
    """Where files of a kind ("loras", "wildcards") lie: beside the base model, in the working directory, in Limn's models."""
    beside = [] if base is None else [base.resolve().parent / name]
    return [folder for folder in (*beside, Path(name), ROOT / "models" / name) if folder.is_dir()]


def _check_files(request: RenderRequest) -> None:
    for what, path in (("init_image", request.init_image), ("mask", request.mask)):
        if path is not None and not path.is_file():
            raise BadImage(f"{what} {str(path)!r} is not a file: check the path")


def _check_unit(unit: ControlUnit, index: int) -> None:
    """Whether a control's kind and settings are known and its files are there."""
    control, params = _kind(unit)
    for what, path in (("image", unit.image), ("mask", unit.mask)):
        if path is not None and not path.is_file():
            raise BadImage(f"control {index} ({unit.kind}): {what} {str(path)!r} is not a file: check the path")
    if not unit.ready and not control.available(params) and not takes_own_file(control, unit.image):
        raise BadRequest(f"control {index}: no {unit.kind} estimator is installed; give a finished {unit.kind} map with 'ready'")


def examine(request: RenderRequest, engine: "Engine", *, fetch: bool = False) -> "list[Finding]":
    """As `Renderer.examine`, for a request that names its model; the engine need not hold it."""
    from pipelines import doctor

    around = doctor.Surroundings(
        checks=[("files", partial(_check_files, request))]
        + [(f"control {i} ({unit.kind})", partial(_check_unit, unit, i)) for i, unit in enumerate(request.controls)],
        find_net=lambda unit, family: _control_folder(unit, family, fetch=fetch),
        kinds=controls.names(),
        loras=lambda base: folders_of("loras", base),
        wildcards=next(iter(folders_of("wildcards")), None),
        fetch=fetch,
        together=lambda asked: min(asked.count, _together(asked.width * asked.height, engine.place.device.type)),
    )
    return doctor.examine(request, engine, around)


def _control_folder(unit: ControlUnit, family: "Family", *, fetch: bool = True) -> Path | None:
    """The ControlNet that a control names, or the one for its kind: beside the base model, else the published one.

    None for a base model that reads maps itself.
    """
    from pipelines.engine import default_control, resolve

    if unit.model is not None:
        return resolve(unit.model, fetch=fetch)
    beside = default_control(family.checkpoint.path, unit.kind)
    if beside is not None:
        return beside
    if family.own_control() is not None:
        return None
    published = controls.get(unit.kind).weights.get(family.name)
    if published is None:
        raise BadRequest(f"no ControlNet for {unit.kind} is known for this model: give one with model=FOLDER")
    return resolve(published.repo, published.revision, fetch=fetch)


def _given(unit: ControlUnit, net: Any, prepared: Prepared, source: "Source | None") -> "Given":
    """A control as planning takes it; an inpainting ControlNet is shown where the picture is painted."""
    from pipelines.family import Hint
    from pipelines.planning import Given

    hole = source.mask_HW if source is not None and unit.kind == "inpaint" else None
    return Given(unit, net, Hint(prepared.map_HWC, unit.kind, hole), prepared.map_sha256, prepared.mask_HW)
