"""The training loop that everyone writes first, and the public script it is written after: what `benchmarks/train.py` measures against."""

import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from core.images import decode
from pipelines.images import condition_to_tensor, picture_to_tensor
from training.config import ControlNetConfig


class Decoded(torch.utils.data.Dataset[dict[str, Any]]):
    """Pictures, conditions and captions, decoded as they are asked for."""

    def __init__(self, pairs: Any, length: int) -> None:
        self.pairs, self.length = pairs, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = index % len(self.pairs)
        pair = self.pairs[number]
        pixels, condition = picture_to_tensor(decode(pair.picture)), condition_to_tensor(decode(pair.conditions[0]))
        return {"pixels": pixels, "condition": condition, "caption": pair.caption, "number": number}


def straightforward(config: ControlNetConfig, task: Any, now: Callable[[], float], *, workers: int = 0, fused: bool = False) -> float:
    """Samples a second of a loop with the structure of diffusers' train_controlnet.py or train_controlnet_sdxl.py, by the base's family.

    Pictures are encoded at every step; captions too for SD, while SDXL's script embeds them beforehand and has its autoencoder in fp32.
    What is frozen lies in the numbers that are computed in. workers, fused: of the loader, and of the optimiser.
    """
    base, settings = task.base, config.train
    device, dtype = base.place.device, torch.bfloat16 if settings.precision == "bf16" else torch.float32
    net = task.net.to(device).train()  # Limn's own, so that both sides hold as much
    unet, vae = _frozen(base.unet, dtype), _frozen(base.vae, torch.float32 if base.name == "sdxl" else dtype)
    # the public script's default, torch's foreach on an accelerator and one parameter after the other on a CPU
    optimiser = torch.optim.AdamW(net.parameters(), lr=settings.learning_rate, fused=fused or None)
    samples = Decoded(task.pairs, (settings.steps - 1) * settings.batch_size)
    loader: DataLoader[Any] = DataLoader(
        samples, settings.batch_size, num_workers=workers, pin_memory=workers > 0 and device.type == "cuda"
    )
    told = (_told_sdxl if base.name == "sdxl" else _told_sd)(config, task, dtype)
    path, moments = base.path, []
    for batch in loader:
        pixels, conditions = (batch[name].to(device, non_blocking=True) for name in ("pixels", "condition"))
        with torch.no_grad():
            x0 = vae.encode(pixels.to(vae.dtype)).latent_dist.sample() * vae.config.scaling_factor
            text = told(batch)
        noise, t = torch.randn_like(x0), torch.randint(0, len(path), (len(pixels),), device=device)
        alpha, sigma = path.alpha_sigma(t)
        x = (alpha.reshape(-1, 1, 1, 1) * x0 + sigma.reshape(-1, 1, 1, 1) * noise).to(dtype)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            down, middle = net(x, t, controlnet_cond=conditions.to(dtype), return_dict=False, **text)
        residuals = {
            "down_block_additional_residuals": [skip.to(dtype) for skip in down],
            "mid_block_additional_residual": middle.to(dtype),
        }
        out = unet(x, t, **text, **residuals).sample
        loss = (out.float() - noise.float()).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), settings.clip)
        optimiser.step()
        optimiser.zero_grad()
        loss.detach().item()
        moments.append(now())
    return settings.batch_size * (len(moments) - 2) / (moments[-1] - moments[1])


def _frozen(network: Any, dtype: torch.dtype) -> Any:
    """The network in these numbers, itself where it has them."""
    network = network if network.dtype == dtype else copy.deepcopy(network).to(dtype)
    return network.requires_grad_(False).eval()


def _told_sd(config: ControlNetConfig, task: Any, dtype: torch.dtype) -> Callable[[Any], dict[str, Any]]:
    """Captions are encoded with every batch."""
    tokenizer, encoder = task.base.tokenizer, _frozen(task.base.text_encoder, dtype)

    def told(batch: Any) -> dict[str, Any]:
        ids = tokenizer(batch["caption"], padding="max_length", truncation=True, return_tensors="pt").input_ids
        return {"encoder_hidden_states": encoder(ids.to(encoder.device))[0]}

    return told


def _told_sdxl(config: ControlNetConfig, task: Any, dtype: torch.dtype) -> Callable[[Any], dict[str, Any]]:
    """Captions were encoded beforehand; the script keeps them as lists of numbers, here they are tensors."""
    device, side = task.base.place.device, [config.data.height, config.data.width]
    found = [task.base.encode_prompt(pair.caption) for pair in task.pairs]
    tokens, pooled = (torch.cat([getattr(text, name).cpu() for text in found]).clone() for name in ("tokens_BLD", "pooled_BD"))

    def told(batch: Any) -> dict[str, Any]:
        rows = batch["number"]
        sizes = torch.tensor([[*side, 0, 0, *side]] * len(rows), device=device, dtype=dtype)
        added = {"text_embeds": pooled[rows].to(device, dtype), "time_ids": sizes}
        return {"encoder_hidden_states": tokens[rows].to(device, dtype), "added_cond_kwargs": added}

    return told


def public_script(script: Path, config: ControlNetConfig, task: Any, data: Path) -> tuple[float, float | None]:
    """Samples a second of a copy of train_controlnet.py or train_controlnet_sdxl.py, by its own progress between the second and the last
    step, and its process's peak memory in GiB on a CPU.

    It needs datasets, torchvision and tensorboard. What it reads: `data` with the column of conditions named as datasets wants it.
    """
    settings, model = config.train, task.base.checkpoint.path
    with tempfile.TemporaryDirectory() as home:
        task.net.save_pretrained(f"{home}/net")
        shutil.copytree(data, Path(home) / "data", ignore=shutil.ignore_patterns("cache"))
        rows = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]
        renamed = [{"canny_file_name" if name == "canny" else name: value for name, value in row.items()} for row in rows]
        (Path(home) / "data" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in renamed))
        command = [
            sys.executable, str(script), "--pretrained_model_name_or_path", str(model), "--train_data_dir", f"{home}/data", "--output_dir",
            f"{home}/out", "--cache_dir", f"{home}/cache", "--conditioning_image_column", "canny", "--image_column", "image",
            "--caption_column", "text", "--resolution", str(config.data.width), "--train_batch_size", str(settings.batch_size),
            "--max_train_steps", str(settings.steps - 1), "--learning_rate", str(settings.learning_rate), "--mixed_precision",
            "bf16" if settings.precision == "bf16" else "no", "--controlnet_model_name_or_path", f"{home}/net",
        ]  # fmt: skip
        return _timed(command, settings.batch_size, settings.steps - 1, script)


def _timed(command: list[str], batch: int, steps: int, script: Path) -> tuple[float, float | None]:
    began, said = list[float](), list[str]()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "Steps:" in line and f"{len(began)}/{steps}" in line:
            began.append(time.perf_counter())
        said.append(line)
    _, status, usage = os.wait4(process.pid, 0)
    if status or len(began) < 3:
        raise SystemExit(f"{script} did not train: exit code {os.waitstatus_to_exitcode(status)}\n{''.join(said[-20:])}")
    peak_gib = None if torch.cuda.is_available() else usage.ru_maxrss / 2**20
    return batch * (len(began) - 2) / (began[-1] - began[1]), peak_gib
