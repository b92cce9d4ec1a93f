"""What a trained ControlNet becomes: a diffusers folder, one file for A1111 and ComfyUI, and a model card; each reloaded and compared.

SD 1.x and 2.x have the original layout, `control_model.*`. SDXL, SD3 and FLUX have no other layout than diffusers' names in one file: it is
what those programs read. Source of the original names: lllyasviel/ControlNet, cldm/cldm.py; CompVis, openaimodel.py.

ComfyUI gives SD3's ControlNets the condition's latents without the autoencoder's shift, as InstantX's were trained; diffusers and Limn take
it off. The single file therefore has the shift in the bias of the layer that reads those latents, and says so in its metadata.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.errors import BadModel
from pipelines.layouts.transformers import SHIFT, shifted
from pipelines.loading import WEIGHT_NAMES, quiet
from pipelines.singlefile import SAID
from pipelines.variants import Variant, differences, is_low_rank
from training.config import Precision

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_HINT = "controlnet_cond_embedding"
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_TOP = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "controlnet_mid_block": "middle_block_out.0",
}


def original_name(name: str, layers: int, hints: int) -> str:
    """A ControlNet tensor's name in the original layout. layers: of each block; hints: convolutions between the hint's first and last."""
    module, _, end = name.rpartition(".")
    if module in _TOP:
        return f"control_model.{_TOP[module]}.{end}"
    if match := re.fullmatch(r"controlnet_down_blocks\.(\d+)", module):
        return f"control_model.zero_convs.{match[1]}.0.{end}"
    if match := re.fullmatch(rf"{_HINT}\.(conv_in|conv_out|blocks\.(\d+))", module):
        place = {"conv_in": 0, "conv_out": hints + 1}.get(match[1], int(match[2] or 0) + 1)
        return f"control_model.input_hint_block.{2 * place}.{end}"  # every other layer is a SiLU
    if match := re.fullmatch(r"down_blocks\.(\d+)\.(resnets|attentions|downsamplers)\.(\d+)\.(.+)", module):
        block, part, index, rest = int(match[1]), match[2], int(match[3]), match[4]
        first = 1 + block * (layers + 1)
        if part == "downsamplers":
            return f"control_model.input_blocks.{first + layers}.0.op.{end}"
        return f"control_model.input_blocks.{first + index}.{int(part == 'attentions')}.{_inner(part, rest)}.{end}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", module):
        place = 2 * int(match[2]) + (match[1] == "attentions")
        return f"control_model.middle_block.{place}.{_inner(match[1], match[3])}.{end}"
    raise BadModel(f"ControlNet tensor {name!r} has no name in the original layout: keep the diffusers folder")


def _inner(part: str, rest: str) -> str:
    return _RESNET[rest] if part == "resnets" else rest


def single_file_tensors(net: Any, shift: float = 0.0) -> dict[str, Tensor]:
    """The network's tensors as A1111 and ComfyUI name them. shift: of the latents that SD3's are given, after scaling; see above."""
    state: Mapping[str, Tensor] = net.state_dict()
    if _takes_shift(net, shift):
        return shifted(state, -shift)
    if is_low_rank(net):
        plain = {name: tensor for name, tensor in state.items() if tensor.ndim == 1}
        return _control_lora(differences(net) | plain, net.config)
    if type(net).__name__ != "ControlNetModel" or net.config.addition_embed_type is not None:
        return dict(state)
    return _original(state, net.config)


def _takes_shift(net: Any, shift: float) -> bool:
    """Whether the single file makes up for the shift: of the one map that ComfyUI gives, to a network that was not taught without it."""
    if not shift or type(net).__name__ != "SD3ControlNetModel":
        return False
    return not net.config.extra_conditioning_channels and not net.config.force_zeros_for_pooled_projection


def _control_lora(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Low-rank differences as ComfyUI and A1111 read them: the original names without their prefix, and a mark.

    The base's biases and norms are among them: A1111 takes only matrices from its own model, and knows SD 1.x by a norm.
    Source: Stability AI, control-lora, 2023; ComfyUI, comfy/controlnet.py; sd-webui-controlnet, scripts/controlnet_lora.py.
    """
    named = {name.removeprefix("control_model."): tensor for name, tensor in _original(tensors, config).items()}
    return named | {"lora_controlnet": torch.zeros(1)}


def _original(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    hints = sum(name.startswith(f"{_HINT}.blocks.") and name.endswith(".weight") for name in tensors)
    return {original_name(name, int(config["layers_per_block"]), hints): tensor for name, tensor in tensors.items()}


def has_single_file(net: Any) -> bool:
    """Whether other programs read the network as one file: Limn's own variants they do not, but a UNet's low-rank differences they do."""
    return not isinstance(net, Variant) or (is_low_rank(net) and "layers_per_block" in net.config)


def write_folder(folder: Path, net: Any, precision: Precision = "fp32") -> None:
    """A diffusers folder, read again and compared; of low-rank networks only the differences are written.

    Raises:
        BadModel: what was read is not what was written.
    """
    with quiet():
        net = net.to(DTYPES[precision])
        if is_low_rank(net):
            net.save_config(folder)
            tensors = {name: tensor.contiguous() for name, tensor in differences(net).items()}
            save_file(tensors, folder / WEIGHT_NAMES[0], metadata={"format": "pt"})
            _compare(tensors, load_file(folder / WEIGHT_NAMES[0]), folder)
            return
        net.save_pretrained(folder)
        again = type(net).from_pretrained(folder, local_files_only=True)
    _compare(net.state_dict(), {name: tensor.to(DTYPES[precision]) for name, tensor in again.state_dict().items()}, folder)


def write_single_file(path: Path, net: Any, precision: Precision = "fp32", shift: float = 0.0) -> None:
    """One .safetensors file, read again and compared; what its shapes cannot say of its configuration is in its metadata.

    shift: as for `single_file_tensors`.

    Raises:
        BadModel: what was read is not what was written.
    """
    tensors = {name: tensor.to(DTYPES[precision]).contiguous() for name, tensor in single_file_tensors(net, shift).items()}
    said = {name: net.config[name] for name in SAID if net.config.get(name) is not None}
    metadata = {"format": "pt", "limn.control": json.dumps(said)} | ({SHIFT: repr(shift)} if _takes_shift(net, shift) else {})
    save_file(tensors, path, metadata=metadata)
    _compare(tensors, load_file(path), path)


def _compare(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    different = [name for name in wanted.keys() | found.keys() if name not in wanted or name not in found]
    different += [name for name in wanted.keys() & found.keys() if not torch.equal(wanted[name], found[name])]
    if different:
        raise BadModel(
            f"{str(path)!r} does not hold what was written ({len(different)} tensors, the first is {min(different)}): write it again"
        )
