"""The transformers of SD3 and FLUX, and their ControlNets: names of the original files, and what shapes say of the configuration.

Source: Stability-AI/sd3.5; black-forest-labs/flux.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines.layouts.header import Header, Shape, count
from pipelines.layouts.part import Part

_SD3_HEAD, _FLUX_HEAD, _LATENTS = 64, 128, 16
# Layers of FLUX's blocks, the original's to ours; one matrix there may be several of ours, one under another.
_DOUBLE: Mapping[str, Sequence[str]] = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_SINGLE: Mapping[str, Sequence[str]] = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
_OUTSIDE: Mapping[str, str] = {
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "txt_in": "context_embedder",
    "img_in": "x_embedder",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}

_FLUX_INPUTS = ("time_in.", "vector_in.", "guidance_in.", "txt_in.", "img_in.")


def sd3(header: Header, prefix: str) -> Part:
    """SD3's transformer."""
    shapes = header.under(prefix)
    width, text = shapes["context_embedder.weight"]
    patch, out = shapes["x_embedder.proj.weight"][-1], shapes["final_layer.linear.weight"][0]
    norm = shapes.get("joint_blocks.0.x_block.attn.ln_q.weight")
    head = norm[0] if norm else _SD3_HEAD
    config = {
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": shapes["x_embedder.proj.weight"][1],
        "out_channels": out // patch**2,
        "num_layers": count(shapes, "joint_blocks.*."),
        "attention_head_dim": head,
        "num_attention_heads": max(1, width // head),
        "joint_attention_dim": text,
        "caption_projection_dim": width,
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
        "pos_embed_max_size": math.isqrt(shapes["pos_embed"][1]),
        "dual_attention_layers": [
            i for i in range(count(shapes, "joint_blocks.*.")) if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in shapes
        ],
        "qk_norm": "rms_norm" if norm else None,
    }

    def tensors() -> dict[str, Tensor]:
        from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

        converted: dict[str, Tensor] = convert_sd3_transformer_checkpoint_to_diffusers(
            header.tensors({name: prefix + name for name in shapes})
        )
        return converted

    return Part("SD3Transformer2DModel", config, tensors)


def flux(header: Header, prefix: str) -> Part:
    """FLUX's transformer."""
    shapes = header.under(prefix)
    config = _flux_config(shapes) | {"patch_size": 1, "out_channels": shapes["final_layer.linear.weight"][0]}
    return Part("FluxTransformer2DModel", config, lambda: _from_flux(header.tensors({name: prefix + name for name in shapes})))


def _flux_config(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """What a transformer and a ControlNet under FLUX's original names share."""
    head = shapes["double_blocks.0.img_attn.norm.query_norm.scale"][0]
    return {
        "in_channels": shapes["img_in.weight"][1],
        "num_layers": count(shapes, "double_blocks.*."),
        "num_single_layers": count(shapes, "single_blocks.*."),
        "attention_head_dim": head,
        "num_attention_heads": shapes["img_in.weight"][0] // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        "axes_dims_rope": _axes(head),
    }


SHIFT = "limn.shift"  # in the metadata of an SD3 ControlNet: what was taken off its latents, and lies in their layer's bias instead
SD3_HINT = "pos_embed_input.proj"


def sd3_controlnet(header: Header) -> Part:
    """An SD3ControlNetModel under diffusers' names."""
    shapes = header.shapes
    embed = "pos_embed_input."
    width, told, patch = (shapes[f"{embed}proj.weight"][i] for i in (0, 1, 3))
    base = shapes.get("pos_embed.proj.weight", (width, _LATENTS))[1]
    norm = shapes.get("transformer_blocks.0.attn.norm_q.weight")
    head, joint = norm[0] if norm else _SD3_HEAD, "context_embedder.weight" in shapes
    config = {
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": base,
        "num_layers": count(shapes, "controlnet_blocks.*."),
        "attention_head_dim": head,
        "num_attention_heads": max(1, width // head),
        "joint_attention_dim": shapes["context_embedder.weight"][1] if joint else None,
        "caption_projection_dim": width,
        "pooled_projection_dim": shapes["time_text_embed.text_embedder.linear_1.weight"][1],
        "pos_embed_max_size": math.isqrt(shapes["pos_embed.pos_embed"][1]) if "pos_embed.pos_embed" in shapes else None,
        "pos_embed_type": "sincos" if "pos_embed.pos_embed" in shapes else None,
        "use_pos_embed": "pos_embed.proj.weight" in shapes,
        "extra_conditioning_channels": told - base,
        "force_zeros_for_pooled_projection": joint,  # as InstantX's; Stability's own read no text and do read the pooled prompt
        "qk_norm": "rms_norm" if norm else None,
        "dual_attention_layers": [
            i for i in range(count(shapes, "transformer_blocks.*.")) if f"transformer_blocks.{i}.attn2.to_q.weight" in shapes
        ],
    }

    def tensors() -> dict[str, Tensor]:
        return shifted(header.tensors({name: name for name in shapes}), float(header.metadata.get(SHIFT, "0")))

    return Part("SD3ControlNetModel", config, tensors)


def shifted(tensors: Mapping[str, Tensor], shift: float) -> dict[str, Tensor]:
    """An SD3 ControlNet's tensors that say of latents what they said of the same, all numbers larger by `shift`."""
    bias, weight = (tensors[f"{SD3_HINT}.{end}"] for end in ("bias", "weight"))
    return (
        {**tensors, f"{SD3_HINT}.bias": (bias.float() + shift * weight.float().flatten(1).sum(1)).to(bias.dtype)} if shift else {**tensors}
    )


def flux_controlnet(header: Header) -> Part:
    """A FluxControlNetModel under diffusers' names."""
    shapes = header.shapes
    width = shapes["x_embedder.weight"][0]
    head = shapes["transformer_blocks.0.attn.norm_q.weight"][0]
    hint = "input_hint_block."
    config = {
        "patch_size": 2 if f"{hint}conv_out.weight" in shapes else 1,
        "in_channels": shapes["x_embedder.weight"][1],
        "num_layers": count(shapes, "transformer_blocks.*."),
        "num_single_layers": count(shapes, "single_transformer_blocks.*."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "pooled_projection_dim": shapes["time_text_embed.text_embedder.linear_1.weight"][1],
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in shapes,
        "axes_dims_rope": _axes(head),
        "num_mode": shapes.get("controlnet_mode_embedder.weight", (None,))[0],
        "conditioning_embedding_channels": shapes.get(f"{hint}conv_out.weight", (None,))[0],
    }
    return Part("FluxControlNetModel", config, lambda: header.tensors({name: name for name in shapes}))


def xlabs_controlnet(header: Header) -> Part:
    """A ControlNet of FLUX under FLUX's original names, as XLabs publishes them: it reads the map's pixels through convolutions.

    Source: XLabs-AI/x-flux, src/flux/controlnet.py.
    """
    shapes = header.shapes
    inside = {name: name for name in shapes if name.startswith(("double_blocks.", "single_blocks.", *_FLUX_INPUTS))}
    convolutions = count(shapes, "input_hint_block.*.")
    names = {f"input_hint_block.{2 * i}": f"input_hint_block.blocks.{i - 1}" for i in range(1, convolutions - 1)}
    names |= {"input_hint_block.0": "input_hint_block.conv_in", f"input_hint_block.{2 * convolutions - 2}": "input_hint_block.conv_out"}
    names |= {"pos_embed_input": "controlnet_x_embedder"}
    outside = {
        f"{names.get(layer, layer)}.{end}": f"{layer}.{end}" for layer, _, end in (name.rpartition(".") for name in shapes.keys() - inside)
    }
    read = shapes[f"input_hint_block.{2 * convolutions - 2}.weight"][0]
    config = _flux_config(shapes) | {"patch_size": 2, "conditioning_embedding_channels": read}
    return Part("FluxControlNetModel", config, lambda: _from_flux(header.tensors(inside)) | header.tensors(outside))


def _axes(head: int) -> list[int]:
    """How a head's channels are dealt to the three axes of positions, as 128 are to 16, 56 and 56."""
    side = 2 * round(head * 7 / 32)
    return [head - 2 * side, side, side]


def _from_flux(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """FLUX's tensors under diffusers' names; what is unknown keeps its name, to be refused by it."""
    ours: dict[str, Tensor] = {}
    for name, tensor in found.items():
        layer, _, end = name.rpartition(".")
        end = "weight" if end == "scale" else end  # of the norms of query and key
        kind, _, rest = layer.partition(".")
        number, _, inner = rest.partition(".")
        if kind == "double_blocks" and inner in _DOUBLE:
            ours |= _rows(tensor, f"transformer_blocks.{number}.", _DOUBLE[inner], end)
        elif kind == "single_blocks" and inner in _SINGLE:
            ours |= _rows(tensor, f"single_transformer_blocks.{number}.", _SINGLE[inner], end)
        elif layer == "final_layer.adaLN_modulation.1":  # shift and scale change places
            shift, scale = tensor.chunk(2)
            ours[f"norm_out.linear.{end}"] = torch.cat([scale, shift])
        else:
            ours[f"{_OUTSIDE.get(layer, layer)}.{end}"] = tensor
    return ours


def _rows(tensor: Tensor, prefix: str, layers: Sequence[str], end: str) -> dict[str, Tensor]:
    """A matrix or bias cut into those of our layers: equal thirds, or for a single block thirds of three sevenths and what is left."""
    pieces = torch.split(tensor, _single_sizes(tensor.shape)) if len(layers) == 4 else tensor.chunk(len(layers))
    return {f"{prefix}{layer}.{end}": piece for layer, piece in zip(layers, pieces, strict=True)}


def _single_sizes(shape: Shape | Any) -> list[int]:
    width = int(shape[0]) // 7  # query, key, value, and four times as much for the feed-forward part
    return [width, width, width, int(shape[0]) - 3 * width]
