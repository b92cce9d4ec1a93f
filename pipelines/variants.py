"""ControlNets that diffusers has no class for: narrower than their base, of its first blocks alone, with stacked maps, or low-rank.

Each is diffusers' own network with some layers of another shape, and says so in its config:

    residual_channels   what its zero layers write, where that is not its own width: of a UNet's every skip connection, outermost first, and
                        of its middle; of a transformer's tokens
    maps                how many maps' latents a FLUX network reads beside one another
    rank                low-rank differences to the base's encoder are learned instead of the encoder; only they are in its file

Source of the last: Hu et al., LoRA, 2021; Stability AI, control-lora, 2023.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import ControlNetModel, FluxControlNetModel, SD3ControlNetModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import BadModel
from core.making import ONE_AT_A_TIME
from pipelines.checkpoint import Checkpoint
from pipelines.loading import aligned, quiet
from pipelines.place import Place


class Variant:
    """What the variants share. parent: diffusers' class; copied: its parts that the base has too; base: the base's part and class."""

    parent: ClassVar[Any]
    config: Any
    copied: ClassVar[tuple[str, ...]]

    @staticmethod
    def _get_init_keys(input_class: Any) -> set[str]:
        """Which entries of a config the library hands to a class: here the parent's besides its own."""
        kinds = [input_class, input_class.parent] if issubclass(input_class, Variant) else [input_class]
        return {name for kind in kinds for name in inspect.signature(kind.__init__).parameters}


class LimnControlNetModel(Variant, ControlNetModel):  # type: ignore[misc]  # diffusers is untyped
    """A UNet's ControlNet. With fewer blocks than the base it says nothing to the levels further in."""

    parent: ClassVar[Any] = ControlNetModel
    controlnet_mid_block: Any
    copied: ClassVar[tuple[str, ...]] = ("conv_in", "time_embedding", "class_embedding", "add_embedding", "down_blocks", "mid_block")

    def __init__(self, residual_channels: Sequence[int] = (), rank: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register_to_config(residual_channels=tuple(residual_channels), rank=rank)
        layers = self.controlnet_down_blocks
        widths = tuple(residual_channels) or (*(layer.out_channels for layer in layers), self.controlnet_mid_block.out_channels)
        self.further = len(widths) - 1 - len(layers)  # levels further in than it reaches
        for index, layer in enumerate(layers):
            layers[index] = _zero(nn.Conv2d(layer.in_channels, widths[index], kernel_size=1))
        if self.further:
            self.mid_block, self.controlnet_mid_block = None, _Silence()
        else:
            self.controlnet_mid_block = _zero(nn.Conv2d(self.controlnet_mid_block.in_channels, widths[-1], kernel_size=1))
        _lower(self, rank)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[list[Tensor], Tensor]:
        """As the parent's with `return_dict=False`; what is not said to a level is (B, 1, 1, 1) of zeros."""
        down, middle = super().forward(*args, **{**kwargs, "return_dict": False})
        return [*down, *[middle] * self.further], middle


class LimnSD3ControlNetModel(Variant, SD3ControlNetModel):  # type: ignore[misc]
    """A ControlNet of Stable Diffusion 3. It stacks maps with the parent's `extra_conditioning_channels`."""

    parent: ClassVar[Any] = SD3ControlNetModel
    copied: ClassVar[tuple[str, ...]] = ("pos_embed", "time_text_embed", "context_embedder", "transformer_blocks")

    def __init__(self, residual_channels: int = 0, rank: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register_to_config(residual_channels=residual_channels, rank=rank)
        _widen(self.controlnet_blocks, residual_channels)
        _lower(self, rank)


class LimnFluxControlNetModel(Variant, FluxControlNetModel):  # type: ignore[misc]
    """A ControlNet of FLUX.1."""

    parent: ClassVar[Any] = FluxControlNetModel
    copied: ClassVar[tuple[str, ...]] = (
        "time_text_embed", "context_embedder", "x_embedder", "transformer_blocks", "single_transformer_blocks",
    )  # fmt: skip

    def __init__(self, residual_channels: int = 0, maps: int = 1, rank: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register_to_config(residual_channels=residual_channels, maps=maps, rank=rank)
        _widen(self.controlnet_blocks, residual_channels)
        _widen(self.controlnet_single_blocks, residual_channels)
        if maps > 1:
            self.controlnet_x_embedder = _zero(nn.Linear(maps * self.config.in_channels, self.inner_dim))
        _lower(self, rank)


KINDS: Mapping[str, Any] = {kind.__name__: kind for kind in (LimnControlNetModel, LimnSD3ControlNetModel, LimnFluxControlNetModel)}


def kind_named(name: str | None, parent: Any) -> Any | None:
    """The class that a ControlNet of this name is loaded as, where it is `parent` or a variant of it; else None."""
    known = {parent.__name__: parent} | {title: kind for title, kind in KINDS.items() if kind.parent is parent}
    return known.get(name or "")


def unet_levels(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The widths of a UNet's skip connections, outermost first, and of its middle."""
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    counts = [layers] * len(widths) if isinstance(layers, int) else layers
    found = [widths[0]]
    for block, (width, count) in enumerate(zip(widths, counts, strict=True)):
        found += [width] * (count + (block < len(widths) - 1))  # the last has no downsampler
    return (*found, widths[-1])


def copy_encoder(net: Any, base: Any, parts: Iterable[str]) -> None:
    """Gives a ControlNet the base network's weights, in those of the parts that it has."""
    for part in parts:
        mine = getattr(net, part, None)
        if mine is not None:
            theirs = getattr(base, part).state_dict()
            state = {name: theirs[name] for name in mine.state_dict() if name.rpartition(".")[2] not in ("up", "down")}
            mine.load_state_dict(state, strict=False)


def is_low_rank(net: Any) -> bool:
    """Whether a network learns low-rank differences."""
    return bool(getattr(net, "config", {}).get("rank"))


def differences(net: Any) -> dict[str, Tensor]:
    """What a low-rank network's file holds: all but the base's own weights."""
    return {name: tensor for name, tensor in net.state_dict().items() if _is_own(name, net.copied)}


def with_differences(net: Any, checkpoint: Checkpoint) -> Any:
    """A low-rank network with what a file of such holds.

    Raises:
        BadModel: tensors are missing or of another shape.
    """
    tensors = {name: tensor.float() for file in checkpoint.files("") for name, tensor in load_file(file).items()}
    wanted = {name: tensor.shape for name, tensor in differences(net).items()}
    if wrong := {name for name in wanted.keys() | tensors.keys() if name not in tensors or tensors[name].shape != wanted.get(name)}:
        raise BadModel(f"ControlNet {str(checkpoint.path)!r}: its tensors are not those of its config ({min(wrong)}): fetch it again")
    net.load_state_dict(tensors, strict=False)
    return net


def load_variant(kind: Any, checkpoint: Checkpoint, base: Checkpoint, place: Place) -> Any:
    """A ControlNet of diffusers' or a variant; low-rank differences are added to the base's weights as they are on the disk.

    Raises:
        BadModel: a file is missing or damaged, or tensors are missing or of another shape.
    """
    config = checkpoint.config("")
    if not config.get("rank") or not issubclass(kind, Variant):
        return checkpoint.network(kind, "", place)
    with ONE_AT_A_TIME, quiet():
        low_rank = with_differences(kind.from_config(config), checkpoint)
        net = kind.from_config({**config, "rank": 0})
    part = "unet" if kind is LimnControlNetModel else "transformer"
    network = base.network(_base_class(part, kind), part, Place(torch.device("cpu"), torch.float32))
    copy_encoder(low_rank, network, kind.copied)
    state = low_rank.state_dict()
    for name, module in low_rank.named_modules():
        if isinstance(module, LowRankLinear | LowRankConv2d):
            state[f"{name}.weight"] = module.merged()
    net.load_state_dict({name: state[name] for name in net.state_dict()})
    return aligned(net.eval().requires_grad_(False).to(place.device, place.dtype))


class LowRankLinear(nn.Linear):
    """A layer of the base that stays as it is, and a difference of low rank that is learned: W + up·down."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        rank = min(rank, layer.in_features, layer.out_features)
        self.down = nn.Parameter(_random(torch.empty(rank, layer.in_features)))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def merged(self) -> Tensor:
        """Layer and difference as one weight."""
        return self.weight + self.up @ self.down

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output and the difference's."""
        return F.linear(input, self.weight, self.bias) + F.linear(F.linear(input, self.down), self.up)


class LowRankConv2d(nn.Conv2d):
    """The same for a convolution: `down` has its kernel, `up` is of one cell."""

    def __init__(self, layer: nn.Conv2d, rank: int) -> None:
        like: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "groups": layer.groups}
        super().__init__(layer.in_channels, layer.out_channels, layer.kernel_size, bias=False, **like)  # type: ignore[arg-type]
        self.weight, self.bias = layer.weight, layer.bias
        rank = min(rank, layer.out_channels, layer.weight[0].numel())
        self.down = nn.Parameter(_random(torch.empty(rank, *layer.weight.shape[1:])))
        self.up = nn.Parameter(torch.zeros(layer.out_channels, rank, 1, 1))

    def merged(self) -> Tensor:
        """Layer and difference as one weight."""
        return self.weight + (self.up.flatten(1) @ self.down.flatten(1)).reshape(self.weight.shape)

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output and the difference's."""
        difference = F.conv2d(self._conv_forward(input, self.down, None), self.up)
        out: Tensor = self._conv_forward(input, self.weight, self.bias)
        return out + difference


class _Silence(nn.Module):
    """Says nothing: zeros for every row, of one channel and one cell."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[0], 1, 1, 1)


def _lower(net: Any, rank: int) -> None:
    """Freezes the copied parts, and puts a low-rank difference beside each of their layers."""
    if not rank:
        return
    for part in net.copied:
        copied = getattr(net, part, None)
        if not isinstance(copied, nn.Module):
            continue
        copied.requires_grad_(False)
        if isinstance(copied, nn.Conv2d | nn.Linear):
            setattr(net, part, _low_rank(copied, rank))
        for module in list(copied.modules()):
            for name, layer in module.named_children():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    setattr(module, name, _low_rank(layer, rank))


def _low_rank(layer: nn.Conv2d | nn.Linear, rank: int) -> nn.Module:
    return LowRankConv2d(layer, rank) if isinstance(layer, nn.Conv2d) else LowRankLinear(layer, rank)


def _is_own(name: str, copied: Sequence[str]) -> bool:
    return name.endswith((".up", ".down")) or name.partition(".")[0] not in copied


def _base_class(part: str, kind: Any) -> Any:
    import diffusers

    if part == "unet":
        return diffusers.UNet2DConditionModel
    return diffusers.SD3Transformer2DModel if kind is LimnSD3ControlNetModel else diffusers.FluxTransformer2DModel


def _widen(layers: nn.ModuleList, width: int) -> None:
    """Zero layers that write another width than their own."""
    for index, layer in enumerate(layers if width else ()):
        layers[index] = _zero(nn.Linear(layer.in_features, width))  # type: ignore[arg-type]


def _zero(layer: Any) -> Any:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _random(tensor: Tensor) -> Tensor:
    """As a layer's first weights."""
    nn.init.kaiming_uniform_(tensor, a=5**0.5)
    return tensor
