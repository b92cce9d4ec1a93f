"""The doctor beside the thread that draws: what will be wrong with a request, asked while another one is being drawn."""

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from core.request import RenderRequest
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


def _beside(engine: "Engine") -> "Engine":
    """An engine with outlines of its own, which nobody else touches, that knows what the other one has loaded."""
    from pipelines.engine import Engine

    class Beside(Engine):
        def holds(self, folder: Path) -> bool:
            return engine.holds(folder)

    return Beside(engine.place, engine.memory)
