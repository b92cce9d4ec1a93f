"""Text encoders in single files: CLIP under transformers' names, OpenCLIP under its own, T5.

CLIP's heads have 64 channels everywhere.
Source: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021.
"""

from typing import Any

import torch
from torch import Tensor

from pipelines.layouts.header import Header, count
from pipelines.layouts.part import Part

_HEAD_CHANNELS = 64
_TOKENS = {"bos_token_id": 49406, "eos_token_id": 49407}


def clip(header: Header, prefix: str, *, projected: bool, act: str = "quick_gelu") -> Part:
    """CLIP under transformers' names. projected: with a pooled prompt; files that leave out its matrix mean the identity."""
    shapes = header.under(prefix)
    inner = "text_model." if any(name.startswith("text_model.") for name in shapes) else ""
    vocabulary, width = shapes[f"{inner}embeddings.token_embedding.weight"]
    config: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes[f"{inner}encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": count(shapes, f"{inner}encoder.layers.*."),
        "num_attention_heads": max(1, width // _HEAD_CHANNELS),
        "max_position_embeddings": shapes[f"{inner}embeddings.position_embedding.weight"][0],
        "projection_dim": shapes.get("text_projection.weight", (width,))[0],
        "hidden_act": act,
        **_TOKENS,
    }

    def tensors() -> dict[str, Tensor]:
        found = header.tensors({name if name.startswith("text_") else f"text_model.{name}": prefix + name for name in shapes})
        if projected and "text_projection.weight" not in found:
            found["text_projection.weight"] = torch.eye(width)
        return found

    return Part("CLIPTextModelWithProjection" if projected else "CLIPTextModel", config, tensors, loose=True)


def open_clip(header: Header, prefix: str, *, projected: bool) -> Part:
    """OpenCLIP under its own names. Without a projection (SD 2.x) the last layer is left out: it was trained on the one before."""
    shapes = header.under(prefix)
    vocabulary, width = shapes["token_embedding.weight"]
    layers = count(shapes, "transformer.resblocks.*.")
    config: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": layers if projected else layers - 1,
        "num_attention_heads": max(1, width // _HEAD_CHANNELS),
        "max_position_embeddings": shapes["positional_embedding"][0],
        "projection_dim": shapes["text_projection"][1] if "text_projection" in shapes else width,
        "hidden_act": "gelu",
        **_TOKENS,
    }

    def tensors() -> dict[str, Tensor]:
        from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
        from transformers import CLIPTextConfig

        class Described:
            config = CLIPTextConfig(hidden_size=width)

        found = header.tensors({"cond_stage_model.model." + name: prefix + name for name in shapes if name != "text_projection"})
        converted: dict[str, Tensor] = convert_open_clip_checkpoint(Described, found)
        if projected:
            converted["text_projection.weight"] = header.tensors({"": prefix + "text_projection"})[""].T.contiguous()
        return converted

    return Part("CLIPTextModelWithProjection" if projected else "CLIPTextModel", config, tensors, loose=True)


def t5(header: Header, prefix: str) -> Part:
    """T5's encoder, version 1.1 (gated), under transformers' names. Source: Raffel et al., 2020; Shazeer, GLU Variants, 2020."""
    shapes = header.under(prefix)
    vocabulary, width = shapes["shared.weight"]
    buckets, heads = shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    gated = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in shapes
    first = "wi_0" if gated else "wi"
    config: dict[str, Any] = {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": shapes["encoder.block.0.layer.0.SelfAttention.q.weight"][0] // heads,
        "d_ff": shapes[f"encoder.block.0.layer.1.DenseReluDense.{first}.weight"][0],
        "num_layers": count(shapes, "encoder.block.*."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "is_encoder_decoder": False,
        "use_cache": False,
    }
    return Part("T5EncoderModel", config, lambda: header.tensors({name: prefix + name for name in shapes}), loose=True)
