"""Weights, gradients and optimiser state split over processes (FSDP2), and what is needed to save and load them whole.

Source: Zhao et al., "PyTorch FSDP: experiences on scaling fully sharded data parallel", 2023; torch.distributed.fsdp.fully_shard.
"""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from core.errors import BadRequest
from training.config import TrainConfig

LAUNCHERS = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}
OPTIMISERS = ("adamw", "lion")  # elementwise, so that a shard's step is the step's shard


def check_launcher() -> None:
    """Raises BadRequest if `accelerate launch` was told to split or wrap what is trained: what the trainer does itself, or not at all."""
    for name, title in LAUNCHERS.items():
        if os.environ.get(name, "false").lower() in ("true", "1"):
            raise BadRequest(
                f"accelerate was told to use {title} ({name}): start with torchrun, or with accelerate launch without it, and set "
                "train.sharding=fsdp or zero"
            )


def check_sharding(config: TrainConfig, processes: int) -> None:
    """Raises BadRequest if the settings do not go with what is trained being split over processes."""
    if config.sharding == "none":
        return
    asked = f"train.sharding {config.sharding}"
    if processes == 1:
        raise BadRequest(f"{asked} splits what is trained over processes and there is one: start several with torchrun, or leave it out")
    if config.optimiser not in OPTIMISERS:
        raise BadRequest(f"{asked} with train.optimiser {config.optimiser}: take one of {', '.join(OPTIMISERS)}")
    if config.compile:
        raise BadRequest(f"{asked} with train.compile: choose one of them")
    if config.precision == "fp16":
        raise BadRequest(f"{asked} with train.precision fp16: take bf16, which needs no scaled loss, or fp32")
    if config.ema_on_cpu and config.sharding == "fsdp":
        raise BadRequest(f"{asked} with train.ema_on_cpu: every process keeps its shard of the average; leave one of them out")
    if config.sharding == "zero" and find_spec("deepspeed") is None:
        raise BadRequest(f"{asked} needs deepspeed, which is not installed: pip install deepspeed")


def shard(model: nn.Module, processes: int, device: torch.device) -> Any:
    """Splits a model over all processes: each repeated block is gathered for its own turn, the rest for the whole pass."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes,))
    for module in list(model.modules()):
        if isinstance(module, nn.ModuleList):
            for block in module:
                if type(block).__name__.endswith("TransformerBlock") and any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its shards; every process has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def mine(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def split_as(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, split as another of its shape is."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """A state dict without shards; every process has to ask for it."""
    return {name: whole(tensor) for name, tensor in module.state_dict().items()}


def split_state(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Whole tensors, split as the module's are."""
    likes = module.state_dict()
    return {name: split_as(tensor, likes[name]) if name in likes else tensor for name, tensor in tensors.items()}
