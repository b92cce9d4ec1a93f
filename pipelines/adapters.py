"""LoRAs on a loaded model: matched to its layers, added to their outputs, and taken away without a trace.

A layer's output W·x becomes W·x + Σ weight · ΔW·x by a forward hook; no weight of the model is touched, so a model without its hooks is
bit by bit the one it was, however it is stored or offloaded. LoRA in diffusers', PEFT's and kohya's forms, LoHa and LoKr. Not DoRA, whose
ΔW depends on W.
Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021; Yeh et al., Navigating Text-To-Image Customization (LyCORIS),
2023.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import BadModel, Mismatch
from pipelines.lora_file import LoraFile, read_lora
from pipelines.lora_names import DENOISERS, Layers, belongs_to, layer_table


@dataclass(frozen=True)
class Lora:
    """One LoRA to use. weight: for the denoising network; text_weight: for the text encoders."""

    path: Path
    weight: float = 1.0
    text_weight: float = 1.0


_Version = tuple[Path, int, int]  # a file as it was: path, time of writing in ns, bytes


@dataclass(eq=False)
class _Delta:
    """ΔW of one layer, without its weight: `up` · `mid` · `down`, or dense. Tensors follow the layer's input to its device and type."""

    factors: list[Tensor]
    scale: float

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        self.factors = [factor.to(x.device, x.dtype) for factor in self.factors]
        if isinstance(layer, nn.Conv2d):
            with_kernel = 1 if len(self.factors) == 3 else 0  # a middle factor has the kernel and its stride
            for i, factor in enumerate(self.factors):
                moved = (layer.stride, layer.padding, layer.dilation) if i == with_kernel else ()
                x = F.conv2d(x, factor, None, *moved)
            return x
        for factor in self.factors:
            x = F.linear(x, factor)
        return x


class LoraStack:
    """The LoRAs that are in use on one loaded model."""

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self.networks = dict(networks)
        self._active: tuple[tuple[Lora, _Version], ...] = ()
        self._names: dict[str, Layers] | None = None
        self._read: dict[_Version, dict[tuple[str, str], _Delta]] = {}
        self._remove: list[Callable[[], None]] = []

    @property
    def active(self) -> tuple[Lora, ...]:
        """The LoRAs in use."""
        return tuple(lora for lora, _ in self._active)

    def use(self, loras: Sequence[Lora]) -> bool:
        """From now on exactly these LoRAs are in use; those already in use cost nothing. True where the text encoders changed, so that
        texts encoded before do not hold any more.

        Raises:
            BadModel: a file is missing, damaged, a pickle, or of a kind that is not supported.
            Mismatch: a LoRA is for another model. In both cases what was in use stays.
        """
        wanted = tuple((lora, _version(lora.path)) for lora in loras if lora.weight or lora.text_weight)
        if wanted == self._active:
            return False
        self._read |= {version: self._deltas(version) for _, version in wanted if version not in self._read}
        before = _text_use(self._active)
        self.clear()
        terms: dict[tuple[str, str], list[tuple[float, _Delta]]] = {}
        for lora, version in wanted:
            for (part, name), delta in self._read[version].items():
                if weight := lora.weight if part in DENOISERS else lora.text_weight:
                    terms.setdefault((part, name), []).append((weight * delta.scale, delta))
        for (part, name), deltas in terms.items():
            layer = self.networks[part].get_submodule(name)
            self._remove.append(layer.register_forward_hook(_adding(deltas)).remove)
        self._active = wanted
        self._read = {version: deltas for version, deltas in self._read.items() if version in dict(wanted).values()}
        return before != _text_use(wanted)

    def clear(self) -> None:
        """None is in use."""
        for remove in self._remove:
            remove()
        self._remove, self._active = [], ()

    def _deltas(self, version: _Version) -> dict[tuple[str, str], _Delta]:
        if self._names is None:
            self._names = layer_table(self.networks)
        return _match(read_lora(version[0]), self._names, self.networks)


def _version(path: Path) -> _Version:
    status = path.stat() if path.is_file() else None
    return (path, status.st_mtime_ns, status.st_size) if status else (path, 0, 0)


def _text_use(active: Sequence[tuple[Lora, _Version]]) -> list[tuple[_Version, float]]:
    return [(version, lora.text_weight) for lora, version in active if lora.text_weight]


def _adding(deltas: Sequence[tuple[float, _Delta]]) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        for weight, delta in deltas:
            output = output + weight * delta(layer, inputs[0])
        return output

    return hook


def _match(file: LoraFile, names: Mapping[str, Layers], networks: Mapping[str, nn.Module]) -> dict[tuple[str, str], _Delta]:
    """A file's products on the layers of a model."""
    strange = [name for name in file.layers if name not in names and belongs_to(name, networks)]
    if strange:
        raise Mismatch(
            f"LoRA {file.path.name!r} {file.made_for()}and does not fit this model: {len(strange)} of its {len(file.layers)} layers "
            f"are not in it, among them {strange[0]!r}; use a LoRA trained for this model's family"
        )
    deltas: dict[tuple[str, str], _Delta] = {}
    for name, roles in file.layers.items():
        if name in names:
            modules = [networks[part].get_submodule(layer) for part, layer in names[name]]
            try:
                parts = _products(roles, modules)
            except KeyError as error:
                raise BadModel(f"LoRA {file.path.name!r} is damaged: layer {name!r} has no {error}; download it again") from None
            except (_Unfit, IndexError, RuntimeError) as error:
                why = str(error) if isinstance(error, _Unfit) else "has factors that do not fit each other"
                raise Mismatch(
                    f"LoRA {file.path.name!r} {file.made_for()}and does not fit this model: layer {name!r} {why}; "
                    "use a LoRA trained for this model's family"
                ) from None
            rank = _rank(roles)
            scale = file.alphas.get(name, rank) / (math.sqrt(rank) if file.root_scaled else rank) if rank else 1.0
            for place, factors in zip(names[name], parts, strict=True):
                deltas[place] = _Delta(factors, scale)
    if not deltas:
        raise Mismatch(f"LoRA {file.path.name!r} is for text encoders that this model has not: use a LoRA trained for this model's family")
    return deltas


class _Unfit(Exception):
    """The product has another shape than the layer's weight."""


def _rank(roles: Mapping[str, Tensor]) -> int:
    """What α is divided by; 0 where a LoKr is of two whole matrices, which has none."""
    if "down" in roles:
        return int(roles["down"].shape[0])
    factor = next((roles[name] for name in ("hada_w1_b", "lokr_w2_b", "lokr_w1_b") if name in roles), None)
    return int(factor.shape[0]) if factor is not None else 0


def _products(roles: Mapping[str, Tensor], modules: Sequence[nn.Module]) -> list[list[Tensor]]:
    """The factors for each of the layers that one entry is for, in the layers' own shapes."""
    shapes = [_shape(module) for module in modules]
    rows = [shape[0] for shape in shapes]
    if "down" not in roles:
        dense = _dense(roles)
        if dense.numel() != sum(math.prod(shape) for shape in shapes) or dense.shape[0] != sum(rows):
            raise _Unfit(f"is {tuple(dense.shape)}, the model's {shapes[0]}")
        return [[piece.reshape(shape)] for piece, shape in zip(torch.split(dense, rows), shapes, strict=True)]
    down, up = roles["down"], roles["up"]
    if len(shapes[0]) == 2:
        down, up = down.flatten(1), up.flatten(1)
    else:
        down, up = (factor[..., None, None] if factor.ndim == 2 else factor for factor in (down, up))
    middle = [roles["mid"]] if "mid" in roles else []
    inputs = (middle[0] if middle else down).shape[2:]
    if down.shape[1] != shapes[0][1] or up.shape[0] != sum(rows) or tuple(inputs) != shapes[0][2:] or up.shape[1] != down.shape[0]:
        raise _Unfit(f"maps {down.shape[1]} to {up.shape[0]} channels, the model's {shapes[0][1]} to {sum(rows)}")
    return [[down, *middle, piece] for piece in torch.split(up, rows)]


def _shape(layer: nn.Module) -> tuple[int, ...]:
    """Of a layer's weight, from the layer's own word: quantised weights are stored in another shape."""
    if isinstance(layer, nn.Conv2d):
        return (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
    assert isinstance(layer, nn.Linear)
    return (layer.out_features, layer.in_features)


def _dense(roles: Mapping[str, Tensor]) -> Tensor:
    """ΔW of a LoHa, (w1_a·w1_b) ∘ (w2_a·w2_b), or of a LoKr, w1 ⊗ w2, in fp32."""
    roles = {name: tensor.float() for name, tensor in roles.items()}
    if "hada_w1_a" in roles:
        return (roles["hada_w1_a"] @ roles["hada_w1_b"]) * (roles["hada_w2_a"] @ roles["hada_w2_b"])
    first, second = (roles[f"lokr_{w}"] if f"lokr_{w}" in roles else _flat_product(roles, f"lokr_{w}") for w in ("w1", "w2"))
    return torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - first.ndim)), second)


def _flat_product(roles: Mapping[str, Tensor], name: str) -> Tensor:
    first, second = roles[f"{name}_a"], roles[f"{name}_b"]
    return (first @ second.flatten(1)).reshape(first.shape[0], *second.shape[1:])
