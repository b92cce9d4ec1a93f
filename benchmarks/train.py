"""`limn train` against a straightforward loop on the same base, pictures, batch and precision: samples a second, interleaved.

    python benchmarks/train.py [--model DIR] [--size 128] [--batch 8] [--steps 10] [--repeats 3] [--script train_controlnet.py]

The straightforward loop has the structure of diffusers' examples/controlnet/train_controlnet.py: no workers, pictures decoded, encoded by
the autoencoder and captions by the text encoder at every step, unfused AdamW. Given a copy of that script, it is run too, as it is, for the
same number of steps, and its time between its first and last step is what counts. Both sides train the whole ControlNet on the same drawn
pictures. The cache that Limn builds first is timed, and the epoch from which it has paid for itself is said.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from controls import canny
from core.files import publish
from core.images import decode, encode_png
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


def limn(config: ControlNetConfig, task: Any) -> float:
    """Samples a second of our loop, without its first two steps."""
    moments: list[float] = []
    with tempfile.TemporaryDirectory() as out:
        settings = config.train.model_copy(update={"out": Path(out)})
        train(task, settings, lambda run: moments.append(_now()))
    return settings.batch_size * (len(moments) - 2) / (moments[-1] - moments[1])


def straightforward(config: ControlNetConfig, task: Any, base: Any) -> float:
    """Samples a second of the loop that everyone writes first."""
    device, settings = base.place.device, config.train
    net = task.steering.new().to(device).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=settings.learning_rate, fused=False, foreach=False)
    path, moments = base.path, []
    for step in range(settings.steps):
        pairs = [task.pairs[(step * settings.batch_size + row) % len(task.pairs)] for row in range(settings.batch_size)]
        pixels = torch.stack([picture_to_tensor(decode(pair.picture)) for pair in pairs]).to(device)
        conditions = torch.stack([condition_to_tensor(decode(pair.conditions[0])) for pair in pairs]).to(device)
        ids = base.tokenizer([pair.caption for pair in pairs], padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad(), _autocast(settings, device):
            x0 = base.vae.encode(pixels).latent_dist.sample() * base.vae.config.scaling_factor
            text = base.text_encoder(ids.to(device))[0]
        noise, t = torch.randn_like(x0), torch.randint(0, len(path), (len(pairs),), device=device)
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


def main() -> None:
    """Prints one table, and writes it as JSON where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="toyland")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--hint", type=int, nargs="+", default=[8, 16, 32, 64], help="widths of the hint encoder")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--script", type=Path, help="a copy of diffusers' train_controlnet.py")
    parser.add_argument("--cpu-time", action="store_true", help="count this process's time on the CPU, not the clock's")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        data = dataset(Path(home) / "data", args.pictures, args.size)
        config = ControlNetConfig.model_validate(
            {
                "base": args.model,
                "hint_channels": args.hint,
                "data": {"folder": data, "condition": "canny", "width": args.size, "height": args.size},
                "monitor": {"every": 0},
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
        sides: dict[str, Callable[[], float]] = {
            "limn": lambda: limn(config, task),
            "straightforward": lambda: straightforward(config, task, base),
        }
        if args.script:
            sides["train_controlnet.py"] = lambda: public_script(args.script, config, resolve(args.model), data)
        found: dict[str, list[float]] = {name: [] for name in sides}
        for repeat in range(args.repeats):
            for name in list(sides)[:: 1 if repeat % 2 == 0 else -1]:
                found[name].append(sides[name]())
    ours = statistics.median(found["limn"])
    peak = (
        torch.cuda.max_memory_allocated() / 2**30
        if torch.cuda.is_available()
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    )
    print(f"{state.device}, {args.size} px, batch {args.batch}, {args.precision}; peak {peak:.1f} GiB of both sides together")
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
        publish(args.json, json.dumps({"settings": {k: str(v) for k, v in vars(args).items()}, "rows": rows}, indent=1).encode())


if __name__ == "__main__":
    main()
