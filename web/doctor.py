"""The doctor beside the thread that draws: what will be wrong with a request, asked while another one is being drawn."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import LimnError
from core.request import ControlUnit, RenderRequest
from renderer import Renderer, examine

if TYPE_CHECKING:
    from pipelines.doctor import Finding
    from pipelines.engine import Engine


class Doctor:
    """Examines requests for a renderer, one at a time; no weight is moved and nothing is downloaded."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._engine = _beside(renderer.engine)
        self._lock = threading.Lock()

    def examine(self, request: RenderRequest) -> "list[Finding]":
        """Errors and warnings, in the order of the request's fields; an empty list is health."""
        if "model" not in request.model_fields_set:
            request = request.model_copy(update={"model": self._renderer.model})
        with self._lock:
            return examine(request, self._engine)

    def count_tokens(self, prompt: str, model: str) -> tuple[int, int] | None:
        """(tokens of the prompt, room for them); None for a model that reads text otherwise, or that there is none of.

        Raises:
            BadRequest: the prompt's syntax is wrong.
        """
        from pipelines.clip import count_tokens
        from pipelines.engine import resolve
        from pipelines.prompt import parse

        try:
            with self._lock:  # the renderer's own model may be another by now, and is not to be loaded for this
                family = self._engine.outline(resolve(model or self._renderer.model, fetch=False))
        except LimnError:  # `examine` says what is wrong
            return None
        tokenizer = getattr(family, "tokenizer", None)
        if type(tokenizer).__name__ != "CLIPTokenizer":
            return None
        return count_tokens(tokenizer, parse(prompt, 1).parts[0].at(0))

    def networks(self, kind: str, model: str, trained: Sequence[str] = ()) -> list[str]:
        """The ControlNets beside a model, installed or trained here that fit it and the kind, by the names that a request calls them."""
        from pipelines.catalogue import CONTROLS, installed
        from pipelines.engine import resolve

        try:
            base = resolve(model or self._renderer.model, fetch=False).resolve()
        except LimnError:
            return []
        beside = [_short(path) for path in sorted(base.parent.glob("controlnet-*"))]
        here = {Path(name).resolve() for name in trained}  # by their own names, not those that `limn train` gave them besides
        found = [one for one in installed() if one.kind in CONTROLS and one.source != "embedded" and one.path.resolve() not in here]
        names = dict.fromkeys([*beside, *(one.name for one in found)])
        return [name for name in dict.fromkeys([*names, *trained]) if self._fits(name, kind, model)]

    def _fits(self, name: str, kind: str, model: str) -> bool:
        unit = ControlUnit(kind=kind, image=Path(__file__), ready=True, model=name)  # any file: only the network is asked about
        request = RenderRequest(controls=(unit,))
        if model:
            request = request.model_copy(update={"model": model})
        return not any(finding.about.startswith("control") for finding in self.examine(request))


def _short(path: Path) -> str:
    """A path from here where it lies below."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _beside(engine: "Engine") -> "Engine":
    """An engine with outlines of its own, which nobody else touches, that knows what the other one has loaded."""
    from pipelines.engine import Engine

    class Beside(Engine):
        def holds(self, folder: Path) -> bool:
            return engine.holds(folder)

    return Beside(engine.place, engine.memory)
