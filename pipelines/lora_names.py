"""Which layer of which network a LoRA's key means.

Every published form names layers by a path: diffusers' own with dots, kohya's with underscores, and the original checkpoints' block names
in place of diffusers' (SDXL: `input_blocks`; SD3: `joint_blocks`; FLUX: `double_blocks`). Dots written as underscores, all are plain
look-ups in one table made from the model itself. Original names may mean several layers of ours, where query, key and value are one
matrix there.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

Layers = tuple[tuple[str, str], ...]  # (part of the model, name of the layer in it), in the order of the rows of a joint matrix

DENOISERS = ("unet", "transformer")

_UNET_INNER = {
    "norm1": "in_layers_0",
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "norm2": "out_layers_0",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
}
_UNET_OUTER = {
    "conv_in": "input_blocks_0_0",
    "conv_out": "out_2",
    "time_embedding_linear_1": "time_embed_0",
    "time_embedding_linear_2": "time_embed_2",
    "add_embedding_linear_1": "label_emb_0_0",
    "add_embedding_linear_2": "label_emb_0_2",
}
# Layers of one block, ours to the original's; where several of ours stand, the original has one matrix of all their rows.
_FLUX_DOUBLE: Mapping[str, Sequence[str]] = {
    "img_attn_qkv": ("attn_to_q", "attn_to_k", "attn_to_v"),
    "txt_attn_qkv": ("attn_add_q_proj", "attn_add_k_proj", "attn_add_v_proj"),
    "img_attn_proj": ("attn_to_out_0",),
    "txt_attn_proj": ("attn_to_add_out",),
    "img_mlp_0": ("ff_net_0_proj",),
    "img_mlp_2": ("ff_net_2",),
    "txt_mlp_0": ("ff_context_net_0_proj",),
    "txt_mlp_2": ("ff_context_net_2",),
    "img_mod_lin": ("norm1_linear",),
    "txt_mod_lin": ("norm1_context_linear",),
}
_FLUX_SINGLE: Mapping[str, Sequence[str]] = {
    "linear1": ("attn_to_q", "attn_to_k", "attn_to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm_linear",),
}
_SD3_JOINT: Mapping[str, Sequence[str]] = {
    "x_block_attn_qkv": ("attn_to_q", "attn_to_k", "attn_to_v"),
    "context_block_attn_qkv": ("attn_add_q_proj", "attn_add_k_proj", "attn_add_v_proj"),
    "x_block_attn_proj": ("attn_to_out_0",),
    "context_block_attn_proj": ("attn_to_add_out",),
    "x_block_mlp_fc1": ("ff_net_0_proj",),
    "x_block_mlp_fc2": ("ff_net_2",),
    "context_block_mlp_fc1": ("ff_context_net_0_proj",),
    "context_block_mlp_fc2": ("ff_context_net_2",),
    "x_block_adaLN_modulation_1": ("norm1_linear",),
    "context_block_adaLN_modulation_1": ("norm1_context_linear",),
}


def layer_table(networks: Mapping[str, nn.Module]) -> dict[str, Layers]:
    """Every name a LoRA may have for every linear and convolutional layer; networks: by the name of their part."""
    table: dict[str, Layers] = {}
    for part, network in networks.items():
        ours = {
            name.replace(".", "_"): ((part, name),) for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
        }
        if part in DENOISERS:
            names = {**ours, **_original_unet(ours, network), **_original_transformer(ours)}
            prefixes = ["lora_unet_", f"lora_{part}_", f"{part}_", "diffusion_model_", ""]
        elif part.startswith("text_encoder"):
            names = {alias: layers for name, layers in ours.items() for alias in _text_names(name)}
            number = part.removeprefix("text_encoder").removeprefix("_") or "1"
            prefixes = [f"lora_te{number}_", f"{part}_", *(["lora_te_"] if number == "1" else [])]
        else:
            continue
        table.update({prefix + name: layers for prefix in prefixes for name, layers in names.items()})
    return table


def belongs_to(name: str, networks: Mapping[str, nn.Module]) -> bool:
    """Whether a flattened name is of a network that is loaded; a LoRA may carry text encoders that a model has left out (SD3's T5)."""
    encoder = re.match(r"(?:lora_te|text_encoder_?)(\d?)_", name)
    return encoder is None or f"text_encoder_{encoder[1] or 1}".removesuffix("_1") in networks


def _text_names(name: str) -> Sequence[str]:
    """transformers 5 has dropped `text_model` from the names of one of its CLIP classes."""
    bare = name.removeprefix("text_model_")
    return (name, bare, f"text_model_{bare}")


def _original_unet(ours: Mapping[str, Layers], network: nn.Module) -> dict[str, Layers]:
    """A UNet's layers by the original checkpoint's block numbers, as kohya's trainer names those of SDXL."""
    per_block = getattr(network, "config", {}).get("layers_per_block")
    if not isinstance(per_block, int):
        return {}
    found = {}
    for name, layers in ours.items():
        if original := _UNET_OUTER.get(name) or _original_block(name, per_block, ours):
            found[original] = layers
    return found


def _original_block(name: str, per_block: int, ours: Mapping[str, Layers]) -> str | None:
    if match := re.fullmatch(r"mid_block_(resnets|attentions)_(\d)_(.+)", name):
        place = 1 if match[1] == "attentions" else 2 * int(match[2])
        return f"middle_block_{place}_{_inner(match[1], match[3])}"
    if match := re.fullmatch(r"down_blocks_(\d+)_(resnets|attentions|downsamplers)_(\d+)_(.+)", name):
        block, kind, index, rest = int(match[1]), match[2], int(match[3]), match[4]
        if kind == "downsamplers":
            return f"input_blocks_{(block + 1) * (per_block + 1)}_0_op"
        return f"input_blocks_{1 + block * (per_block + 1) + index}_{int(kind == 'attentions')}_{_inner(kind, rest)}"
    if match := re.fullmatch(r"up_blocks_(\d+)_(resnets|attentions|upsamplers)_(\d+)_(.+)", name):
        block, kind, index, rest = int(match[1]), match[2], int(match[3]), match[4]
        if kind == "upsamplers":
            attended = any(other.startswith(f"up_blocks_{block}_attentions_") for other in ours)
            return f"output_blocks_{(block + 1) * (per_block + 1) - 1}_{1 + attended}_conv"
        return f"output_blocks_{block * (per_block + 1) + index}_{int(kind == 'attentions')}_{_inner(kind, rest)}"
    return None


def _inner(kind: str, rest: str) -> str:
    return _UNET_INNER.get(rest, rest) if kind == "resnets" else rest


def _original_transformer(ours: Mapping[str, Layers]) -> dict[str, Layers]:
    """A transformer's layers by the names of FLUX's and SD3's original checkpoints."""
    found: dict[str, Layers] = {}
    for block in _blocks(ours, "transformer_blocks"):
        for original, names in (("double_blocks", _FLUX_DOUBLE), ("joint_blocks", _SD3_JOINT)):
            found |= _joined(ours, f"transformer_blocks_{block}_", f"{original}_{block}_", names)
    for block in _blocks(ours, "single_transformer_blocks"):
        found |= _joined(ours, f"single_transformer_blocks_{block}_", f"single_blocks_{block}_", _FLUX_SINGLE)
    return found


def _blocks(ours: Mapping[str, Layers], kind: str) -> Iterator[int]:
    numbers = {int(match[1]) for name in ours if (match := re.match(rf"{kind}_(\d+)_", name))}
    return iter(sorted(numbers))


def _joined(ours: Mapping[str, Layers], prefix: str, original: str, names: Mapping[str, Sequence[str]]) -> dict[str, Layers]:
    return {
        original + theirs: tuple(layer for name in mine for layer in ours[prefix + name])
        for theirs, mine in names.items()
        if all(prefix + name in ours for name in mine)
    }
