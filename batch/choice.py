"""Which of several pictures of one request is kept: the most faithful, if it is faithful enough; and drawing until one is."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from batch.job import Gate, single
from batch.journal import fidelity_of, mean
from batch.store import REJECTED
from controls.fidelity import load
from controls.prepare import settled
from core.errors import BadRequest
from core.request import RenderRequest
from renderer import Picture
from renderer.sources import kind_of

if TYPE_CHECKING:  # torch is heavy
    from renderer import Renderer


@dataclass(frozen=True)
class Choice:
    """The most faithful of several pictures. scores: of each the mean over its controls, None where it was not measured."""

    scores: tuple[float | None, ...]
    best: int
    passed: bool

    def complaint(self, min_fidelity: float) -> str:
        """Why none is kept."""
        return f"fidelity {self.scores[self.best]:.3f} of the best of {len(self.scores)} is below {min_fidelity:g}: it lies in {REJECTED}/"


def choose(pictures: Sequence[Picture], min_fidelity: float = 0.0) -> Choice:
    """The first of the most faithful; what cannot be measured passes, and is worse than all that can."""
    scores = tuple(mean(fidelity_of(picture.record).values()) for picture in pictures)
    best = max(range(len(scores)), key=lambda i: (-1.0 if scores[i] is None else scores[i], -i))
    kept = scores[best]
    return Choice(scores, best, kept is None or kept >= min_fidelity)


@dataclass(frozen=True, eq=False)
class Tried:
    """A candidate that was drawn. path: where it lies, below the output folder if it was kept, else in `rejected/`."""

    picture: Picture
    score: float | None
    seconds: float
    path: Path
    kept: bool


def draw_chosen(renderer: "Renderer", request: RenderRequest, gate: Gate, out: Path, *, tries: int = 0) -> Iterator[list[Tried]]:
    """For each of the request's pictures all candidates that were drawn for it, in order; the one that is kept is written last.

    gate: candidates are drawn `best_of` at a time, with the seeds that follow, until one is faithful enough or `tries` have been drawn.

    Raises:
        BadRequest: there is no control to measure by.
        LimnError: as `Renderer.render` and `Picture.save`.
    """
    if not request.controls:
        raise BadRequest("--best-of and --min-fidelity choose by fidelity: give a --control to measure")
    load_measures(request, request.model)
    most = max(gate.best_of, tries)
    for first in single(request, most):
        drawn: list[tuple[Picture, float]] = []
        choice = Choice((), 0, False)
        while len(drawn) < most and not choice.passed:
            started = time.perf_counter()
            pictures = renderer.render(_following(first, len(drawn), min(gate.best_of, most - len(drawn))))
            drawn += [(picture, (time.perf_counter() - started) / len(pictures)) for picture in pictures]
            choice = choose([picture for picture, _ in drawn], gate.min_fidelity)
        yield [_written(one, i == choice.best and choice.passed, choice.scores[i], out) for i, one in _best_last(drawn, choice.best)]


def load_measures(request: RenderRequest, model: str) -> None:
    """Loads the networks that measure how faithful a request's pictures are; otherwise only what is loaded already measures.

    Raises:
        BadModel: one is missing, damaged or of another kind.
    """
    for unit in request.controls:
        load(kind_of(unit)[0], settled(*kind_of(unit), model))


def _following(request: RenderRequest, drawn: int, count: int) -> RenderRequest:
    """The request for `count` further candidates."""
    seed, variation = request.seeds(drawn)
    return request.model_copy(update={"seed": seed, "count": count} | ({} if variation is None else {"variation_seed": variation}))


def _best_last(drawn: list[tuple[Picture, float]], best: int) -> list[tuple[int, tuple[Picture, float]]]:
    return sorted(enumerate(drawn), key=lambda one: one[0] == best)


def _written(drawn: tuple[Picture, float], kept: bool, score: float | None, out: Path) -> Tried:
    picture, seconds = drawn
    return Tried(picture, score, seconds, picture.save(out if kept else out / REJECTED), kept)
