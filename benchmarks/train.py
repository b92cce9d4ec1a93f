"""`limn train` against a straightforward loop on the same base, pictures, batch and precision: samples a second, interleaved.

    python benchmarks/train.py [--shrink 4] [--size 128] [--batch 4] [--steps 10] [--repeats 3] [--processes 2]
    python benchmarks/train.py --script train_controlnet.py
    python benchmarks/train.py --gpu [--workers 8]        # SD 1.5 as it is: --shrink 1 --size 512 --batch 4 --precision bf16

The straightforward loop has the structure of diffusers' examples/controlnet/train_controlnet.py: no workers, pictures decoded, encoded by
the autoencoder and captions by the text encoder at every step, unfused AdamW. With --workers it is also run with as many, and fused
("tuned"). Given a copy of that script, it is run too, as it is, for the same number of steps, and its time between its second and last step
counts. With --processes Limn also trains in as many, which share the same batch and the cores. All sides train the whole ControlNet on the
same drawn pictures. The cache that Limn builds first is timed, and the epoch from which
it has paid for itself is said.

The base is Stable Diffusion 1.5's own configuration with random weights and every width divided by --shrink, so that autoencoder, text
encoder, UNet and ControlNet cost in proportion what they really do; the shares of the operations are printed. `--model` takes any other.
"""

import argparse
import json
import os
import platform
import resource
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
from torch.utils.data import DataLoader

from controls import canny
from core.files import publish
from core.images import decode, encode_png
from core.provenance import library_versions
from pipelines.engine import Engine, resolve
from pipelines.family import Place
from pipelines.images import condition_to_tensor, picture_to_tensor
from toyland.render import render
from toyland.scene import sample
from training.run import ControlNetConfig, build_task
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


def shrunk_sd15(folder: Path, divisor: int) -> Path:
    """Stable Diffusion 1.5's configuration with random weights; widths, heads and groups divided, so that heads are as wide as its own.

    Source: its published config files.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(resolve("toyland") / "tokenizer", model_max_length=77)
    text = {"vocab_size": len(tokenizer), "num_hidden_layers": 12, "num_attention_heads": 12 // divisor, "max_position_embeddings": 77}
    text |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    vae = AutoencoderKL(
        block_out_channels=[width // divisor for width in (128, 256, 512, 512)],
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
        norm_num_groups=32 // divisor,
    )
    unet = UNet2DConditionModel(
        block_out_channels=[width // divisor for width in (320, 640, 1280, 1280)],
        norm_num_groups=32 // divisor,
        attention_head_dim=8 // divisor,  # the number of heads, in spite of its name
        cross_attention_dim=768 // divisor,
        sample_size=64,
    )
    encoder = CLIPTextModel(CLIPTextConfig(hidden_size=768 // divisor, intermediate_size=3072 // divisor, hidden_act="quick_gelu", **text))
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False)
    parts = {"vae": vae, "text_encoder": encoder, "tokenizer": tokenizer, "unet": unet, "scheduler": scheduler}
    missing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**parts, **missing).save_pretrained(folder)
    return folder


def shares(task: Any, batch: int, size: int) -> dict[str, float]:
    """Giga-operations a sample of each part of the straightforward loop's step, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    base, net = task.base, task.steering.new().train()
    device = base.place.device
    x, t = torch.randn(batch, *base.latent_shape(size, size), device=device), torch.randint(0, 1000, (batch,), device=device)
    pixels, hint = (torch.rand(batch, 3, size, size, device=device) for _ in range(2))
    net.to(device)
    counted: dict[str, float] = {}

    def count(name: str, work: Callable[[], Any]) -> Any:
        with FlopCounterMode(display=False) as counter:
            result = work()
        counted[name] = counter.get_total_flops() / batch / 1e9
        return result

    with torch.no_grad():
        count("autoencoder", lambda: base.vae.encode(pixels))
        ids = base.tokenizer([""] * batch, padding="max_length", return_tensors="pt").input_ids.to(device)
        text = count("text encoder", lambda: base.text_encoder(ids)[0])
    base.unet.requires_grad_(False)
    down, middle = count("ControlNet", lambda: net(x, t, text, hint, return_dict=False))
    out = count("UNet", lambda: base.unet(x, t, text, down_block_additional_residuals=down, mid_block_additional_residual=middle).sample)
    count("backward", lambda: out.square().mean().backward())
    return counted


def limn(config: ControlNetConfig, task: Any) -> float:
    """Samples a second of our loop, without its first two steps."""
    moments: list[float] = []
    with tempfile.TemporaryDirectory() as out:
        settings = config.train.model_copy(update={"out": Path(out)})
        train(task, settings, lambda run: moments.append(_now()))
    return settings.batch_size * (len(moments) - 2) / (moments[-1] - moments[1])


def in_processes(config: ControlNetConfig, count: int, home: Path) -> float:
    """The same of a training in several processes under torchrun, by the first one's clock; each has its share of cores and batch."""
    settings = home / "processes.yaml"
    settings.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), __file__]
    threads = str(max(1, torch.get_num_threads() // count))
    environment = os.environ | {"OMP_NUM_THREADS": threads, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run([*command, "--one-of", str(settings)], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{count} processes did not train: {done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def one_of(settings: Path) -> None:
    """One of several processes; the first one prints the samples a second of all."""
    config = ControlNetConfig.model_validate(yaml.safe_load(settings.read_text()))
    state = PartialState(cpu=config.train.on_cpu)
    task = build_task(config, state, Engine(Place(state.device, torch.float32)))
    found = limn(config, task)
    if state.is_main_process:
        print(found)


class Decoded(torch.utils.data.Dataset[dict[str, Any]]):
    """Pictures, conditions and captions, decoded as they are asked for."""

    def __init__(self, pairs: Any, length: int) -> None:
        self.pairs, self.length = pairs, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self.pairs[index % len(self.pairs)]
        condition = condition_to_tensor(decode(pair.conditions[0]))
        return {"pixels": picture_to_tensor(decode(pair.picture)), "condition": condition, "caption": pair.caption}


def straightforward(config: ControlNetConfig, task: Any, base: Any, *, workers: int = 0, fused: bool = False) -> float:
    """Samples a second of the loop that everyone writes first."""
    device, settings = base.place.device, config.train
    net = task.steering.new().to(device).train()
    # the public script's default, torch's foreach on an accelerator and one parameter after the other on a CPU
    optimiser = torch.optim.AdamW(net.parameters(), lr=settings.learning_rate, fused=fused or None)
    samples = Decoded(task.pairs, settings.steps * settings.batch_size)
    loader: DataLoader[Any] = DataLoader(samples, settings.batch_size, num_workers=workers, pin_memory=workers > 0)
    path, moments = base.path, []
    for batch in loader:
        pixels, conditions = (batch[name].to(device, non_blocking=True) for name in ("pixels", "condition"))
        ids = base.tokenizer(batch["caption"], padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad(), _autocast(settings, device):
            x0 = base.vae.encode(pixels).latent_dist.sample() * base.vae.config.scaling_factor
            text = base.text_encoder(ids.to(device))[0]
        noise, t = torch.randn_like(x0), torch.randint(0, len(path), (len(pixels),), device=device)
        alpha, sigma = path.alpha_sigma(t)
        with _autocast(settings, device):
            x = alpha.reshape(-1, 1, 1, 1) * x0 + sigma.reshape(-1, 1, 1, 1) * noise
            down, middle = net(x, t, encoder_hidden_states=text, controlnet_cond=conditions, return_dict=False)
            out = base.unet(x, t, text, down_block_additional_residuals=down, mid_block_additional_residual=middle).sample
            loss = (out.float() - noise.float()).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        loss.detach().item()
        moments.append(_now())
    return settings.batch_size * (len(moments) - 2) / (moments[-1] - moments[1])


def public_script(script: Path, config: ControlNetConfig, model: Path, data: Path) -> float:
    """Samples a second of a copy of train_controlnet.py, from its own progress between the second and the last step."""
    settings = config.train
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable, str(script), "--pretrained_model_name_or_path", str(model), "--train_data_dir", str(data), "--output_dir", out,
            "--conditioning_image_column", "canny", "--image_column", "image", "--caption_column", "text", "--resolution",
            str(config.data.width), "--train_batch_size", str(settings.batch_size), "--max_train_steps", str(settings.steps),
            "--learning_rate", str(settings.learning_rate),
        ]  # fmt: skip
        began: list[float] = []
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if "Steps:" in line and f"{len(began)}/{settings.steps}" in line:
                began.append(time.perf_counter())
        if process.wait() or len(began) < 3:
            raise SystemExit(f"{script} did not train: exit code {process.returncode}")
    return settings.batch_size * (len(began) - 2) / (began[-1] - began[1])


def _autocast(settings: Any, device: torch.device) -> Any:
    return torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16")


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() if CPU_TIME else time.perf_counter()


def arguments() -> argparse.Namespace:
    """What was typed; --gpu stands for the settings of a real training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a base of one's own in place of Stable Diffusion 1.5's configuration")
    parser.add_argument("--shrink", type=int, help="divisor of its widths")
    parser.add_argument("--size", type=int)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"))
    parser.add_argument("--hint", type=int, nargs="+", help="widths of the hint encoder")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--gpu", action="store_true", help="Stable Diffusion 1.5 as it is, at 512 pixels in bf16")
    parser.add_argument("--processes", type=int, default=0, help="also train in so many processes, with the same batch")
    parser.add_argument("--one-of", type=Path, help=argparse.SUPPRESS)  # what torchrun starts
    parser.add_argument("--script", type=Path, help="a copy of diffusers' train_controlnet.py")
    parser.add_argument("--cpu-time", action="store_true", help="count this process's time on the CPU, not the clock's")
    parser.add_argument("--json", type=Path, help="also write the table, the settings and the machine here")
    args = parser.parse_args()
    if args.gpu and not torch.cuda.is_available():
        parser.error("--gpu: torch sees no GPU here")
    args.shrink = args.shrink or (1 if args.gpu else 4)
    args.size = args.size or (512 if args.gpu else 128)
    args.precision = args.precision or ("bf16" if args.gpu else "fp32")
    args.hint = args.hint or [width // args.shrink for width in (16, 32, 96, 256)]
    return args


def main() -> None:
    """Prints one table, and writes it as JSON where `--json` says."""
    args = arguments()
    if args.one_of:
        return one_of(args.one_of)
    with tempfile.TemporaryDirectory() as home:
        torch.manual_seed(0)
        model = args.model or str(shrunk_sd15(Path(home) / "base", args.shrink))
        data = dataset(Path(home) / "data", args.pictures, args.size)
        config = ControlNetConfig.model_validate(
            {
                "base": model,
                "hint_channels": args.hint,
                "data": {"folder": data, "condition": "canny", "width": args.size, "height": args.size},
                "monitor": {"every": 0, "samples": 0, "tensorboard": False},
                "train": {
                    "out": Path(home) / "run",
                    "steps": args.steps,
                    "batch_size": args.batch,
                    "learning_rate": 1e-5,
                    "precision": args.precision,
                    "workers": args.workers,
                    "ema_decay": 0.0,
                    "checkpoint_every": 10**6,
                },
            }
        )
        state = PartialState()
        engine = Engine(Place(state.device, torch.float32))
        began = _now()
        task = build_task(config, state, engine)
        cached_s = _now() - began
        base: Any = task.base
        counted = shares(task, args.batch, args.size)
        print(", ".join(f"{name} {value:.2f}" for name, value in counted.items()), "GFLOP a sample;", end=" ")
        total, ours = sum(counted.values()), sum(value for name, value in counted.items() if name not in ("autoencoder", "text encoder"))
        print(f"by operations alone the cache is worth {total / ours:.2f} times")
        sides: dict[str, Callable[[], float]] = {
            "limn": lambda: limn(config, task),
            "straightforward": lambda: straightforward(config, task, base),
        }
        if args.workers:
            sides["tuned"] = lambda: straightforward(config, task, base, workers=args.workers, fused=True)
        if args.processes:
            sides[f"limn, {args.processes} processes"] = lambda: in_processes(config, args.processes, Path(home))
        if args.script:
            sides["train_controlnet.py"] = lambda: public_script(args.script, config, resolve(model), data)
        found: dict[str, list[float]] = {name: [] for name in sides}
        for repeat in range(args.repeats):
            for name in list(sides)[:: 1 if repeat % 2 == 0 else -1]:
                found[name].append(sides[name]())
    report(args, found, counted, cached_s)


def report(args: argparse.Namespace, found: dict[str, list[float]], counted: dict[str, float], cached_s: float) -> None:
    """The table, and the same as JSON."""
    ours = statistics.median(found["limn"])
    cuda = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    device = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    clock = "CPU time" if CPU_TIME else "wall time"
    print(f"{device}, {args.size} px, batch {args.batch}, {args.precision}, {clock}; peak {peak:.1f} GiB of both sides together")
    rows = []
    for name, values in found.items():
        middle = statistics.median(values)
        saved_s = args.pictures / middle - args.pictures / ours
        row = {"loop": name, "samples_per_s": middle, "of": [min(values), max(values)], "limn_is_times": ours / middle}
        row |= {"break_even_epoch": cached_s / saved_s if saved_s > 0 else None}
        rows.append(row)
        even = f", the cache ({cached_s:.1f} s) pays from epoch {cached_s / saved_s:.1f} on" if saved_s > 0 else ""
        print(f"{name:24} {middle:8.2f} samples/s ({min(values):.2f} to {max(values):.2f}), limn is {ours / middle:.2f} times{even}")
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
            "peak_gib": peak,
            "rows": rows,
        }
        publish(args.json, json.dumps(values, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
