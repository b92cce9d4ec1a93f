"""What this machine can draw with: how many workers it feeds, and on how many threads each computes."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

AUTO: Final = "auto"
_WORKER_BYTES = 1_000_000_000  # the libraries, and pictures of a bundle
_WEIGHTS_SHARE = 2.5  # of a model's files: half precision on the disk, float32 on the CPU, and what it computes
_MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class Devices:
    """workers: processes that draw, 0 for the one that asks; threads: of the CPU for each, None for as many as the library takes."""

    workers: int
    threads: int | None
    gpu: bool


def devices(asked: str | int, weights_bytes: int = 0, device: str | None = None) -> Devices:
    """What to draw with. asked: `auto`, or a number of processes; weights_bytes: of the model's files; device: that is to compute, if told.

    `auto` is a process for each of several GPUs, and on the CPU one for each core with one thread, as far as memory goes: processes of one
    thread draw faster than threads of one process. It depends on the machine alone, so a run that goes on computes as it began.
    """
    gpus = _gpus(device)
    if asked != AUTO:
        workers = int(asked)
    elif gpus:
        workers = gpus if gpus > 1 else 0
    else:
        fit = int(_MEMORY_SHARE * memory_bytes() / (_WORKER_BYTES + _WEIGHTS_SHARE * weights_bytes))
        workers = min(cores(), fit)
        workers = workers if workers > 1 else 0
    return Devices(workers, None if gpus or workers < 2 else max(1, cores() // workers), gpus > 0)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Memory of this machine, or of the container that it is seen from."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no container, or "max"
        return whole


def size_bytes(model: Path) -> int:
    """Of a model's weights on the disk."""
    files = [model] if model.is_file() else model.rglob("*.safetensors")
    return sum(path.stat().st_size for path in files)


def _gpus(device: str | None) -> int:
    """Accelerators to compute on: all of CUDA's, or the one that is told; MPS has one."""
    if device is not None and device.partition(":")[0] == "cpu":
        return 0
    import torch

    if device not in (None, "cuda"):
        return 1
    return torch.cuda.device_count() or int(torch.backends.mps.is_available())
