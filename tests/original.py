"""Diffusers folders written as the single files that models are published in: every network under its original names.

This is the inverse of what `pipelines/layouts` reads, written on its own from the published files' names.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

State = dict[str, Tensor]
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}
_RESNET |= {"conv_shortcut": "skip_connection"}
_UNET = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "controlnet_mid_block": "middle_block_out.0",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
    "controlnet_cond_embedding.conv_out": "input_hint_block.14",
}
_VAE = {"conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out", "downsamplers.0": "downsample", "upsamplers.0": "upsample"}
_VAE |= {"mid_block.attentions.0": "mid.attn_1", "to_out.0": "proj_out", "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v"}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def write(
    file: Path, folder: Path, *, parts: Mapping[str, Callable[[Path], State]], metadata: Mapping[str, str] | None = None, **more: Tensor
) -> Path:
    """One file of these parts of a folder, and of `more` tensors; what only configurations say goes to its metadata."""
    tensors: State = dict(more)
    said = dict(metadata or {})
    for part, convert in parts.items():
        tensors |= convert(folder / part)
        said.setdefault(f"limn.{part or 'control'}", json.dumps(json.loads((folder / part / "config.json").read_text())))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, said)
    return file


def state(folder: Path) -> State:
    """The tensors of one part."""
    return load_file(next(folder.glob("*.safetensors")))


def unet(folder: Path, prefix: str = "model.diffusion_model.") -> State:
    """A UNet, or with another prefix a ControlNet."""
    per_block = json.loads((folder / "config.json").read_text())["layers_per_block"] + 1
    tensors = state(folder)
    found = {}
    for name, tensor in tensors.items():
        layer, _, end = name.rpartition(".")
        found[f"{prefix}{_unet_layer(layer, per_block, tensors)}.{end}"] = tensor
    return found


def _unet_layer(layer: str, per_block: int, tensors: State) -> str:
    if layer in _UNET:
        return _UNET[layer]
    if match := re.fullmatch(r"controlnet_down_blocks\.(\d+)", layer):
        return f"zero_convs.{match[1]}.0"
    if match := re.fullmatch(r"controlnet_cond_embedding\.blocks\.(\d+)", layer):
        return f"input_hint_block.{2 * int(match[1]) + 2}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", layer):
        return f"middle_block.{2 * int(match[2]) if match[1] == 'resnets' else 1}.{_RESNET.get(match[3], match[3])}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", layer)
    assert match is not None, layer
    way, block, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * per_block}.0.op"
    if kind == "upsamplers":
        attends = any(name.startswith(f"up_blocks.{block}.attentions.") for name in tensors)
        return f"output_blocks.{(block + 1) * per_block - 1}.{1 + attends}.conv"
    place = f"input_blocks.{1 + block * per_block + index}" if way == "down" else f"output_blocks.{block * per_block + index}"
    return f"{place}.0.{_RESNET.get(rest, rest)}" if kind == "resnets" else f"{place}.1.{rest}"


def vae(folder: Path, prefix: str = "first_stage_model.") -> State:
    """An AutoencoderKL; its attention's matrices are convolutions there."""
    tensors = state(folder)
    blocks = 1 + max(int(match[1]) for name in tensors if (match := re.match(r"decoder\.up_blocks\.(\d+)", name)))
    found = {}
    for name, tensor in tensors.items():
        new = re.sub(r"up_blocks\.(\d+)\.resnets", lambda match: f"up.{blocks - 1 - int(match[1])}.block", name)
        new = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{blocks - 1 - int(match[1])}", new)
        new = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", new)
        new = re.sub(r"down_blocks\.(\d+)", r"down.\1", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", new)
        for ours, theirs in _VAE.items():
            new = re.sub(rf"(?<=\.){re.escape(ours)}(?=\.)", theirs, new)
        attention = "attentions" in name and tensor.ndim == 2
        found[prefix + new] = tensor[:, :, None, None] if attention else tensor
    return found


def clip(folder: Path, prefix: str = "cond_stage_model.transformer.") -> State:
    """CLIP as transformers 4 named it."""
    return {prefix + (name if name.startswith("text_") else f"text_model.{name}"): tensor for name, tensor in state(folder).items()}


def open_clip(folder: Path, prefix: str = "cond_stage_model.model.") -> State:
    """CLIP as OpenCLIP names it; without a projection with one more layer, which nobody reads."""
    tensors = {name.removeprefix("text_model."): tensor for name, tensor in state(folder).items()}
    found: State = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if match is None:
            continue
        layer, end = f"{prefix}transformer.resblocks.{match[1]}", match[3]
        if match[2] == "self_attn.q_proj":
            own = f"encoder.layers.{match[1]}.self_attn"
            found[f"{layer}.attn.in_proj_{end}"] = torch.cat([tensors[f"{own}.{kind}_proj.{end}"] for kind in "qkv"])
        elif match[2] in _OPEN_CLIP:
            found[f"{layer}.{_OPEN_CLIP[match[2]]}.{end}"] = tensor
    found[f"{prefix}positional_embedding"] = tensors["embeddings.position_embedding.weight"]
    found[f"{prefix}token_embedding.weight"] = tensors["embeddings.token_embedding.weight"]
    for end in ("weight", "bias"):
        found[f"{prefix}ln_final.{end}"] = tensors[f"final_layer_norm.{end}"]
    if "text_projection.weight" in tensors:
        return found | {f"{prefix}text_projection": tensors["text_projection.weight"].T}
    last = 1 + max(int(match[1]) for name in found if (match := re.search(r"resblocks\.(\d+)", name)))
    unread = {
        name.replace(f"resblocks.{last - 1}.", f"resblocks.{last}."): -tensor
        for name, tensor in found.items()
        if f"resblocks.{last - 1}." in name
    }
    return (
        found
        | unread
        | {f"{prefix}text_projection": torch.eye(tensors["final_layer_norm.weight"].shape[0]), f"{prefix}logit_scale": torch.ones(())}
    )


def t5(folder: Path, prefix: str = "text_encoders.t5xxl.transformer.") -> State:
    """T5, which keeps its names."""
    return {prefix + name: tensor for name, tensor in state(folder).items()}


_SD3_OUTSIDE = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "proj_out": "final_layer.linear",
    "context_embedder": "context_embedder",
}
_SD3_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
_SD3_JOINED = {"attn.to_q": "x_block.attn.qkv", "attn.add_q_proj": "context_block.attn.qkv", "attn2.to_q": "x_block.attn2.qkv"}


def sd3(folder: Path, prefix: str = "model.diffusion_model.") -> State:
    """SD3's transformer. In its last block the text's layer norm has shift before scale."""
    tensors = state(folder)
    last = max(int(match[1]) for name in tensors if (match := re.match(r"transformer_blocks\.(\d+)", name)))
    found: State = {prefix + "pos_embed": tensors["pos_embed.pos_embed"]}
    for name, tensor in tensors.items():
        layer, _, end = name.rpartition(".")
        if layer in _SD3_OUTSIDE:
            found[f"{prefix}{_SD3_OUTSIDE[layer]}.{end}"] = tensor
        elif layer == "norm_out.linear":
            found[f"{prefix}final_layer.adaLN_modulation.1.{end}"] = _swapped(tensor)
        elif match := re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", layer):
            block, inner = f"{prefix}joint_blocks.{match[1]}.", match[2]
            if inner in _SD3_JOINED:
                found[f"{block}{_SD3_JOINED[inner]}.{end}"] = _joined(tensors, layer, end)
            elif inner in _SD3_BLOCK:
                swap = inner == "norm1_context.linear" and int(match[1]) == last
                found[f"{block}{_SD3_BLOCK[inner]}.{end}"] = _swapped(tensor) if swap else tensor
    return found


_FLUX_OUTSIDE = {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "proj_out": "final_layer.linear",
}
_FLUX_BLOCK = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
_FLUX_SINGLE = {"norm.linear": "modulation.lin", "proj_out": "linear2", "attn.norm_q": "norm.query_norm", "attn.norm_k": "norm.key_norm"}


def flux(folder: Path, prefix: str = "model.diffusion_model.") -> State:
    """FLUX's transformer."""
    tensors = state(folder)
    found: State = {}
    for name, tensor in tensors.items():
        layer, _, end = name.rpartition(".")
        kind, _, rest = layer.partition(".")
        number, _, inner = rest.partition(".")
        scale = "scale" if ".norm_" in layer else end
        if layer in _FLUX_OUTSIDE:
            found[f"{prefix}{_FLUX_OUTSIDE[layer]}.{end}"] = tensor
        elif layer == "norm_out.linear":
            found[f"{prefix}final_layer.adaLN_modulation.1.{end}"] = _swapped(tensor)
        elif kind == "transformer_blocks" and inner in _FLUX_BLOCK:
            found[f"{prefix}double_blocks.{number}.{_FLUX_BLOCK[inner]}.{scale}"] = tensor
        elif kind == "transformer_blocks" and inner in ("attn.to_q", "attn.add_q_proj"):
            stream = "img" if inner == "attn.to_q" else "txt"
            found[f"{prefix}double_blocks.{number}.{stream}_attn.qkv.{end}"] = _joined(tensors, layer, end)
        elif kind == "single_transformer_blocks" and inner in _FLUX_SINGLE:
            found[f"{prefix}single_blocks.{number}.{_FLUX_SINGLE[inner]}.{scale}"] = tensor
        elif kind == "single_transformer_blocks" and inner == "attn.to_q":
            mlp = tensors[f"single_transformer_blocks.{number}.proj_mlp.{end}"]
            found[f"{prefix}single_blocks.{number}.linear1.{end}"] = torch.cat([_joined(tensors, layer, end), mlp])
    return found


def xlabs(folder: Path) -> State:
    """A FluxControlNetModel that reads pixels, as XLabs names it: the transformer's part as FLUX's, the rest its own."""
    tensors = state(folder)
    last = 1 + max(int(match[1]) for name in tensors if (match := re.match(r"input_hint_block\.blocks\.(\d+)", name)))
    found = flux(folder, "")
    for name, tensor in tensors.items():
        if name.startswith(("input_hint_block.", "controlnet_")):
            new = re.sub(r"input_hint_block\.blocks\.(\d+)", lambda match: f"input_hint_block.{2 * int(match[1]) + 2}", name)
            new = new.replace("hint_block.conv_in", "hint_block.0").replace("hint_block.conv_out", f"hint_block.{2 * last + 2}")
            found[new.replace("controlnet_x_embedder", "pos_embed_input")] = tensor
    return found


def eight_bits(tensors: State, ending: str = "scale_weight") -> State:
    """Matrices in 8-bit floats with a scale beside each, as ComfyUI saves them."""
    found: State = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)} if ending == "scale_weight" else {}
    for name, tensor in tensors.items():
        if not name.endswith(".weight") or tensor.ndim != 2:
            found[name] = tensor
            continue
        scale = tensor.abs().max() / 448  # the largest that e4m3 holds
        found[name] = (tensor / scale).to(torch.float8_e4m3fn)
        found[f"{name.removesuffix('weight')}{ending}"] = scale.reshape(()).float()
        found[f"{name.removesuffix('weight')}{'scale_input' if ending == 'scale_weight' else 'input_scale'}"] = torch.ones(())
    return found


def adapter(folder: Path) -> State:
    """A full T2I-Adapter as TencentARC numbers its blocks."""
    per_block = json.loads((folder / "config.json").read_text())["num_res_blocks"]
    found = {}
    for name, tensor in state(folder).items():
        new = re.sub(
            r"body\.(\d+)\.resnets\.(\d+)", lambda match: f"body.{int(match[1]) * per_block + int(match[2])}", name.removeprefix("adapter.")
        )
        found[re.sub(r"body\.(\d+)\.in_conv", lambda match: f"body.{int(match[1]) * per_block}.in_conv", new)] = tensor
    return found


def _joined(tensors: State, layer: str, end: str) -> Tensor:
    """Query, key and value in one matrix."""
    names = [layer.replace("to_q", f"to_{kind}").replace("add_q_proj", f"add_{kind}_proj") for kind in "qkv"]
    return torch.cat([tensors[f"{name}.{end}"] for name in names])


def _swapped(tensor: Tensor) -> Tensor:
    scale, shift = tensor.chunk(2)
    return torch.cat([shift, scale])


def give_clip(folder: Path, encoder: str, *, pad: str = "<|endoftext|>", **config: Any) -> None:
    """Replace a text encoder and its tokenizer by ones that know CLIP's whole vocabulary, as every published model does."""
    import transformers

    from pipelines.layouts.tokenizer import clip_tokenizer

    index = json.loads((folder / "model_index.json").read_text())
    old = json.loads((folder / encoder / "config.json").read_text())
    kind = getattr(transformers, index[encoder][1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(encoder))
        new = old | {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 0} | config
        kind(
            transformers.CLIPTextConfig(**{name: value for name, value in new.items() if name not in ("architectures", "model_type")})
        ).save_pretrained(folder / encoder)
    clip_tokenizer(transformers.CLIPTokenizer, pad).save_pretrained(folder / encoder.replace("text_encoder", "tokenizer"))
