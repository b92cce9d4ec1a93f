"""GGUF files: a denoising network whose matrices are kept in blocks of few bits and spread out while they are multiplied.

Published ones hold the network alone, under its original names. Matrices stay as they are in the file; everything else in it (convolutions,
norms, whatever lies in 16 bits) becomes plain numbers when it is read.
Source: ggml-org/ggml, docs/gguf.md; city96/ComfyUI-GGUF, for shapes that were flattened on the way.
"""

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import BadModel
from pipelines.layouts.header import Header, Shape

MAGIC = b"GGUF"
_FLATTENED = "comfy.gguf.orig_shape."
_PLAIN = ("F32", "F16")
_DAMAGE = (ValueError, IndexError, KeyError, OverflowError, TypeError, MemoryError, OSError, UnicodeDecodeError)


def is_gguf(path: Path) -> bool:
    """Whether a file begins as these do."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


class GgufHeader(Header):
    """See `Header`; shapes are those that matrices have when they are spread out, dtypes are ggml's ("Q4_K")."""

    @classmethod
    def read(cls, path: Path) -> "GgufHeader":
        """
        Raises:
            BadModel: the file is damaged or cut short, is packed in a way that is not known, or the package to read it is not installed.
        """
        reader = _reader(path)
        try:
            metadata = {name: str(field.contents()) for name, field in reader.fields.items()}
            flattened = {
                name.removeprefix(_FLATTENED): tuple(int(size) for size in field.contents())
                for name, field in reader.fields.items()
                if name.startswith(_FLATTENED)
            }
            shapes = {one.name: flattened.get(one.name, tuple(int(size) for size in reversed(one.shape))) for one in reader.tensors}
            dtypes = {one.name: one.tensor_type.name for one in reader.tensors}
            wrong = next((one.name for one in reader.tensors if math.prod(shapes[one.name]) != int(one.n_elements)), None)
        except _DAMAGE as error:
            raise _damaged(path, error) from error
        if wrong is not None:
            raise BadModel(
                f"weights {str(path)!r} are damaged: tensor {wrong[:60]!r} is not of the shape that it says; fetch the file again"
            )
        strange = sorted({kind for kind in dtypes.values() if kind not in (*_PLAIN, *_known())})
        if strange:
            raise BadModel(f"weights {str(path)!r} are packed as {', '.join(strange)}: known are {', '.join((*_PLAIN, *_known()))}")
        return cls(path, shapes, dtypes, metadata)

    def tensors(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """See `Header.tensors`; matrices in blocks come as diffusers' GGUFParameter, which knows its kind through cuts and joins."""
        from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor

        entries = {one.name: one for one in _reader(self.path).tensors}
        found: dict[str, Tensor] = {}
        for new, name in names.items():
            data, kind, shape = torch.from_numpy(entries[name].data.copy()), entries[name].tensor_type, self.shapes[name]
            if kind.name in _PLAIN:
                found[new] = data.reshape(shape)
                continue
            packed = GGUFParameter(data, quant_type=kind)
            matrix = len(shape) == 2 and kind.name != "BF16" and tuple(packed.quant_shape) == shape
            found[new] = packed if matrix else dequantize_gguf_tensor(packed).reshape(shape)
        return found


def shape_of(tensor: Tensor) -> Shape:
    """A tensor's shape, of one in blocks when it is spread out."""
    return tuple(getattr(tensor, "quant_shape", tensor.shape))


def is_packed(tensor: Tensor) -> bool:
    """Whether it is in blocks."""
    return hasattr(tensor, "quant_type")


def give_packed(network: nn.Module, found: dict[str, Tensor], dtype: torch.dtype, plain: tuple[str, ...] = ()) -> None:
    """Moves the packed matrices out of `found` into the network, whose layers spread them out and compute in `dtype`.

    What has no linear layer, or is one of the modules that must not lose bits (`plain`), is spread out and stays in `found`.
    """
    from diffusers.quantizers.gguf.utils import GGUFLinear, dequantize_gguf_tensor

    for name in [name for name, tensor in found.items() if is_packed(tensor)]:
        place, _, end = name.rpartition(".")
        layer = network.get_submodule(place)
        if end != "weight" or type(layer) is not nn.Linear or any(module in name.split(".") for module in plain):
            found[name] = dequantize_gguf_tensor(found[name])
            continue
        packed: Any = GGUFLinear(layer.in_features, layer.out_features, layer.bias is not None, dtype, torch.device("meta"))
        packed.weight = found.pop(name)
        packed.bias = layer.bias
        owner, _, attribute = place.rpartition(".")
        setattr(network.get_submodule(owner), attribute, packed)


def _reader(path: Path) -> Any:
    if importlib.util.find_spec("gguf") is None:
        raise BadModel(f"{str(path)!r} is a GGUF file, and the package that reads it is not installed: run 'pip install gguf'")
    import gguf

    try:
        return gguf.GGUFReader(path)
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def _known() -> tuple[str, ...]:
    """The ways of packing that diffusers can undo."""
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES

    return tuple(kind.name for kind in SUPPORTED_GGUF_QUANT_TYPES)


def _damaged(path: Path, error: Exception) -> BadModel:
    reason = " ".join(str(error).split())[:120]
    return BadModel(f"weights {str(path)!r} are damaged or cut short ({type(error).__name__}: {reason}): fetch the file again")
