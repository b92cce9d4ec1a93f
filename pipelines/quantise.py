"""A network's matrices in fewer bits, rounded when they are loaded: 8-bit integers, or 4-bit floats spaced as weights are.

Layers become those of the library that rounds, one after the other, each on its way to the device; so the network is never there whole in
its own numbers. Convolutions, norms, and what a network keeps in 32 bits by its own word stay.
Source: Dettmers et al., LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale, 2022; QLoRA, 2023, for nf4.
"""

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from core.errors import BadRequest
from pipelines.loading import quiet
from pipelines.place import Place

# name: (the package that does it, what it is)
QUANTISED: Mapping[str, tuple[str, str]] = {
    "int8": ("torchao", "8-bit integers with a scale for each row"),
    "llm_int8": ("bitsandbytes", "8-bit integers, columns that stand out in 16 bits"),
    "nf4": ("bitsandbytes", "4-bit floats with a scale for every 64"),
}
_BITSANDBYTES_ON = ("cuda", "cpu")


def check_quantise(how: str, device: str) -> None:
    """
    Raises:
        BadRequest: its package is not installed, or has nothing for this kind of device.
    """
    package = QUANTISED[how][0]
    need_package(package, f"quantise = {how!r}")
    if package == "bitsandbytes" and device not in _BITSANDBYTES_ON:
        raise BadRequest(f"quantise = {how!r} is not for {device}: bitsandbytes computes on {' and '.join(_BITSANDBYTES_ON)}")


def quantise(network: nn.Module, how: str, place: Place) -> None:
    """Rounds a network's matrices in place. network: on the CPU; its matrices go to the place's device, its other weights stay."""
    with _silent():
        if QUANTISED[how][0] == "torchao":
            from torchao.quantization import Int8WeightOnlyConfig, quantize_

            quantize_(network, Int8WeightOnlyConfig(), device=place.device)
            return
        for owner, name, layer in list(_matrices(network)):
            setattr(owner, name, _rounded(layer, how, place))


def need_package(package: str, setting: str) -> None:
    """
    Raises:
        BadRequest: a package is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise BadRequest(f"{setting} needs a package that is not installed: run 'pip install {package.replace('_', '-')}', or leave it out")


def _matrices(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Every linear layer that may lose bits, with the module that holds it and its name there."""
    kept = set(getattr(network, "_keep_in_fp32_modules", None) or ())
    for path, owner in network.named_modules():
        for name, layer in owner.named_children():
            if type(layer) is nn.Linear and not kept & {*path.split("."), name}:
                yield owner, name, layer


def _rounded(layer: nn.Linear, how: str, place: Place) -> Any:
    from bitsandbytes import nn as layers

    sizes = (layer.in_features, layer.out_features, layer.bias is not None)
    if how == "nf4":
        rounded = layers.Linear4bit(*sizes, compute_dtype=place.dtype, quant_type="nf4", device="meta")
        rounded.weight = layers.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    else:
        rounded = layers.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=6.0, device="meta")
        rounded.weight = layers.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    rounded.bias = layer.bias
    rounded.requires_grad_(False)
    return rounded.to(place.device)


@contextmanager
def _silent() -> Iterator[None]:
    """Without the libraries' remarks about compiled parts that this machine has no use for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
