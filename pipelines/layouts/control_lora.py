"""FLUX.1's Control LoRAs, under Black Forest Labs' names or diffusers'.

Such a file holds low-rank differences to the base's layers, with biases, and norms that take the place of the base's. Its embedding of
tokens is wider than the base's: behind the picture's latents it reads a map's.
Source: Black Forest Labs, flux, src/flux/modules/lora.py, 2024; diffusers, FluxLoraLoaderMixin, 2024.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from core.errors import BadModel
from pipelines.layouts.header import Header
from pipelines.layouts.part import Part
from pipelines.layouts.transformers import from_flux
from pipelines.lora_file import described, described_alpha, root_scaled

KIND = "FluxControlLora"
EMBEDDER = "x_embedder"
_PREFIX = re.compile(r"(base_model\.model\.|diffusion_model\.|transformer\.)+")
_KEY = re.compile(
    r"(?P<layer>.+)\.(?:"
    r"(?P<down>lora_(?:A|down)(?:\.default)?\.weight)|(?P<up>lora_(?:B|up)(?:\.default)?\.weight)|(?P<bias>lora_(?:B|up)(?:\.default)?\.bias)|"
    r"(?P<alpha>alpha)|(?P<scale>(?<=_norm\.)scale|(?<=\.norm_[qk]\.)weight|(?<=\.norm_added_[qk]\.)weight))"
)

_Names = dict[str, dict[str, str]]  # of the file's tensors, by layer and by part in it: down, up, bias and alpha, or a norm's scale


def control_lora(header: Header) -> Part:
    """The Control LoRA of a file; tensors: `down` (rank, in), `up` (out, rank) and `bias` of layers, `weight` of norms.

    layers, norms: in its configuration, what each layer reads and writes, and each norm's width. limn_tunes: see `pipelines.tuning`.

    Raises:
        BadModel: a tensor is of no known kind, or a layer's do not fit each other.
    """
    names = _sorted(header)
    shapes = {name: torch.empty(shape, device="meta") for name, shape in header.shapes.items()}
    _check(header, names, shapes)
    found = _ours(names, shapes, {})
    layers = {
        name.removesuffix(".down"): [tensor.shape[1], found[f"{name[:-5]}.up"].shape[0]]
        for name, tensor in found.items()
        if name.endswith(".down")
    }
    norms = {name.removesuffix(".weight"): tensor.shape[0] for name, tensor in found.items() if name.endswith(".weight")}
    config: dict[str, Any] = {"limn_tunes": True, "layers": layers, "norms": norms}

    def tensors() -> dict[str, Tensor]:
        read = header.tensors({name: name for roles in names.values() for name in roles.values()})
        return _ours(names, read, _scales(header, names, read))

    return Part(KIND, config, tensors)


def _sorted(header: Header) -> _Names:
    names: _Names = {}
    for name in header.shapes:
        prefix = _PREFIX.match(name)
        match = _KEY.fullmatch(name, prefix.end() if prefix else 0)
        if match is None:
            raise BadModel(
                f"Control LoRA {str(header.path)!r} holds {name[:80]!r}, which is neither part of a LoRA nor a norm of FLUX.1's: use one "
                "under Black Forest Labs' names or diffusers'"
            )
        role = next(role for role in ("down", "up", "bias", "alpha", "scale") if match[role])
        names.setdefault(match["layer"], {})[role] = name
    return names


def _check(header: Header, names: _Names, shapes: Mapping[str, Tensor]) -> None:
    for layer, roles in names.items():
        of = {role: tuple(shapes[name].shape) for role, name in roles.items()}
        if "scale" in of:
            fits = len(of) == 1 and len(of["scale"]) == 1
        else:
            fits = len(of.get("down", ())) == len(of.get("up", ())) == 2 and of["up"][1] == of["down"][0]
            fits = fits and of.get("bias", of["up"][:1]) == of["up"][:1] and math.prod(of.get("alpha", ())) == 1
        if not fits:
            said = ", ".join(f"{role} {list(shape)}" for role, shape in of.items())
            raise BadModel(
                f"Control LoRA {str(header.path)!r} is damaged: the tensors of {layer!r} do not fit each other ({said}); fetch it again"
            )


def _scales(header: Header, names: _Names, read: Mapping[str, Tensor]) -> dict[str, float]:
    """α by the rank, of the layers where it is not the rank itself."""
    said = described(header.metadata)
    found = {}
    for layer, roles in names.items():
        if "down" not in roles:
            continue
        whole = roles["down"][: roles["down"].index(layer) + len(layer)].removeprefix("base_model.model.")
        alpha = float(read[roles["alpha"]]) if "alpha" in roles else described_alpha(said, whole.replace(".", "_"))
        if alpha is not None:
            rank = header.shapes[roles["down"]][0]
            found[layer] = alpha / (math.sqrt(rank) if root_scaled(said) else rank)
    return found


def _ours(names: _Names, read: Mapping[str, Tensor], scales: Mapping[str, float]) -> dict[str, Tensor]:
    """The tensors under the names of diffusers' layers, where one of the original's may be several; those share its `down`.

    What becomes of a layer's rows (cut, or shift and scale exchanged) becomes of `up` and of the bias. diffusers 0.42 exchanges the halves
    of `down` too, which makes another product of the two.
    """
    found: dict[str, Tensor] = {}
    for layer, roles in names.items():
        if "scale" in roles:
            found |= from_flux({f"{layer}.weight": read[roles["scale"]]})
            continue
        ends = {"weight": "up", "bias": "bias"}
        rows = from_flux({f"{layer}.{end}": read[roles[role]] for end, role in ends.items() if role in roles})
        for name, tensor in rows.items():
            ours, _, end = name.rpartition(".")
            scale = scales.get(layer, 1.0)
            found[f"{ours}.{ends[end]}"] = tensor if scale == 1.0 else tensor.float() * scale
            found[f"{ours}.down"] = read[roles["down"]]
    return found
