"""The renderer: models it keeps loaded, and requests checked and drawn with them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from controls.prepare import Prepared, load_map
from controls.source import load_source
from core.errors import BadRequest, unknown_name
from core.provenance import WeightFile
from core.request import ControlUnit, RenderRequest
from renderer.examination import examine
from renderer.job import Job, draw_many
from renderer.picture import OnStep, Picture
from renderer.sources import check_files, check_unit, control_folder, folders_of, weights_of

if TYPE_CHECKING:  # torch is heavy: imported when a renderer is opened
    from pipelines.adapters import LoraStack
    from pipelines.doctor import Finding
    from pipelines.engine import Engine
    from pipelines.family import Family
    from pipelines.passes import Source
    from pipelines.planning import Given
    from pipelines.preview import Preview
    from pipelines.residency import Memory


class LoadMap(Protocol):
    """As `controls.prepare.load_map`."""

    def __call__(self, unit: ControlUnit, width: int, height: int, *, model: str = ...) -> Prepared: ...


class Renderer:
    """Draws requests with the models it keeps loaded."""

    def __init__(self, engine: "Engine", model: str, preview: "Preview | None" = None) -> None:
        self.engine, self.model, self.preview = engine, model, preview
        self.load_map: LoadMap = load_map  # a batch puts one in its place that has extracted ahead
        self._stacks: WeakKeyDictionary[Family, LoraStack] = WeakKeyDictionary()
        self._embeddings: WeakKeyDictionary[Family, tuple[tuple[Path, int], ...]] = WeakKeyDictionary()

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

        device: 'cuda', 'mps' or 'cpu', by default the first of them here; dtype: 'float32' (default on the CPU), 'float16' or 'bfloat16'
        (elsewhere, whichever suits the family); preview: an AutoencoderTiny, by default see `pipelines.preview.default_preview`; memory: by
        default all on the device.

        Raises:
            BadModel, Mismatch: the model is missing, incomplete, damaged or of an unknown family.
            BadRequest: no such device or dtype.
            OutOfMemory: the model is too large for this machine.
        """
        from pipelines.engine import Engine, choose_place, resolve
        from pipelines.preview import TinyPreview

        spot = choose_place(device, dtype)
        renderer = cls(Engine(spot, memory), model, None if preview is None else TinyPreview.load(resolve(preview), spot))
        renderer.base(model)
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
        job = self._ready(request)
        for pictures in job.batches():
            yield from job.draw(pictures, on_step, cancelled)

    def render_many(self, requests: Sequence[RenderRequest], *, cancelled: Callable[[], bool] | None = None) -> list[list[Picture]]:
        """The pictures of each request; equal to rounding to those of `render`, for requests that agree are drawn in one batch.

        Prompts, seeds, control pictures and control weights may differ within a batch; see `pipelines.mixing`.

        Raises:
            UserError, OutOfMemory: as `render`, for any of them; found before anything is drawn.
        """
        return draw_many([self._ready(request) for request in requests], cancelled)

    def examine(self, request: RenderRequest, *, fetch: bool = False) -> "list[Finding]":
        """What will be wrong with a request, errors and warnings, before any weight is moved. fetch: models may be downloaded."""
        return examine(self._named(request), self.engine, fetch=fetch)

    def _named(self, request: RenderRequest) -> RenderRequest:
        return request if "model" in request.model_fields_set else request.model_copy(update={"model": self.model})

    def _ready(self, request: RenderRequest) -> Job:
        request = self._named(request)
        for finding in self.examine(request, fetch=True):
            if finding.error is not None:
                raise finding.error
        return self._check(request)

    def _check(self, request: RenderRequest) -> Job:
        """Everything that can be wrong is found here, cheap things first: names and files, then models, then maps."""
        from pipelines import samplers
        from pipelines.engine import resolve
        from pipelines.memory import explained
        from pipelines.passes import Passes, Source
        from pipelines.planning import embeddings_of, loras_of, stages_of, with_controls, with_defaults, words_of
        from pipelines.schedules import SCHEDULES

        samplers.get(request.sampler)
        if request.schedule not in SCHEDULES:
            raise unknown_name("schedule", request.schedule, SCHEDULES)
        check_files(request)
        for i, unit in enumerate(request.controls):
            check_unit(unit, i)
        wildcards = folders_of("wildcards", resolve(request.model))
        words = [words_of(request, i, wildcards) for i in range(request.count)]
        family = self.base(request.model, request.vae)
        request = with_defaults(request, family)
        for name, value in (("width", request.width), ("height", request.height)):
            if value % family.side_px:
                raise BadRequest(f"{name} = {value}: this model draws in cells of {family.side_px} pixels; give a multiple")
        stages = stages_of(request, family)
        folders = folders_of("loras", family.checkpoint.path)
        loras = {one: loras_of(request, one, folders) for one in dict.fromkeys(words)}
        nets, weights = self._nets(request, family)
        named = {
            one: weights_of("lora", [lora.path for lora in some]) + weights_of("embedding", embeddings_of(one, request.steps, family))
            for one, some in loras.items()
        }
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
        return Job(passes, tuple(words), loras, maps[-1], {one: (*weights, *more) for one, more in named.items()}, self.preview)

    def base(self, model: str, vae: str | None = None) -> "Family":
        """The base model with its family, loaded, with another autoencoder if one is named; textual inversions beside it come with it."""
        from pipelines.engine import resolve
        from pipelines.memory import explained

        with explained(f"to load {model!r}", "use a smaller model, or dtype float16"):
            family = self.engine.base(resolve(model), None if vae is None else resolve(vae))
        embeddings = folders_of("embeddings", family.checkpoint.path)
        if not hasattr(family, "inversions"):  # which not all families have
            return family
        version = tuple((file, file.stat().st_mtime_ns) for folder in embeddings for file in sorted(folder.rglob("*.safetensors")))
        if version != self._embeddings.get(family, ()):
            from pipelines.inversion import load_inversions

            family.inversions = load_inversions(*reversed(embeddings))  # of equal words the first folder's
            family.forget_texts()
            self._embeddings[family] = version
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

        folders = [control_folder(unit, family) for unit in request.controls]
        for folder in folders:
            if folder is not None:
                family.check_control(open_checkpoint(folder))
        with explained("to load the ControlNets", "give fewer controls, or use dtype float16"):
            nets = [family.own_control() if folder is None else self.engine.control(family, folder) for folder in folders]
        weights = self.engine.weights_of(family)
        for i, folder in enumerate(folders):
            weights += [] if folder is None else self.engine.weights(f"control {i}", folder)
        return nets, weights


def _given(unit: ControlUnit, net: Any, prepared: Prepared, source: "Source | None") -> "Given":
    """A control as planning takes it; an inpainting ControlNet is shown where the picture is painted."""
    from pipelines.family import Hint
    from pipelines.planning import Given

    hole = source.mask_HW if source is not None and unit.kind == "inpaint" else None
    return Given(unit, net, Hint(prepared.map_HWC, unit.kind, hole), prepared.map_sha256, prepared.mask_HW)
