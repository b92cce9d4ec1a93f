"""Control LoRAs of FLUX.1 as controls: the base's layers are added to, its norms replaced, and a map read, for the length of one call.

With strength w a layer's W·x becomes W·x + w·(up·down·x + bias); the embedding of tokens reads x with the map's latents behind it. Norms
are the file's wherever w is not 0. All of it is hooks: the base's weights stay as they are, however they are stored or offloaded, and
without the hooks it is bit by bit the one it was.

Axes: B rows, C channels, H and W latent cells, L tokens, R rank.
Source: Black Forest Labs, FLUX.1 Tools, 2024; Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import Mismatch
from pipelines.checkpoint import Checkpoint
from pipelines.family import Place, Residuals, Text
from pipelines.layouts.control_lora import EMBEDDER, KIND, control_lora
from pipelines.layouts.header import Header
from pipelines.layouts.part import guarded
from pipelines.tokens import PATCH, pack

_GUIDANCE = "time_text_embed.guidance_embedder."  # schnell has none, and is told none
_ANOTHER = "use one made for this base"

Hook = Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]


def is_control_lora(checkpoint: Checkpoint) -> bool:
    """Whether a control's file is a Control LoRA."""
    return checkpoint.classes.get("") == KIND


def check_control_lora(checkpoint: Checkpoint, base: Checkpoint, transformer: nn.Module, channels: int) -> None:
    """Whether a Control LoRA fits a transformer, from shapes alone. channels: of a token's latents.

    Raises:
        Mismatch: it was made for another base.
    """
    config, where, model = checkpoint.config(""), f"Control LoRA {str(checkpoint.path)!r}", f"the base model {str(base.path)!r}"
    linear = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    if linear[EMBEDDER].in_features != channels:
        raise Mismatch(f"{where} adds channels for a map, {model} has further channels of its own already: use FLUX.1-dev itself")
    for name, (reads, writes) in config["layers"].items():
        if name not in linear:
            if name.startswith(_GUIDANCE):
                continue
            raise Mismatch(f"{where} has a layer {name!r} that {model} has not: {_ANOTHER}")
        has = (linear[name].in_features * (2 if name == EMBEDDER else 1), linear[name].out_features)
        if (reads, writes) != has:
            raise Mismatch(f"{where} maps {reads} to {writes} channels in {name!r}, {model} {has[0]} to {has[1]}: {_ANOTHER}")
    weights = dict(transformer.named_parameters())
    for name, width in config["norms"].items():
        if f"{name}.weight" not in weights or weights[f"{name}.weight"].shape != (width,):
            raise Mismatch(f"{where} has a norm {name!r} of width {width} that {model} has not: {_ANOTHER}")


@dataclass(frozen=True, eq=False)
class _Delta:
    """What is added to one layer: down (R, C), up (C', R), bias (C')."""

    down: Tensor
    up: Tensor
    bias: Tensor | None

    def hook(self, strength_B: Tensor, told_BLR: Tensor | None) -> Hook:
        """For a call of these rows; told: what the map gives to the R channels, with the strength in it."""

        def added(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            x = inputs[0]
            strength = strength_B.view(-1, *(1,) * (x.ndim - 1))
            low = (F.linear(x, self.down) * strength).to(x.dtype)
            output = output + F.linear(low if told_BLR is None else low + told_BLR, self.up)
            return output if self.bias is None else output + (self.bias * strength).to(x.dtype)

        return added


class ControlLora:
    """A Control LoRA on its place, for any base of the shapes that it was checked against."""

    def __init__(self, tensors: Mapping[str, Tensor], place: Place, *, channels: int) -> None:
        self.place = place
        kept: dict[int, Tensor] = {}  # layers that the original has as one share their `down`

        def placed(name: str) -> Tensor:
            tensor = tensors[name]
            if id(tensor) not in kept:
                # A copy: what lies askew in a mapped file is multiplied with another rounding.
                kept[id(tensor)] = tensor.to(place.device, place.dtype, copy=True).contiguous()
            return kept[id(tensor)]

        self.deltas: dict[str, _Delta] = {}
        self.norms = {name.removesuffix(".weight"): placed(name) for name in tensors if name.endswith(".weight")}
        for layer in [name.removesuffix(".down") for name in tensors if name.endswith(".down")]:
            bias = placed(f"{layer}.bias") if f"{layer}.bias" in tensors else None
            self.deltas[layer] = _Delta(placed(f"{layer}.down"), placed(f"{layer}.up"), bias)
        embedder = self.deltas[EMBEDDER]
        self._reads_map = embedder.down[:, channels:].contiguous()
        self.deltas[EMBEDDER] = _Delta(embedder.down[:, :channels].contiguous(), embedder.up, embedder.bias)

    @classmethod
    def load(cls, checkpoint: Checkpoint, transformer: nn.Module, place: Place, *, channels: int) -> "ControlLora":
        """What a file holds for the layers that this transformer has.

        Raises:
            BadModel: the file is missing or damaged.
        """
        (file,) = checkpoint.files("")
        tensors = guarded(lambda: control_lora(Header.read(file)).tensors(), f"Control LoRA {str(file)!r}", "fetch the file again")
        layers = {name for name, _ in transformer.named_modules()}
        return cls({name: tensor for name, tensor in tensors.items() if name.rpartition(".")[0] in layers}, place, channels=channels)

    def prepare(self, map_1CHW: Tensor) -> "TunedFlux":
        """A map's latents, as far as they go the same way at every step."""
        return TunedFlux(self, F.linear(pack(map_1CHW.to(self.place.device, self.place.dtype)), self._reads_map))

    @contextmanager
    def acting(self, network: nn.Module, strength_B: Tensor, told_BLR: Tensor) -> Iterator[None]:
        """The transformer is the tuned one for calls of these rows, each with its strength."""
        hooks = []
        try:
            for name, delta in self.deltas.items():
                told = told_BLR if name == EMBEDDER else None
                hooks.append(network.get_submodule(name).register_forward_hook(delta.hook(strength_B, told)))
            for name, scale in self.norms.items():
                hooks.append(network.get_submodule(name).register_forward_hook(_normed(scale, strength_B)))
            yield
        finally:
            for hook in hooks:
                hook.remove()


@dataclass(frozen=True, eq=False)
class TunedFlux:
    """A Control LoRA with one map; see `pipelines.family.PreparedControl` and `pipelines.tuning.Tunes`.

    Its residuals are of the place "tuned": each row's strength, and what the map gives to the low-rank channels; both scale alike.
    """

    loaded: ControlLora
    told_1LR: Tensor
    positive_only: bool = False
    levels: int = 2
    patch: int = PATCH

    def residuals(self, x: Tensor, t: Tensor, text: Text) -> Residuals:
        """The same at every step."""
        rows = x.shape[0]
        return {"tuned": [torch.ones(rows, 1, 1, device=x.device), self.told_1LR.expand(rows, -1, -1)]}

    @contextmanager
    def tuned(self, network: nn.Module, residuals: Residuals) -> Iterator[Residuals]:
        """See `Tunes.tuned`."""
        strength_B11, told_BLR = residuals["tuned"]
        with self.loaded.acting(network, strength_B11.flatten(), told_BLR):
            yield {place: group for place, group in residuals.items() if place != "tuned"}


def _normed(scale_D: Tensor, strength_B: Tensor) -> Hook:
    """A norm with another scale, in rows where the strength is not 0."""

    def normed(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        replaced = F.rms_norm(x, scale_D.shape, scale_D.to(x.dtype), layer.eps)  # type: ignore[arg-type]
        return torch.where(strength_B.view(-1, *(1,) * (x.ndim - 1)) != 0.0, replaced, output)

    return normed
