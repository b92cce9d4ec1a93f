"""What can be known about a request without loading a model: whether its names exist, and what its weights are.

Weights are told apart by their bytes: a model's folder gives one digest of all its files, hashed once a run.
"""

import hashlib
import sys
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import controls
from controls.prepare import takes_own_file
from core.errors import BadRequest, LimnError, unknown_name
from core.files import sha256_file
from core.request import ROWS_OWN, ControlUnit, RenderRequest

if TYPE_CHECKING:  # torch is heavy
    from pipelines.doctor import Finding
    from pipelines.engine import Engine
    from pipelines.inversion import Inversions

# What no model refuses at any value that a request can have, or refuses by what `_settings` says of it.
_ANY_VALUE = {"guidance_scale", "guidance_start", "guidance_end", "guidance_rescale", "variation_strength", "count", "init_image", "mask"}
_FILES = (".safetensors", ".json", ".txt", ".model")


class Doctor:
    """Checks requests and digests their weights, each name and folder once.

    model: for requests that name none; rounding: what of how it is opened changes pictures (`pipelines.opening.Opening.rounding`).
    """

    def __init__(self, model: str = "toyland", *, fetch: bool = True, rounding: Sequence[str] = ()) -> None:
        self.model, self.fetch, self.rounding = model, fetch, tuple(rounding)
        self._seen: set[tuple[object, ...]] = set()
        self._found: dict[tuple[object, ...], tuple[str, ...]] = {}
        self._embedded: dict[str, Inversions | None] = {}
        self._examined: dict[Hashable, LimnError | None] = {}
        self._engine: Engine | None = None

    def check(self, request: RenderRequest) -> None:
        """Whether sampler, schedule and every control's kind and settings are known, its extractor is installed, and the model draws such.

        Raises:
            BadRequest: one is not. BadModel, Mismatch: see `pipelines.doctor.examine`.
        """
        names = (request.sampler, request.schedule, request.eta)
        if names not in self._seen:
            _check_sampler(request)
            self._seen.add(names)
        for unit in request.controls:
            control = controls.get(unit.kind)
            params = control.parse_params(unit.params)
            if not unit.ready and not control.available(params) and not takes_own_file(control, unit.image):
                raise BadRequest(f"no {unit.kind} estimator is installed; give a finished {unit.kind} map with 'ready'")
        self._examine(request.model_copy(update={"model": self._model_of(request), "prompt": "", "negative_prompt": ""}))

    def _examine(self, request: RenderRequest) -> None:
        """What model, ControlNets and LoRAs say to settings, once for all rows with these; files and texts are a row's own."""
        key = _settings(request)
        if key not in self._examined:
            self._examined[key] = next((found.error for found in self._findings(request) if found.error is not None), None)
        if (error := self._examined[key]) is not None:
            raise error.with_traceback(None)

    def _findings(self, request: RenderRequest) -> "list[Finding]":
        from pipelines import doctor
        from pipelines.engine import Engine, choose_place
        from renderer import folders_of
        from renderer.sources import control_folder

        self._engine = self._engine or Engine(choose_place("cpu"))  # nothing is loaded
        around = doctor.Surroundings(
            find_net=lambda unit, family: control_folder(unit, family, fetch=self.fetch),
            kinds=controls.names(),
            loras=lambda base: folders_of("loras", base),
            fetch=self.fetch,
            free=sys.maxsize,  # that of the device is asked when it is known
        )
        return doctor.examine(request, self._engine, around)

    def _model_of(self, request: RenderRequest) -> str:
        return request.model if "model" in request.model_fields_set else self.model

    def weights(self, request: RenderRequest) -> tuple[str, ...]:
        """A digest of the base model, each control's network, each LoRA and another's autoencoder; last how they are rounded, if they are.

        Raises:
            BadModel, BadRequest: a model is not here and cannot be had, or none is known for a control.
        """
        model = self._model_of(request)
        loras = tuple(lora.name for lora in request.loras)
        prompt = request.prompt if "<lora:" in request.prompt else ""
        key = (model, request.vae, tuple((unit.kind, unit.model) for unit in request.controls), loras, prompt)
        if key not in self._found:
            self._found[key] = self._digests(request, model)
        return self._found[key]

    def words(self, request: RenderRequest) -> list[str]:
        """The prompts with their wildcards and choices drawn, where there are any; digests of the textual inversions that are named.

        Raises:
            BadRequest: a wildcard is not known. BadModel: an inversion cannot be read.
        """
        texts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
        drawn = self._drawn(request, texts) if any("__" in text or "{" in text for text in texts.values()) else []
        inversions = self._inversions(self._model_of(request))
        named = [one.path for text in drawn or texts.values() for one in inversions.used(text)] if inversions is not None else []
        return [*drawn, *map(sha256_file, named)]

    def _drawn(self, request: RenderRequest, texts: Mapping[str, str]) -> list[str]:
        from pipelines.engine import resolve
        from pipelines.wildcards import expand
        from renderer import folders_of

        folders = folders_of("wildcards", resolve(self._model_of(request), fetch=self.fetch))
        found = []
        for i in range(request.count):
            seed, variation = request.seeds(i)
            found += [expand(text, seed if variation is None else variation, *folders, stream=name) for name, text in texts.items()]
        return found

    def _inversions(self, model: str) -> "Inversions | None":
        """Those that `Renderer.base` takes with a model."""
        if model not in self._embedded:
            from pipelines.checkpoint import open_checkpoint
            from pipelines.engine import family_of, resolve
            from renderer import folders_of

            base = resolve(model, fetch=self.fetch)
            folders = folders_of("embeddings", base)
            takes = bool(folders) and getattr(family_of(open_checkpoint(base)), "inversions", ()) is None
            if takes:
                from pipelines.inversion import load_inversions
            self._embedded[model] = load_inversions(*folders) if takes else None
        return self._embedded[model]

    def _digests(self, request: RenderRequest, model: str) -> tuple[str, ...]:
        from pipelines.engine import resolve

        base = resolve(model, fetch=self.fetch)
        found = [digest(base)]
        for unit in request.controls:
            folder = self._network(unit, base)
            found.append("" if folder is None else digest(folder))
        vae = () if request.vae is None else ("vae", digest(resolve(request.vae, fetch=self.fetch)))
        return (*found, *self._loras(request, base), *vae, *self.rounding)

    def _network(self, unit: ControlUnit, base: Path) -> Path | None:
        """The ControlNet that the renderer will take; None for a base that reads maps itself."""
        from pipelines.checkpoint import open_checkpoint
        from pipelines.engine import default_control, family_of, resolve

        if unit.model is not None:
            return resolve(unit.model, fetch=self.fetch)
        beside = default_control(base, unit.kind)
        if beside is not None:
            return beside
        published = controls.get(unit.kind).weights.get(family_of(open_checkpoint(base)).name)
        return None if published is None else resolve(published.repo, published.revision, fetch=self.fetch)

    def _loras(self, request: RenderRequest, base: Path) -> list[str]:
        if not request.loras and "<lora:" not in request.prompt:
            return []
        from pipelines.planning import loras_of, words_of
        from renderer import folders_of

        words = words_of(request, 0, folders_of("wildcards", base))
        return [sha256_file(lora.path) for lora in loras_of(request, words, folders_of("loras", base))]


def digest(model: Path) -> str:
    """SHA-256, in hex, of a weight file, or of the names and digests of all files that make up a model's folder."""
    if model.is_file():
        return sha256_file(model)
    files = sorted(path for path in model.rglob("*") if path.suffix in _FILES and path.is_file())
    listed = [f"{path.relative_to(model).as_posix()} {sha256_file(path)}" for path in files]
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()


def _check_sampler(request: RenderRequest) -> None:
    from pipelines.planning import choose_sampler
    from pipelines.schedules import SCHEDULES

    choose_sampler(request)
    if request.schedule not in SCHEDULES:
        raise unknown_name("schedule", request.schedule, SCHEDULES)


def _settings(request: RenderRequest) -> Hashable:
    """What decides whether a model can draw a request, apart from its texts and files."""
    units = [(unit.kind, unit.model, unit.start, unit.end, unit.mode, unit.mask is None, unit.layer_weights) for unit in request.controls]
    missing = frozenset(RenderRequest.model_fields.keys() - request.model_fields_set)  # the model's own values stand there
    flags = (request.init_image is None, request.mask is None, request.guidance_scale == 1.0)
    return (request.model_dump_json(exclude={*ROWS_OWN, *_ANY_VALUE}), tuple(units), missing, flags)
