"""Small networks and random LoRAs for them, as files in diffusers' form and in kohya's."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.0.proj", "conv1", "q_proj", "fc1"]


def small_unet(sdxl: bool = False) -> UNet2DConditionModel:
    torch.manual_seed(0)
    extra: dict[str, Any] = {}
    if sdxl:
        extra = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 16,
            "use_linear_projection": True,
            "transformer_layers_per_block": (1, 2, 2),
        }
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
        **extra,
    ).eval()


def run_unet(unet: Any) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    x, text = torch.randn(1, 4, 8, 8, generator=draw), torch.randn(1, 5, 32, generator=draw)
    added = {"text_embeds": torch.randn(1, 16, generator=draw), "time_ids": torch.tensor([[8.0, 8, 0, 0, 8, 8]])}
    with torch.no_grad():
        out: Tensor = unet(x, torch.tensor(500), text, added_cond_kwargs=added if unet.config.addition_embed_type else None)[0]
    return out


def small_flux() -> FluxTransformer2DModel:
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    ).eval()


def run_flux(net: Any) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        out: Tensor = net(
            hidden_states=torch.randn(1, 16, 16, generator=draw),
            encoder_hidden_states=torch.randn(1, 5, 32, generator=draw),
            pooled_projections=torch.randn(1, 16, generator=draw),
            timestep=torch.tensor([0.5]),
            img_ids=torch.arange(48).reshape(16, 3).float(),
            txt_ids=torch.zeros(5, 3),
        )[0]
    return out


def small_sd3() -> SD3Transformer2DModel:
    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    ).eval()


def run_sd3(net: Any) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        out: Tensor = net(
            hidden_states=torch.randn(1, 4, 8, 8, generator=draw),
            encoder_hidden_states=torch.randn(1, 5, 32, generator=draw),
            pooled_projections=torch.randn(1, 16, generator=draw),
            timestep=torch.tensor([500.0]),
        )[0]
    return out


def random_lora(net: nn.Module, seed: int, *, rank: int = 4) -> dict[str, Tensor]:
    """Both matrices random for every layer in TARGETS, under PEFT's names, without the network's."""
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for name, layer in net.named_modules():
        if any(f".{name}".endswith(f".{target}") for target in TARGETS) and isinstance(layer, nn.Linear | nn.Conv2d):
            shape = layer.weight.shape
            state[f"{name}.lora_A.weight"] = torch.randn(rank, *shape[1:], generator=draw) / shape[1] ** 0.5
            state[f"{name}.lora_B.weight"] = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=draw) * 0.2
    return state


def described(part: str, rank: int = 4, alpha: float = 6.0) -> dict[str, Any]:
    """The configuration that diffusers keeps beside a LoRA's tensors."""
    return {f"{part}.r": rank, f"{part}.lora_alpha": alpha, f"{part}.target_modules": TARGETS}


def save_diffusers(path: Path, parts: Mapping[str, dict[str, Tensor]], *, rank: int = 4) -> Path:
    """As `save_lora_weights` lays it out, with α in the metadata."""
    tensors = {f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()}
    metadata = {key: value for part in parts for key, value in described(part, rank).items()}
    save_file(tensors, path, {"format": "pt", "lora_adapter_metadata": json.dumps(metadata)})
    return path


def save_kohya(path: Path, parts: Mapping[str, dict[str, Tensor]], alpha: float, names: Mapping[str, str] | None = None) -> Path:
    """As kohya's trainer names it; names: flattened names to write others for."""
    tensors: dict[str, Tensor] = {}
    for prefix, state in parts.items():
        for key, tensor in state.items():
            layer, role = key.rsplit(".lora_", 1)
            flat = layer.replace(".", "_")
            flat = (names or {}).get(flat, flat)
            tensors[f"{prefix}_{flat}.lora_{'down' if role.startswith('A') else 'up'}.weight"] = tensor
            tensors[f"{prefix}_{flat}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return path
