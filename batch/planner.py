"""In what order jobs are drawn and which of them together: those that share models and settings, and of these those that share controls.

What is drawn together is settled by all jobs of a batch and not by those that are left: sums are rounded otherwise in a batch of another
size, so a run that goes on where another ended draws the same bundles, and its pictures have the same bytes.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from batch.job import Job
from core.request import ROWS_OWN, ControlUnit


@dataclass(frozen=True)
class Bundle:
    """Jobs that are drawn together, in this order. wanted: the keys of those whose pictures are kept; the others are there already."""

    jobs: tuple[Job, ...]
    wanted: frozenset[str]


@dataclass(frozen=True)
class Estimate:
    """What a run will take. groups: sets of models and settings; pictures: distinct maps to extract from control pictures."""

    jobs: int
    groups: int
    pictures: int
    disk_mb: float


def ordered(jobs: Sequence[Job]) -> list[Job]:
    """The jobs by group and, inside, by their control pictures; groups and controls in the order in which they first appear."""
    return [job for group in _groups(jobs) for job in group]


def bundled(jobs: Sequence[Job], most: Callable[[Job], int], workers: int = 1) -> list[tuple[Job, ...]]:
    """The jobs in their order, cut into what is drawn together.

    most: how many gain anything, for a job like this one; workers: among whom a group is shared out, so that none of them is idle.
    """
    found: list[tuple[Job, ...]] = []
    for group in _groups(jobs):
        size = 1 if _drawn_alone(group[0]) else max(1, min(most(group[0]), -(-len(group) // workers)))
        found += [tuple(group[start : start + size]) for start in range(0, len(group), size)]
    return found


def estimate(jobs: Sequence[Job]) -> Estimate:
    """What can be said before anything is drawn; a picture's file is taken to be two bytes a pixel."""
    asked = {(job.request.width, job.request.height, unit) for job in jobs for unit in map(_extracted, job.request.controls) if unit}
    pixels = sum(_pixels(job) for job in jobs)
    return Estimate(len(jobs), len({group_of(job) for job in jobs}), len(asked), pixels * 2 / 1e6)


def group_of(job: Job) -> Hashable:
    """What jobs share that could be drawn together: all but what each has for itself, and the pictures that they begin from."""
    request = job.request
    return (
        request.model_dump_json(exclude={*ROWS_OWN, "init_image", "mask"}),
        tuple((unit.kind, unit.model, unit.start, unit.end, unit.mode, unit.layer_weights) for unit in request.controls),
        request.init_image is None,
    )


def _groups(jobs: Sequence[Job]) -> list[list[Job]]:
    groups: dict[Hashable, dict[Hashable, list[Job]]] = {}
    for job in jobs:
        groups.setdefault(group_of(job), {}).setdefault(_controls_of(job), []).append(job)
    return [[job for some in group.values() for job in some] for group in groups.values()]


def _drawn_alone(job: Job) -> bool:
    """Whether `pipelines.mixing` would draw it by itself in any case."""
    request = job.request
    return request.count > 1 or request.hires is not None or request.init_image is not None


def _controls_of(job: Job) -> Hashable:
    return tuple((unit.image, unit.mask, unit.ready) for unit in job.request.controls)


def _extracted(unit: ControlUnit) -> str:
    """What decides a map that is extracted; nothing for one that is there already."""
    return "" if unit.ready else unit.model_dump_json(include={"kind", "image", "params", "resize", "processor_px"})


def _pixels(job: Job) -> float:
    request = job.request
    scale = 1.0 if request.hires is None else request.hires.scale
    return request.width * request.height * scale * scale * request.count
