"""A batch against the loop that people write with diffusers, on the same weights; and what memory it takes as it grows.

    python benchmarks/batch.py [--jobs 64] [--rounds 4] [--steps 20] [--memory] [--workers] [--json]

Both sides go from files to files: a photograph is read, its edges are found, a picture is drawn with the embedded model, and a PNG is
written. The jobs are cut into rounds that both sides draw one after the other in one process, warm; the side that goes first alternates. A
ratio above 1 means that Limn is faster; both must draw the same pictures to rounding, or it is said.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this script's own folder would hide the package of its name

from batch.doctor import Doctor
from batch.job import Job, make_jobs
from batch.manifest import Row
from batch.runner import Settings, run_batch
from batch.store import open_store
from batch.work import Drawer, OpenRenderer
from controls.prepare import load_map
from core.request import ControlUnit, RenderRequest
from pipelines.engine import TOYLAND

PROMPTS = ("a red sphere left of a blue cube on grass at sunset", "a yellow cone on snow by day", "a person in a green shirt on sand")
PHOTOGRAPH_PX = 512


def photographs(folder: Path, count: int) -> list[Path]:
    """Soft blobs on a ramp, each another: something with edges, from a file of a camera's kind."""
    chance = np.random.default_rng(0)
    y, x = np.mgrid[0:PHOTOGRAPH_PX, 0:PHOTOGRAPH_PX] / PHOTOGRAPH_PX
    paths = []
    for i in range(count):
        image_HWC = np.stack([x, y, 1 - x], -1) * 120
        for _ in range(4):
            cx, cy, radius = *chance.uniform(0.2, 0.8, 2), chance.uniform(0.08, 0.2)
            image_HWC[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = chance.uniform(0, 255, 3)
        paths.append(folder / f"{i}.jpg")
        PIL.Image.fromarray(image_HWC.astype(np.uint8)).save(paths[-1], quality=95)
    return paths


def make(paths: Sequence[Path], steps: int, size: int) -> list[Job]:
    rows = [
        Row(
            i + 1,
            RenderRequest(
                prompt=PROMPTS[i % len(PROMPTS)],
                seed=i,
                steps=steps,
                width=size,
                height=size,
                controls=(ControlUnit(kind="canny", image=path),),
            ),
        )
        for i, path in enumerate(paths)
    ]
    return make_jobs(rows, Doctor()).jobs


def limn(drawer: Drawer) -> Callable[[Sequence[Job], Path], None]:
    def run(jobs: Sequence[Job], out: Path) -> None:
        run_batch(jobs, open_store(out), Settings(open_drawer=lambda number: drawer), lambda *_: None)

    return run


def diffusers_loop() -> Callable[[Sequence[Job], Path], None]:
    """The documented pipeline, a call and a save for each picture."""
    import diffusers
    import torch

    net = diffusers.ControlNetModel.from_pretrained(TOYLAND / "controlnet-canny", dtype=torch.float32)
    options: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False, "dtype": torch.float32}
    pipe = diffusers.StableDiffusionControlNetPipeline.from_pretrained(TOYLAND / "base", controlnet=net, **options)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
    pipe.set_progress_bar_config(disable=True)

    def run(jobs: Sequence[Job], out: Path) -> None:
        out.mkdir(parents=True)
        for job in jobs:
            request = job.request
            unit = request.controls[0]
            edges = PIL.Image.fromarray(load_map(unit, request.width, request.height).map_HWC)  # the same map, so the same picture
            image = pipe(
                request.prompt,
                edges,
                width=request.width,
                height=request.height,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(request.seed),
            ).images[0]
            image.save(out / job.name)

    return run


def compare(jobs: Sequence[Job], rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds of both sides, round by round, and their ratio."""
    sides = {"limn": limn(OpenRenderer()(0)), "diffusers": diffusers_loop()}
    for name, run in sides.items():
        run(jobs[:1], folder / f"warm-{name}")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    share = -(-len(jobs) // rounds)
    for number in range(rounds):
        some = jobs[number * share : (number + 1) * share]
        for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
            began = time.perf_counter()
            sides[name](some, folder / f"{name}-{number}")
            seconds[name].append(time.perf_counter() - began)
    ratios = [theirs / ours for ours, theirs in zip(seconds["limn"], seconds["diffusers"], strict=True)]
    return {
        "jobs": len(jobs),
        "limn_s": sum(seconds["limn"]),
        "diffusers_s": sum(seconds["diffusers"]),
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "greatest": max(ratios),
        "largest_pixel_difference": largest_difference(folder, rounds),
    }


def largest_difference(folder: Path, rounds: int) -> int:
    largest = 0
    for number in range(rounds):
        for path in (folder / f"limn-{number}").glob("limn-*.png"):
            ours, theirs = (np.asarray(PIL.Image.open(one)).astype(int) for one in (path, folder / f"diffusers-{number}" / path.name))
            largest = max(largest, int(np.abs(ours - theirs).max()))
    return largest


def peak_mb(jobs: int) -> float:
    """The most memory that a process takes that draws so many jobs, small and with few steps."""
    command = [sys.executable, __file__, "--peak", str(jobs)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def draw_for_peak(count: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        paths = photographs(Path(temporary), 20)
        jobs = [job for i in range(-(-count // 20)) for job in _reseeded(paths, i)][:count]
        run_batch(jobs, open_store(Path(temporary) / "out"), Settings(open_drawer=OpenRenderer(threads=1)), lambda *_: None)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _reseeded(paths: Sequence[Path], number: int) -> list[Job]:
    rows = [Row(1, job.request.model_copy(update={"seed": number * 1000 + i})) for i, job in enumerate(make(paths, 1, 64))]
    return make_jobs(rows, Doctor()).jobs


def workers_ratio(jobs: Sequence[Job], folder: Path) -> dict[str, float]:
    """One worker against two, each with one thread; what starting them takes is part of it."""
    seconds = {}
    for count in (1, 2):
        began = time.perf_counter()
        settings = Settings(open_drawer=OpenRenderer(threads=1), workers=count)
        run_batch(jobs, open_store(folder / f"workers-{count}"), settings, lambda *_: None)
        seconds[f"workers_{count}_s"] = time.perf_counter() - began
    return seconds | {"ratio": seconds["workers_1_s"] / seconds["workers_2_s"]}


def main() -> None:
    parser = argparse.ArgumentParser(description="A batch against the loop people write with diffusers.")
    parser.add_argument("--jobs", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--memory", action="store_true", help="peak memory of 100 and of 1,000 jobs, instead")
    parser.add_argument("--workers", action="store_true", help="one worker against two, instead")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        return draw_for_peak(args.peak)
    found: dict[str, Any]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.memory:
            small, large = peak_mb(100), peak_mb(1000)
            found = {"peak_100_mb": small, "peak_1000_mb": large, "ratio": large / small}
        else:
            jobs = make(photographs(folder, args.jobs), args.steps, args.size)
            found = workers_ratio(jobs, folder) if args.workers else compare(jobs, args.rounds, folder)
    if args.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:28}{value:.3f}" if isinstance(value, float) else f"{name:28}{value}")


if __name__ == "__main__":
    main()
