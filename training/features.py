"""How large the base's own features are at the places where a ControlNet adds to them: what a residual is to be compared with."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Sizes = dict[str, list[Tensor]]


@contextmanager
def watched(denoiser: nn.Module) -> Iterator[Sizes]:
    """The root mean squares of the features that residuals are added to, while the denoiser works: by place, in the order they are made.

    UNets have "skips": the convolution that begins, every output of the encoder, the middle. Transformers have "blocks" and "single".
    """
    found: Sizes = {}
    hooks = []

    def listen(module: nn.Module, place: str) -> None:
        hooks.append(module.register_forward_hook(lambda module, given, out: found.setdefault(place, []).extend(_sizes(place, out))))

    for place, modules in _places(denoiser).items():
        for module in modules:
            listen(module, place)
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def beside(residuals: Mapping[str, Sequence[Tensor]], sizes: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """Every residual's size over that of what it is added to, as `<place>.<number>`; one of n residuals goes to several blocks."""
    out: dict[str, Tensor] = {}
    for name, tensors in residuals.items():
        features = next(found for place, found in sizes.items() if name.startswith(place))
        for level, tensor in enumerate(tensors):
            mine = [size for block, size in enumerate(features) if block * len(tensors) // len(features) == level]
            out[f"{name}.{level}"] = _size(tensor) / (sum(mine[1:], mine[0]) / len(mine))
    return out


def _places(denoiser: Any) -> dict[str, list[nn.Module]]:
    if hasattr(denoiser, "down_blocks"):
        return {"skips": [denoiser.conv_in, *denoiser.down_blocks, denoiser.mid_block]}
    single = getattr(denoiser, "single_transformer_blocks", None)
    return {"blocks": list(denoiser.transformer_blocks)} | ({"single": list(single)} if single is not None else {})


def _sizes(place: str, out: Any) -> list[Tensor]:
    """Of what a module returns: an encoder block's second part is its skips; a transformer block's last is the picture's tokens."""
    if isinstance(out, Tensor):
        return [_size(out)]
    return [_size(skip) for skip in out[1]] if place == "skips" else [_size(out[-1])]


def _size(tensor: Tensor) -> Tensor:
    return tensor.detach().float().square().mean().sqrt()
