"""A job: one picture of a request, under a key that its content decides.

The key is the SHA-256 of the request, of the weights, and of every picture and mask it reads. Where files lie does not matter, what is in
them does; so a manifest that was edited, or a control that was redrawn, gives new jobs, and all others stay what they were.
"""

import hashlib
import json
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol

from batch.manifest import Problem, Row
from core.errors import BadImage, UserError
from core.files import output_name, sha256_file
from core.request import RenderRequest

# A model's own defaults can take the place of these where they are left out, so that being left out means something.
_FAMILY_DEFAULTS: Final = ("width", "height", "steps", "sampler", "schedule", "guidance_scale", "true_cfg_scale", "negative_prompt")
_ELSEWHERE: Final = {
    "count": True,
    "init_image": True,
    "mask": True,
    "model": True,
    "vae": True,
    "loras": {"__all__": {"name"}},
    "controls": {"__all__": {"image", "mask", "model"}},
}
_ABOUT: Final = re.compile(r"(?:unknown |no )?(?:control \d+ \()?(\w+)")


class Knowledge(Protocol):
    """What is known about requests before any is drawn: `batch.doctor.Doctor`."""

    def check(self, request: RenderRequest) -> None:
        """Raises a `UserError` for what is wrong with a request beyond its own fields."""
        ...

    def weights(self, request: RenderRequest) -> Sequence[str]:
        """A digest of each network that takes part, in a fixed order."""
        ...

    def words(self, request: RenderRequest) -> Sequence[str]:
        """The prompts with their choices drawn; none where there are none to draw."""
        ...


@dataclass(frozen=True)
class Gate:
    """How many candidates a job draws, of which the most faithful is kept, and how faithful it must be at least."""

    best_of: int = 1
    min_fidelity: float = 0.0


@dataclass(frozen=True)
class Job:
    """One picture to be made. request: its `count` is how many candidates are drawn; line: of the manifest; folder: below the output."""

    key: str
    request: RenderRequest
    line: int
    folder: str = ""
    min_fidelity: float = 0.0

    @property
    def chosen(self) -> bool:
        """Whether its pictures are told apart by how faithful they are."""
        return self.request.count > 1 or self.min_fidelity > 0.0

    @cached_property
    def name(self) -> str:
        """The picture's path below the output folder, with `/`; it holds no text of the user's but names of folders that exist."""
        name = self.file_name(0)
        return f"{self.folder}/{name}" if self.folder else name

    def file_name(self, candidate: int) -> str:
        """The name of a candidate's file."""
        seed, variation = self.request.seeds(candidate)
        return output_name(self.key, seed if variation is None else variation)


@dataclass
class Jobs:
    """The jobs of a manifest. twice: (a line, the line before it that asks for the same picture)."""

    jobs: list[Job] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    twice: list[tuple[int, int]] = field(default_factory=list)


def make_jobs(rows: Iterable[Row], knowledge: Knowledge, gate: Gate | None = None) -> Jobs:
    """Every picture of every row as a job; equal pictures once.

    A row whose files are missing, or whose models are, is a problem and gives no job.
    """
    found, lines = Jobs(), dict[str, int]()
    gate = gate or Gate()
    for row in rows:
        try:
            knowledge.check(row.request)
            weights, content = list(knowledge.weights(row.request)), _content(row.request)
            singles = [(request, list(knowledge.words(request))) for request in single(row.request, gate.best_of)]
        except UserError as error:
            found.problems.append(Problem(row.line, _column(row, str(error)), str(error)))
            continue
        for request, words in singles:
            job = Job(key_of(request, gate, weights, content, words), request, row.line, row.folder, gate.min_fidelity)
            if job.key in lines:
                found.twice.append((row.line, lines[job.key]))
            else:
                lines[job.key] = row.line
                found.jobs.append(job)
    return found


def single(request: RenderRequest, candidates: int = 1) -> Iterator[RenderRequest]:
    """The request's pictures as requests of their own, each with its own seed; candidates: of each, with the seeds that follow."""
    for i in range(request.count):
        seed, variation = request.seeds(i * candidates)
        update: dict[str, int] = {"count": candidates, "seed": seed}
        if variation is not None:
            update["variation_seed"] = variation
        yield request if request.count == 1 == candidates else request.model_copy(update=update)


def key_of(request: RenderRequest, gate: Gate, *content: Sequence[Any]) -> str:
    """SHA-256, in hex, of everything that decides the picture. content: the digests of all that is read, and the words that were drawn."""
    # Only what differs from the defaults counts, so that a field that a later Limn adds changes no key.
    settings = request.model_dump(mode="json", exclude_defaults=True, exclude=_ELSEWHERE)  # type: ignore[arg-type]
    for name in _FAMILY_DEFAULTS:
        if name in request.model_fields_set:
            settings[name] = getattr(request, name)
    gates = [gate.best_of, gate.min_fidelity] if gate != Gate() else []
    text = json.dumps([settings, content, gates], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _column(row: Row, message: str) -> int | str | None:
    """Where in its row the field stands that a message begins with, or the control that it is about."""
    match = _ABOUT.match(message)
    return row.columns.get(match[1]) if match else None


def _content(request: RenderRequest) -> list[list[str | None]]:
    """The SHA-256 of every picture and mask that the request reads."""
    found = [[_digest(request.init_image, "init_image"), _digest(request.mask, "mask")]]
    for i, unit in enumerate(request.controls):
        where = f"control {i} ({unit.kind})"
        found.append([_digest(unit.image, f"{where}: image"), _digest(unit.mask, f"{where}: mask")])
    return found


def _digest(path: Path | None, what: str) -> str | None:
    if path is None:
        return None
    try:
        if not stat.S_ISREG(mode := path.stat().st_mode):  # a pipe or a device would be read for ever
            kind = "folder" if stat.S_ISDIR(mode) else "device or a pipe"
            raise BadImage(f"{what} {str(path)!r} is a {kind}: give the path of a picture")
        return sha256_file(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadImage(f"{what} {str(path)!r} cannot be read ({reason.lower()}): check the path") from None
