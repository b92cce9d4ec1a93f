"""A batch against the loop that people write with diffusers, on the same weights; and what memory it takes as it grows.

    python benchmarks/batch.py [--jobs 64] [--rounds 3] [--steps 20] [--memory] [--workers] [--json]

Each side is a command of its own, from files to files: it starts, loads the embedded model, reads photographs, finds their edges, draws
and writes a PNG for each. Sides run one after the other, round by round, in turned order. A ratio above 1 means that Limn is faster than
diffusers. Processor time, of all of a command's processes, tells the same where other work keeps the machine busy. All must draw the same
pictures to rounding; the largest difference of a level is printed.
"""

import argparse
import contextlib
import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # this script's own folder would hide the package of its name

from batch.doctor import Doctor
from batch.job import Job, make_jobs
from batch.manifest import Row
from batch.runner import Settings, run_batch
from batch.store import open_store
from batch.work import OpenRenderer
from batch.workers import warm
from controls.prepare import load_map
from core.request import ControlUnit, RenderRequest
from pipelines.engine import TOYLAND

PROMPTS = ("a red sphere left of a blue cube on grass at sunset", "a yellow cone on snow by day", "a person in a green shirt on sand")
PHOTOGRAPH_PX, GUIDANCE = 512, 4.0
PR_SET_CHILD_SUBREAPER = 36  # of Linux, see prctl(2)


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


def write_manifest(paths: Sequence[Path], steps: int, size: int) -> Path:
    rows: list[dict[str, Any]] = [{"defaults": {"steps": steps, "size": f"{size}x{size}", "guidance": GUIDANCE}}]
    rows += [{"prompt": PROMPTS[i % len(PROMPTS)], "seed": i, "canny": path.name} for i, path in enumerate(paths)]
    manifest = paths[0].with_name("jobs.jsonl")
    manifest.write_text("\n".join(map(json.dumps, rows)))
    return manifest


def diffusers_loop(manifest: Path, out: Path) -> None:
    """The documented pipeline, a call and a save for each picture."""
    import diffusers
    import torch

    net = diffusers.ControlNetModel.from_pretrained(TOYLAND / "controlnet-canny", dtype=torch.float32)
    options: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False, "dtype": torch.float32}
    pipe = diffusers.StableDiffusionControlNetPipeline.from_pretrained(TOYLAND / "base", controlnet=net, **options)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
    pipe.set_progress_bar_config(disable=True)
    first, *rows = map(json.loads, manifest.read_text().splitlines())
    size = int(first["defaults"]["size"].partition("x")[0])
    out.mkdir(parents=True)
    for row in rows:
        unit = ControlUnit(kind="canny", image=manifest.parent / row["canny"])
        edges = PIL.Image.fromarray(load_map(unit, size, size).map_HWC)  # the same map, so the same picture
        image = pipe(
            row["prompt"],
            edges,
            width=size,
            height=size,
            num_inference_steps=first["defaults"]["steps"],
            guidance_scale=first["defaults"]["guidance"],
            generator=torch.Generator("cpu").manual_seed(row["seed"]),
        ).images[0]
        image.save(out / f"{row['seed']}.png")


def timed(command: Sequence[str]) -> tuple[float, float]:
    """Seconds on the clock, and of processor time of all of a command's processes, those included that outlive it for a moment."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # they become children of this process, so that their time is seen
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    with contextlib.suppress(ChildProcessError):  # there is none any more
        while True:
            os.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare(manifest: Path, rounds: int) -> dict[str, Any]:
    """Medians over the rounds of every side's seconds, and diffusers' as multiples of Limn's."""
    render = [sys.executable, "-m", "cli", "render", str(manifest), "--out"]
    sides = {
        "limn_exact": lambda out: [*render, out, "--exact"],
        "limn": lambda out: [*render, out],
        "diffusers": lambda out: [sys.executable, __file__, "--loop", str(manifest), out],
    }
    clock: dict[str, list[float]] = {name: [] for name in sides}
    processor: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
            seconds, spent = timed(sides[name](str(manifest.parent / f"{name}-{number}")))
            clock[name].append(seconds)
            processor[name].append(spent)
    found: dict[str, Any] = {"rounds": rounds, "load": os.getloadavg()[0]}
    for name in sides:
        found |= {f"{name}_s": statistics.median(clock[name]), f"{name}_processor_s": statistics.median(processor[name])}
    for name in ("limn_exact", "limn"):
        for what, times in (("ratio", clock), ("processor_ratio", processor)):
            ratios = [theirs / ours for ours, theirs in zip(times[name], times["diffusers"], strict=True)]
            found[f"{name}_{what}"] = statistics.median(ratios)
            found[f"{name}_{what}_least"] = min(ratios)
        found[f"{name}_largest_difference"] = largest_difference(manifest.parent / f"{name}-0", manifest.parent / "diffusers-0")
    return found


def largest_difference(ours: Path, theirs: Path) -> int:
    """Of a level, over all pictures; their names end in the seed."""
    largest = 0
    for path in ours.glob("limn-*.png"):
        one, other = (np.asarray(PIL.Image.open(file)).astype(int) for file in (path, theirs / f"{path.stem.rpartition('-')[2]}.png"))
        largest = max(largest, int(np.abs(one - other).max()))
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
    """One worker against two, each with one thread; what opening the model takes is part of it."""
    warm()
    seconds = {}
    for count in (1, 2):
        began = time.perf_counter()
        settings = Settings(open_drawer=OpenRenderer(threads=1), workers=count, forked=True)
        run_batch(jobs, open_store(folder / f"workers-{count}"), settings, lambda *_: None)
        seconds[f"workers_{count}_s"] = time.perf_counter() - began
    return seconds | {"ratio": seconds["workers_1_s"] / seconds["workers_2_s"]}


def main() -> None:
    parser = argparse.ArgumentParser(description="A batch against the loop people write with diffusers.")
    parser.add_argument("--jobs", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--memory", action="store_true", help="peak memory of 100 and of 1,000 jobs, instead")
    parser.add_argument("--workers", action="store_true", help="one worker against two, instead")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--loop", type=Path, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        return draw_for_peak(args.peak)
    if args.loop:
        return diffusers_loop(*args.loop)
    found: dict[str, Any]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.memory:
            small, large = peak_mb(100), peak_mb(1000)
            found = {"peak_100_mb": small, "peak_1000_mb": large, "ratio": large / small}
        else:
            paths = photographs(folder, args.jobs)
            if args.workers:
                found = workers_ratio(make(paths, args.steps, args.size), folder)
            else:
                found = compare(write_manifest(paths, args.steps, args.size), args.rounds)
    if args.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:34}{value:.3f}" if isinstance(value, float) else f"{name:34}{value}")


if __name__ == "__main__":
    main()
