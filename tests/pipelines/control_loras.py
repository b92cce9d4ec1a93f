"""Random Control LoRAs for tiny FLUX.1 models, as files in both published forms, and the network that one is equal to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipelines.layouts.header import count
from tests import tinymodels, tinymodels_flux

# The original's layers, those of diffusers that they are, and the rows of each; in blocks, without the block's name.
_SAME: Mapping[str, str] = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer.linear": "proj_out",
    **{
        f"{theirs}_in.{end}": f"time_text_embed.{ours}_embedder.linear_{i}"
        for theirs, ours in (("time", "timestep"), ("vector", "text"), ("guidance", "guidance"))
        for i, end in ((1, "in_layer"), (2, "out_layer"))
    },
}
_DOUBLE: Mapping[str, Sequence[str]] = {
    "img_mod.lin": ["norm1.linear"],
    "txt_mod.lin": ["norm1_context.linear"],
    "img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "img_attn.proj": ["attn.to_out.0"],
    "txt_attn.proj": ["attn.to_add_out"],
    "img_mlp.0": ["ff.net.0.proj"],
    "img_mlp.2": ["ff.net.2"],
    "txt_mlp.0": ["ff_context.net.0.proj"],
    "txt_mlp.2": ["ff_context.net.2"],
}
_SINGLE: Mapping[str, Sequence[str]] = {
    "modulation.lin": ["norm.linear"],
    "linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
    "linear2": ["proj_out"],
}
_DOUBLE_NORMS = {
    "img_attn.norm.query": "norm_q",
    "img_attn.norm.key": "norm_k",
    "txt_attn.norm.query": "norm_added_q",
    "txt_attn.norm.key": "norm_added_k",
}
_SINGLE_NORMS = {"norm.query": "norm_q", "norm.key": "norm_k"}


def build_house(root: Path) -> Path:
    """Write dev, schnell, a model for maps, a ControlNet, two Control LoRAs for dev, and pictures, into a folder; return it."""
    tinymodels_flux.build_base(root / "dev")
    tinymodels_flux.build_base(root / "schnell", guided=False)
    tinymodels_flux.build_base(root / "map", pipeline="FluxControlPipeline")
    tinymodels_flux.build_controlnet(root / "net", seed=1)
    for i, name in enumerate(("canny", "depth")):
        build_control_lora(root, root / "dev", seed=i, name=name)
    return tinymodels.build_pictures(root)


def build_control_lora(folder: Path, base: Path, *, seed: int = 0, name: str = "canny") -> tuple[Path, Path]:
    """Write a Control LoRA for the transformer of a FLUX folder, under Black Forest Labs' names and under diffusers'; both files."""
    with safe_open(base / "transformer" / "diffusion_pytorch_model.safetensors", "pt") as opened:
        shapes = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118 (no mapping)
    original, ours = random_control_lora(shapes, seed)
    paths = folder / f"{name}-original.safetensors", folder / f"{name}-diffusers.safetensors"
    save_file(original, paths[0])
    save_file({f"transformer.{key}": tensor.contiguous().clone() for key, tensor in ours.items()}, paths[1])
    return paths


def random_control_lora(
    shapes: Mapping[str, tuple[int, ...]], seed: int, *, rank: int = 4, strength: float = 0.2
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors for a transformer of these shapes, under Black Forest Labs' names and under diffusers', without the network's."""
    draw = torch.Generator().manual_seed(seed)
    original: dict[str, Tensor] = {}
    ours: dict[str, Tensor] = {}

    def layer(theirs: str, names: Sequence[str], *, swapped: bool = False) -> None:
        rows = [shapes[f"{one}.weight"][0] for one in names]
        reads = shapes[f"{names[0]}.weight"][1] * (2 if names[0] == "x_embedder" else 1)
        down = torch.randn(rank, reads, generator=draw) / reads**0.5
        up, bias = torch.randn(sum(rows), rank, generator=draw) * strength, torch.randn(sum(rows), generator=draw) * strength
        original.update({f"{theirs}.lora_A.weight": down, f"{theirs}.lora_B.weight": up, f"{theirs}.lora_B.bias": bias})
        if swapped:  # the original's shift comes first
            up, bias = (torch.cat([one[rows[0] // 2 :], one[: rows[0] // 2]]) for one in (up, bias))
        for one, up_rows, bias_rows in zip(names, up.split(rows), bias.split(rows), strict=True):
            ours.update({f"{one}.lora_A.weight": down, f"{one}.lora_B.weight": up_rows, f"{one}.lora_B.bias": bias_rows})

    for theirs, one in _SAME.items():
        if f"{one}.weight" in shapes:
            layer(theirs, [one])
    layer("final_layer.adaLN_modulation.1", ["norm_out.linear"], swapped=True)
    for blocks, our_blocks, layers, norms in (
        ("double_blocks", "transformer_blocks", _DOUBLE, _DOUBLE_NORMS),
        ("single_blocks", "single_transformer_blocks", _SINGLE, _SINGLE_NORMS),
    ):
        for i in range(count(shapes, f"{our_blocks}.*.")):
            for theirs, names in layers.items():
                layer(f"{blocks}.{i}.{theirs}", [f"{our_blocks}.{i}.{one}" for one in names])
            for theirs, one in norms.items():
                scale = 1.0 + torch.randn(shapes[f"{our_blocks}.{i}.attn.{one}.weight"], generator=draw) * strength
                original[f"{blocks}.{i}.{theirs}_norm.scale"] = ours[f"{our_blocks}.{i}.attn.{one}.weight"] = scale
    return original, ours


def tuned_transformer(base: Path, lora: Path, weight: float) -> Any:
    """The transformer that reads maps itself and is what a base with a Control LoRA (under diffusers' names) is: all of it merged."""
    from diffusers import FluxTransformer2DModel
    from safetensors.torch import load_file

    plain = FluxTransformer2DModel.from_pretrained(base / "transformer")
    state, deltas = plain.state_dict(), {key.removeprefix("transformer."): tensor for key, tensor in load_file(lora).items()}
    channels = state["x_embedder.weight"].shape[1]
    state["x_embedder.weight"] = torch.cat([state["x_embedder.weight"], torch.zeros_like(state["x_embedder.weight"])], dim=1)
    for key, tensor in deltas.items():
        if key.endswith(".lora_A.weight"):
            name = key.removesuffix(".lora_A.weight")
            state[f"{name}.weight"] = state[f"{name}.weight"] + weight * deltas[f"{name}.lora_B.weight"] @ tensor
            state[f"{name}.bias"] = state[f"{name}.bias"] + weight * deltas[f"{name}.lora_B.bias"]
        elif "lora" not in key:
            state[key] = tensor
    wide = FluxTransformer2DModel.from_config({**plain.config, "in_channels": 2 * channels, "out_channels": channels})
    wide.load_state_dict(state)
    return wide.eval()
