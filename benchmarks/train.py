"""`limn train` against a straightforward loop on the same base, pictures, batch and precision: samples a second, interleaved.

    python benchmarks/train.py [--family sdxl] [--shrink 4] [--size 128] [--batch 4] [--steps 10] [--repeats 3] [--processes 2]
    python benchmarks/train.py --script train_controlnet.py
    python benchmarks/train.py --gpu [--family sdxl]      # as it is: --shrink 1 --size 512 (1024) --batch 4 --precision bf16 --workers 8

The straightforward loop has the structure of diffusers' examples/controlnet/train_controlnet.py (or train_controlnet_sdxl.py): no workers,
pictures decoded and encoded by the autoencoder at every step, captions too (SD), unfused AdamW, what is frozen in the numbers computed in.
With --workers it is also run with as many, and fused ("tuned"). Given a copy of that script, it is run too, as it is, for the same number
of steps, and its time between its second and last step counts. With --processes Limn also trains in as many, which share the same batch and
the cores. All sides train the whole ControlNet on the same drawn pictures. The cache that Limn builds first is timed, and the epoch from
which it has paid for itself is said. Each side's peak memory is its own, of what was held before too: the base, a ControlNet, the cache.

The base is the family's own configuration with random weights and every width divided by --shrink, so that autoencoder, text encoder, UNet
and ControlNet cost in proportion what they really do; the shares of the operations are printed. `--model` takes any other of that family.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # our packages, which neighbours of this file are named as

import torch
import yaml
from accelerate import PartialState
from accelerate.utils import gather_object

from benchmarks.bases import DIVISORS, shrunk
from benchmarks.straightforward import public_script, straightforward
from controls import canny
from core.files import publish
from core.images import encode_png
from core.provenance import library_versions
from pipelines.engine import Engine
from toyland.render import render
from toyland.scene import sample
from training.randomness import Draws
from training.run import ControlNetConfig, build_task, place_of
from training.task import Run
from training.trainer import train

CPU_TIME = "--cpu-time" in sys.argv  # for a machine that others use too; then without --workers and --script


def dataset(folder: Path, count: int, size: int) -> Path:
    """An imagefolder of toyland scenes with their edges."""
    rows = []
    for index in range(count):
        scene = sample(index)
        picture_HWC = render(scene, size).picture_HWC
        for name, image_HWC in (("images", picture_HWC), ("canny", canny.extract(picture_HWC, canny.Params.model_validate({})))):
            publish(folder / name / f"{index}.png", encode_png(image_HWC))
        rows.append({"file_name": f"images/{index}.png", "canny": f"canny/{index}.png", "text": f"scene {index}"})
    publish(folder / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    return folder


def shares(task: Any, batch: int, size: int) -> dict[str, float]:
    """Giga-operations a sample of each part of the straightforward loop's step, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    base, net = task.base, task.net
    device, dtype = base.place.device, base.place.dtype
    x, t = torch.randn(batch, *base.latent_shape(size, size), device=device), torch.randint(0, 1000, (batch,), device=device)
    pixels, hint = (torch.rand(batch, 3, size, size, device=device) for _ in range(2))
    text = task.texts.dropped(
        {name: value.to(device) for name, value in task.texts.batch([0] * batch).items()}, 0.0, Draws(0, range(batch), device)
    )
    net.to(device)
    counted: dict[str, float] = {}

    def count(name: str, work: Callable[[], Any]) -> Any:
        with FlopCounterMode(display=False) as counter, torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            result = work()
        counted[name] = counter.get_total_flops() / batch / 1e9
        return result

    with torch.no_grad():
        count("autoencoder", lambda: base.vae.encode(pixels))
        if base.name != "sdxl":
            ids = base.tokenizer([""] * batch, padding="max_length", return_tensors="pt").input_ids.to(device)
            count("text encoder", lambda: base.text_encoder(ids))
    task.steering.denoiser.requires_grad_(False)
    residuals = count("ControlNet", lambda: task.steering.residuals(net, x, t, text, hint))
    out = count("UNet", lambda: base.predict(x, t, text, residuals))
    count("backward", lambda: out.float().square().mean().backward())
    net.zero_grad()
    return counted


class Enough(Exception):
    """The steps that are timed are done: what a training does at its end is no part of them."""


def limn(config: ControlNetConfig, task: Any) -> float:
    """Samples a second of our loop, without its first two steps."""
    moments: list[float] = []

    def after(run: Run) -> None:
        moments.append(_now())
        if run.step == run.config.steps - 1:
            raise Enough

    with tempfile.TemporaryDirectory() as out:
        settings = config.train.model_copy(update={"out": Path(out)})
        with contextlib.suppress(Enough):
            train(task, settings, after)
    return settings.batch_size * (len(moments) - 2) / (moments[-1] - moments[1])


def in_processes(config: ControlNetConfig, count: int, home: Path) -> tuple[float, float | None]:
    """The same of a training in several processes under torchrun, by the first one's clock; each has its share of cores and batch."""
    settings = home / "processes.yaml"
    settings.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), __file__]
    threads = str(max(1, torch.get_num_threads() // count))
    environment = os.environ | {"OMP_NUM_THREADS": threads, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run([*command, "--one-of", str(settings)], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{count} processes did not train: {done.stderr[-2000:]}")
    rate, peak_gib = done.stdout.split()[-2:]
    return float(rate), float(peak_gib)


def one_of(settings: Path) -> None:
    """One of several processes; the first one prints the samples a second of all, and the memory of all."""
    config = ControlNetConfig.model_validate(yaml.safe_load(settings.read_text()))
    state = PartialState(cpu=config.train.on_cpu)
    task = build_task(config, state, Engine(place_of(config, state)))
    found, peak_gib = peaked(lambda: limn(config, task))
    peaks = gather_object([peak_gib or 0.0])
    if state.is_main_process:
        print(found, sum(peaks))


def peaked(work: Callable[[], float]) -> tuple[float, float | None]:
    """What `work` gives, and the most memory in GiB that was held meanwhile: the accelerator's, or this process's where Linux tells."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return work(), torch.cuda.max_memory_allocated() / 2**30
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return work(), None
    ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5")
    found = work()
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return found, int(lines["VmHWM"].split()[0]) / 2**20


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() if CPU_TIME else time.perf_counter()


def arguments() -> argparse.Namespace:
    """What was typed; --gpu stands for the settings of a real training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=DIVISORS, default="sd15", help="whose configuration the base has")
    parser.add_argument("--model", default="", help="a base of one's own in place of it")
    parser.add_argument("--shrink", type=int, help="divisor of its widths")
    parser.add_argument("--size", type=int)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"))
    parser.add_argument("--hint", type=int, nargs="+", help="widths of the hint encoder")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--compile", action="store_true", help="also train with train.compile")
    parser.add_argument("--gpu", action="store_true", help="the model as it is, at its own size in bf16, with 8 workers")
    parser.add_argument("--processes", type=int, default=0, help="also train in so many processes, with the same batch")
    parser.add_argument("--one-of", type=Path, help=argparse.SUPPRESS)  # what torchrun starts
    parser.add_argument("--script", type=Path, help="a copy of diffusers' train_controlnet.py, or train_controlnet_sdxl.py")
    parser.add_argument("--cpu-time", action="store_true", help="count this process's time on the CPU, not the clock's")
    parser.add_argument("--json", type=Path, help="also write the table, the settings and the machine here")
    args = parser.parse_args()
    if args.gpu and not torch.cuda.is_available():
        parser.error("--gpu: torch sees no GPU here")
    args.shrink = args.shrink or (1 if args.gpu else DIVISORS[args.family][-1])
    if not args.model and args.shrink not in DIVISORS[args.family]:
        parser.error(f"--shrink {args.shrink}: {args.family} is divided by one of {', '.join(map(str, DIVISORS[args.family]))}")
    args.size = args.size or ({"sd15": 512, "sdxl": 1024}[args.family] if args.gpu else 128)
    args.precision = args.precision or ("bf16" if args.gpu else "fp32")
    args.hint = args.hint or [width // min(args.shrink, 4) for width in (16, 32, 96, 256)]
    args.workers = args.workers if args.workers is not None else 8 * args.gpu
    return args


def settings_of(args: argparse.Namespace, model: str, home: Path) -> ControlNetConfig:
    """A training of so many steps and one more, which is left before its end."""
    return ControlNetConfig.model_validate(
        {
            "base": model,
            "base_weights": args.precision,
            "hint_channels": args.hint,
            "data": {
                "folder": dataset(home / "data", args.pictures, args.size),
                "condition": "canny",
                "width": args.size,
                "height": args.size,
            },
            "monitor": {"every": 0, "samples": 0, "tensorboard": False},
            "train": {
                "out": home / "run",
                "steps": args.steps + 1,
                "batch_size": args.batch,
                "learning_rate": 1e-5,
                "precision": args.precision,
                "workers": args.workers,
                "ema_decay": 0.0,
                "checkpoint_every": 10**6,
                "checkpoint_minutes": 10**6,
            },
        }
    )


def main() -> None:
    """Prints one table, and writes it as JSON where `--json` says."""
    args = arguments()
    if args.one_of:
        return one_of(args.one_of)
    with tempfile.TemporaryDirectory() as home:
        torch.manual_seed(0)
        config = settings_of(args, args.model or str(shrunk(args.family, Path(home) / "base", args.shrink)), Path(home))
        state = PartialState()
        engine = Engine(place_of(config, state))
        began = _now()
        task = build_task(config, state, engine)
        cached_s = _now() - began
        counted = shares(task, args.batch, args.size)
        print(", ".join(f"{name} {value:.2f}" for name, value in counted.items()), "GFLOP a sample;", end=" ")
        total, ours = sum(counted.values()), sum(value for name, value in counted.items() if name not in ("autoencoder", "text encoder"))
        print(f"by operations alone the cache is worth {total / ours:.2f} times")
        sides: dict[str, Callable[[], tuple[float, float | None]]] = {
            "limn": lambda: peaked(lambda: limn(config, task)),
            "straightforward": lambda: peaked(lambda: straightforward(config, task, _now)),
        }
        if args.compile:
            compiled = config.model_copy(update={"train": config.train.model_copy(update={"compile": True})})
            sides["limn, compiled"] = lambda: peaked(lambda: limn(compiled, task))
        if args.workers:
            sides["tuned"] = lambda: peaked(lambda: straightforward(config, task, _now, workers=args.workers, fused=True))
        if args.processes:
            sides[f"limn, {args.processes} processes"] = lambda: in_processes(config, args.processes, Path(home))
        if args.script:
            sides[args.script.name] = lambda: public_script(args.script, config, task, Path(home) / "data")
        found: dict[str, list[tuple[float, float | None]]] = {name: [] for name in sides}
        for repeat in range(args.repeats):
            for name in list(sides)[:: 1 if repeat % 2 == 0 else -1]:
                found[name].append(sides[name]())
    report(args, found, counted, cached_s)


def report(
    args: argparse.Namespace, found: dict[str, list[tuple[float, float | None]]], counted: dict[str, float], cached_s: float
) -> None:
    """The table, and the same as JSON."""
    rates = {name: [rate for rate, _ in values] for name, values in found.items()}
    peaks = {name: max((peak for _, peak in values if peak), default=None) for name, values in found.items()}
    ours = statistics.median(rates["limn"])
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    clock = "CPU time" if CPU_TIME else "wall time"
    print(f"{args.model or args.family}, {device}, {args.size} px, batch {args.batch}, {args.precision}, {clock}")
    rows = []
    for name, values in rates.items():
        middle = statistics.median(values)
        saved_s = args.pictures / middle - args.pictures / ours
        row = {"loop": name, "samples_per_s": middle, "of": [min(values), max(values)], "limn_is_times": ours / middle}
        row |= {"break_even_epoch": cached_s / saved_s if saved_s > 0 else None, "peak_gib": peaks[name]}
        rows.append(row)
        even = f", the cache ({cached_s:.1f} s) pays from epoch {cached_s / saved_s:.1f} on" if saved_s > 0 else ""
        memory = f", peak {peaks[name]:.2f} GiB" if peaks[name] else ""
        print(
            f"{name:24} {middle:8.2f} samples/s ({min(values):.2f} to {max(values):.2f}), limn is {ours / middle:.2f} times{even}{memory}"
        )
    if args.json:
        settings = {
            name: value if isinstance(value, int | list) else str(value)
            for name, value in vars(args).items()
            if name not in ("json", "one_of")
        }
        values = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "device": device,
            "clock": clock,
            "versions": library_versions(),
            "settings": settings,
            "gflop_per_sample": counted,
            "rows": rows,
        }
        publish(args.json, json.dumps(values, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
