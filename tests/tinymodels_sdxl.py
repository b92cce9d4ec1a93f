"""Tiny SDXL checkpoints, union ControlNets, T2I-Adapters and inpainting models, laid out as published ones; see `tests.tinymodels`."""

import json
from pathlib import Path
from typing import Any

from tests.tinymodels import SIZE_PX, build_clip, build_tokenizer

WIDTHS, PROJECTED, EACH = (32, 32, 64), 24, 8  # of the UNet's blocks, of the pooled prompt, of each number about the size


def build_base(folder: Path, *, seed: int = 0, in_channels: int = 4, refiner: bool = False, zeros: bool = True, **scheduler: Any) -> Path:
    """Write an SDXL folder and return it.

    in_channels: 9 for an inpainting UNet; refiner: the second text encoder alone, and an aesthetic score; zeros: an empty negative prompt
    is zeros; scheduler: entries of `scheduler_config.json`.
    """
    import torch
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLImg2ImgPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=SIZE_PX,
            scaling_factor=0.13025,
            force_upcast=True,
        )
        first = build_clip(build_tokenizer(), 16, layers=2)
        second = build_clip(build_tokenizer(), PROJECTED, layers=2, projection=PROJECTED)
        unet = UNet2DConditionModel(
            sample_size=SIZE_PX // 8,
            in_channels=in_channels,
            block_out_channels=WIDTHS,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=PROJECTED if refiner else 16 + PROJECTED,
            attention_head_dim=(4, 4, 8),
            norm_num_groups=8,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=EACH,
            projection_class_embeddings_input_dim=PROJECTED + (5 if refiner else 6) * EACH,
        )
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "timestep_spacing": "leading"}
    options: dict[str, Any] = {"requires_aesthetics_score": True} if refiner else {}
    kind = StableDiffusionXLImg2ImgPipeline if refiner else StableDiffusionXLPipeline
    pipe = kind(
        vae=vae.eval(),
        text_encoder=None if refiner else first,
        tokenizer=None if refiner else build_tokenizer(),
        text_encoder_2=second,
        tokenizer_2=build_tokenizer(),
        unet=unet.eval(),
        scheduler=EulerDiscreteScheduler(**(config | scheduler)),
        force_zeros_for_empty_prompt=zeros and not refiner,
        **options,
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    written = folder / "scheduler" / "scheduler_config.json"  # the published file keeps what other schedulers read
    written.write_text(json.dumps(json.loads(written.read_text()) | {"clip_sample": False, "set_alpha_to_one": False}))
    return folder


def build_union(folder: Path, base: Path, *, seed: int = 1, types: int = 8, strength: float = 0.2) -> Path:
    """Write a ControlNetUnionModel folder for an SDXL base and return it; its zero layers are drawn anew."""
    import torch
    from diffusers import ControlNetUnionModel, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    shared = ("block_out_channels", "down_block_types", "layers_per_block", "cross_attention_dim", "attention_head_dim", "norm_num_groups")
    told = ("use_linear_projection", "addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim")
    width = int(unet.config.block_out_channels[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ControlNetUnionModel(
            **{key: unet.config[key] for key in (*shared, *told)},
            conditioning_embedding_out_channels=(8, 8, 16, 16),
            num_control_type=types,
            num_trans_channel=width,
            num_trans_head=4,
            num_proj_channel=width,
        )
        projection = net.spatial_ch_projs
        for layer in [*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out, projection]:
            torch.nn.init.normal_(layer.weight, std=strength)
            torch.nn.init.normal_(layer.bias, std=strength)
        torch.nn.init.normal_(net.task_embedding)
    net.eval().save_pretrained(folder, safe_serialization=True)
    return folder


def build_adapter(folder: Path, channels: tuple[int, ...], *, kind: str = "full_adapter", in_channels: int = 3, seed: int = 1) -> Path:
    """Write a T2IAdapter folder and return it."""
    import torch
    from diffusers import T2IAdapter

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        cell = 16 if kind == "full_adapter_xl" else 8
        net = T2IAdapter(in_channels=in_channels, channels=list(channels), num_res_blocks=1, downscale_factor=cell, adapter_type=kind)
    net.eval().save_pretrained(folder, safe_serialization=True)
    return folder


def build_inpainting(folder: Path, base: Path, *, seed: int = 3) -> Path:
    """Write a copy of a base model whose UNet reads nine channels and return it; the new channels' weights are drawn anew."""
    import shutil

    import torch
    from diffusers import UNet2DConditionModel

    shutil.copytree(base, folder)
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wide = UNet2DConditionModel.from_config(dict(unet.config) | {"in_channels": 9})
    kept = {name: tensor for name, tensor in unet.state_dict().items() if name != "conv_in.weight"}
    wide.load_state_dict(kept, strict=False)
    wide.eval().save_pretrained(folder / "unet", safe_serialization=True)
    return folder
