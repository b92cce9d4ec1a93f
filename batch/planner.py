"""In what order jobs are drawn: those that share models and settings together, those that share controls after one another."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from batch.job import Job


@dataclass(frozen=True)
class Estimate:
    """What a run will take. groups: sets of models and settings; pictures: distinct control pictures to extract."""

    jobs: int
    groups: int
    pictures: int
    disk_mb: float


def ordered(jobs: Sequence[Job]) -> list[Job]:
    """The jobs by group and, inside, by their control pictures; groups and controls in the order in which they first appear."""
    groups: dict[Hashable, dict[Hashable, list[Job]]] = {}
    for job in jobs:
        groups.setdefault(group_of(job), {}).setdefault(_controls_of(job), []).append(job)
    return [job for group in groups.values() for some in group.values() for job in some]


def estimate(jobs: Sequence[Job]) -> Estimate:
    """What can be said before anything is drawn; a picture's file is taken to be two bytes a pixel."""
    pictures = {(unit.image, unit.kind, job.request.width, job.request.height) for job in jobs for unit in job.request.controls}
    pixels = sum(_pixels(job) for job in jobs)
    return Estimate(len(jobs), len({group_of(job) for job in jobs}), len(pictures), pixels * 2 / 1e6)


def group_of(job: Job) -> Hashable:
    """What jobs share that could be drawn together: models, size, steps, sampler."""
    request = job.request
    return (
        (request.model, request.vae),
        tuple((unit.kind, unit.model) for unit in request.controls),
        tuple((lora.name, lora.weight, lora.text_weight) for lora in request.loras),
        (request.width, request.height, request.hires),
        (request.steps, request.sampler, request.schedule, request.eta),
        (request.init_image is None, request.count),
    )


def _controls_of(job: Job) -> Hashable:
    return tuple((unit.image, unit.mask, unit.ready) for unit in job.request.controls)


def _pixels(job: Job) -> float:
    request = job.request
    scale = 1.0 if request.hires is None else request.hires.scale
    return request.width * request.height * scale * scale * request.count
