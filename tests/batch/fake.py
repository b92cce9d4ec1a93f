"""A fast engine for tests of the writer: pictures that its request decides, drawn by arithmetic instead of a network."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image

from core.control import Score
from core.errors import Cancelled
from core.provenance import ControlRecord, Fidelity, Record, WeightFile
from core.request import RenderRequest
from renderer import Picture

WEIGHTS = WeightFile(part="base", file="fake.safetensors", sha256="0" * 64)
VERSIONS = {"limn": "0"}


class NothingToKnow:
    """Every request is fine and has no weights."""

    def check(self, request: RenderRequest) -> None: ...

    def weights(self, request: RenderRequest) -> Sequence[str]:
        return ("fake",)

    def words(self, request: RenderRequest) -> Sequence[str]:
        return ()


@dataclass(frozen=True)
class OpenFake:
    """Opens a fake engine. seconds: what a picture takes."""

    seconds: float = 0.0
    model: str = "toyland"

    def __call__(self, number: int = 0) -> "Fake":
        return Fake(self.seconds)


@dataclass
class Fake:
    """Draws noise from the request's hash. A prompt with "fail" raises; one with "fail once" only the first time."""

    seconds: float = 0.0
    failed: int = 0

    def render_many(self, requests: Sequence[RenderRequest], *, cancelled: Callable[[], bool] | None = None) -> list[list[Picture]]:
        return [list(self.stream(request, cancelled)) for request in requests]

    def stream(self, request: RenderRequest, cancelled: Callable[[], bool] | None) -> Iterator[Picture]:
        time.sleep(self.seconds)
        if cancelled is not None and cancelled():
            raise Cancelled("cancelled by the caller")
        if "fail" in request.prompt and ("once" not in request.prompt or not self.failed):
            self.failed += 1
            raise RuntimeError(f"[the engine] said no to {request.prompt}")
        for i in range(request.count):
            yield draw(request, i)


def draw(request: RenderRequest, index: int) -> Picture:
    """The picture that a request's hash and a picture's number decide."""
    digest = hashlib.sha256(f"{request.prompt} {request.seed + index}".encode()).digest()
    image_HWC = np.random.default_rng(list(digest)).integers(0, 256, (request.height, request.width, 3), dtype=np.uint8)
    scores = tuple(Score(digest[i] / 255, "fake", digest[i] / 255, "") for i in range(len(request.controls)))
    controls = tuple(ControlRecord(source_sha256="0" * 64, map_sha256="0" * 64, fidelity=Fidelity.of(score)) for score in scores)
    seed, _ = request.seeds(index)
    record = Record(request=request, index=index, seed=seed, weights=(WEIGHTS,), controls=controls, versions=VERSIONS)
    return Picture(PIL.Image.fromarray(image_HWC), scores, (), record)
