"""UNets and their ControlNets: the original (latent-diffusion) names and diffusers', and what their shapes say of the configuration.

What shapes cannot say follows the published models: groups of 32; 8 heads where attention's projections are convolutions (SD 1.x), else
heads of 64 channels (SD 2.x, SDXL); 256 numbers for each of SDXL's sizes.
Source: Stability-AI/stablediffusion and generative-models, configs.
"""

from collections.abc import Mapping
from typing import Any

from pipelines.layouts.header import Header, Shape, count
from pipelines.layouts.part import Part

UNET, CONTROL = "model.diffusion_model.", "control_model."
HEAD_CHANNELS, HEADS, TOLD_NUMBERS = 64, 8, 256
SIZES, SIZES_OF_REFINER = 6, 5  # height and width of the picture, of the crop's corner, of the target; the refiner's score in its place


def unet(header: Header, prefix: str, pooled: int | None, sizes: int = SIZES) -> Part:
    """The UNet of an original file. pooled: width of the pooled prompt, where it reads one; sizes: how many it is told."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    names = header.under(prefix)
    settings = {
        "layers_per_block": _layers_per_block(names),
        "addition_embed_type": "text_time" if "label_emb.0.0.weight" in names else None,
    }
    ours: dict[str, str] = convert_ldm_unet_checkpoint({UNET + name: prefix + name for name in names}, settings)
    shapes = {name: header.shapes[theirs] for name, theirs in ours.items()}
    config = encoder_config(shapes, pooled, sizes)
    kinds = ["CrossAttnUpBlock2D" if "CrossAttn" in kind else "UpBlock2D" for kind in config["down_block_types"]]
    config |= {"out_channels": shapes["conv_out.weight"][0], "up_block_types": kinds[::-1], "center_input_sample": False}
    return Part("UNet2DConditionModel", config, lambda: header.tensors(ours))


def controlnet(header: Header, prefix: str) -> Part:
    """A ControlNet of an original file."""
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    names = header.under(prefix)
    settings = {"layers_per_block": _layers_per_block(names)}
    ours: dict[str, str] = convert_controlnet_checkpoint({CONTROL + name: prefix + name for name in names}, settings)
    for place, number in (("linear_1", 0), ("linear_2", 2)):
        for end in ("weight", "bias"):
            if f"label_emb.0.{number}.{end}" in names:
                ours[f"add_embedding.{place}.{end}"] = f"{prefix}label_emb.0.{number}.{end}"
    return _control_part(header, {name: theirs for name, theirs in ours.items() if theirs is not None})


def diffusers_controlnet(header: Header) -> Part:
    """A ControlNet, or a union of them, whose file has diffusers' names."""
    return _control_part(header, {name: name for name in header.shapes})


def _control_part(header: Header, ours: Mapping[str, str]) -> Part:
    shapes = {name: header.shapes[theirs] for name, theirs in ours.items()}
    config = encoder_config(shapes, None)
    hint = "controlnet_cond_embedding."
    blocks = [shapes[f"{hint}blocks.{i}.weight"][0] for i in range(1, count(shapes, f"{hint}blocks.*."), 2)]
    config |= {
        "conditioning_channels": shapes[f"{hint}conv_in.weight"][1],
        "conditioning_embedding_out_channels": [shapes[f"{hint}conv_in.weight"][0], *blocks],
    }
    if "task_embedding" not in shapes:
        return Part("ControlNetModel", config, lambda: header.tensors(ours))
    types, channels = shapes["task_embedding"]
    config |= {
        "num_control_type": types,
        "num_trans_channel": channels,
        "num_trans_head": HEADS,
        "num_trans_layer": count(shapes, "transformer_layes.*."),
        "num_proj_channel": shapes["spatial_ch_projs.weight"][0],
        "addition_time_embed_dim": shapes["control_add_embedding.linear_1.weight"][1] // types,
    }
    return Part("ControlNetUnionModel", config, lambda: header.tensors(ours))


def encoder_config(shapes: Mapping[str, Shape], pooled: int | None, sizes: int = SIZES) -> dict[str, Any]:
    """What a UNet and a ControlNet share, from the shapes of tensors under diffusers' names."""
    levels = count(shapes, "down_blocks.*.")
    widths = [shapes[f"down_blocks.{i}.resnets.0.conv2.weight"][0] for i in range(levels)]
    depths = [count(shapes, f"down_blocks.{i}.attentions.0.transformer_blocks.*.") for i in range(levels)]
    attention = "mid_block.attentions.0."
    linear = len(shapes[f"{attention}proj_in.weight"]) == 2
    config: dict[str, Any] = {
        "in_channels": shapes["conv_in.weight"][1],
        "block_out_channels": widths,
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "layers_per_block": count(shapes, "down_blocks.0.resnets.*."),
        "transformer_layers_per_block": [*(depth or 1 for depth in depths[:-1]), count(shapes, f"{attention}transformer_blocks.*.")],
        "cross_attention_dim": shapes[f"{attention}transformer_blocks.0.attn2.to_k.weight"][1],
        "use_linear_projection": linear,
        "attention_head_dim": [max(1, width // HEAD_CHANNELS) for width in widths] if linear else HEADS,
    }
    if "add_embedding.linear_1.weight" in shapes:
        told = shapes["add_embedding.linear_1.weight"][1]
        config |= {
            "addition_embed_type": "text_time",
            "projection_class_embeddings_input_dim": told,
            "addition_time_embed_dim": TOLD_NUMBERS if pooled is None else (told - pooled) // sizes,
        }
    return config


def _layers_per_block(names: Mapping[str, Any]) -> int:
    """Blocks of the original up to the first that shrinks, less the first convolution and the shrinking one."""
    blocks = count(names, "input_blocks.*.")
    return next((i - 1 for i in range(1, blocks) if f"input_blocks.{i}.0.op.weight" in names), blocks - 1)
