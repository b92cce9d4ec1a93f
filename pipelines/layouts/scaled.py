"""Weights in 8-bit floats with a scale beside them, as ComfyUI saves them, and packings that only the program that wrote them can undo.

A matrix `layer.weight` of 8 bits and a number `layer.scale_weight` (or `layer.weight_scale`) together are one matrix; what else lies there
is about how another program multiplies.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from core.errors import BadModel

_SCALES = ("scale_weight", "weight_scale")
_ASIDE = ("scale_input", "input_scale", "comfy_quant")
_MARKER = "scaled_fp8"
_EIGHT_BITS = ("F8_E4M3", "F8_E5M2")
# Endings of tensors that tell a packing: (whose it is, what to do)
_PACKED = {
    ".absmax": ("bitsandbytes", "use the model in 16 bits, with --quantise nf4"),
    ".qweight": ("SVDQuant or GPTQ", "use the model in 16 bits, in 8-bit floats, or as GGUF"),
}


@dataclass(frozen=True)
class Scales:
    """of: a matrix's name to its scale's; aside: names that are about another program's work."""

    of: Mapping[str, str]
    aside: frozenset[str]
    NONE: ClassVar["Scales"]

    @classmethod
    def find(cls, path: Path, dtypes: Mapping[str, str]) -> "Scales":
        """
        Raises:
            BadModel: the file is packed in a way that only the program that wrote it can undo.
        """
        for name in dtypes:
            whose = next((value for ending, value in _PACKED.items() if name.endswith(ending)), None)
            if whose is not None:
                raise BadModel(f"model {str(path)!r} was packed by {whose[0]} (it holds {name[:60]!r}): {whose[1]}")
        pairs = {f"{name.rpartition('.')[0]}.weight": name for name in dtypes if name.rpartition(".")[2] in _SCALES}
        for name, scale in pairs.items():
            if dtypes.get(name) not in _EIGHT_BITS:
                what = f"{dtypes[name]}" if name in dtypes else "missing"
                raise BadModel(
                    f"model {str(path)!r}: {scale[:60]!r} scales a matrix that is {what}, where 8-bit floats are known: "
                    "use the model in 16 bits, in 8-bit floats, or as GGUF"
                )
        aside = {name for name in dtypes if name.rpartition(".")[2] in _ASIDE or name.rpartition(".")[2] == _MARKER}
        return cls(pairs, frozenset(aside | set(pairs.values())))

    def apply(self, name: str, tensor: Tensor, opened: Any) -> Tensor:
        """The matrix itself, in 16 bits, more than 8-bit floats had; opened: the file, for the scale."""
        if name not in self.of:
            return tensor
        scale: Tensor = opened.get_tensor(self.of[name]).float()
        if scale.ndim == 1 and scale.numel() > 1:
            scale = scale[:, None]
        return (tensor.float() * scale).to(torch.bfloat16)


Scales.NONE = Scales({}, frozenset())
