"""One network out of a single file: its class, its configuration, and its tensors under the library's names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from core.errors import BadModel
from core.making import ONE_AT_A_TIME
from pipelines.layouts.gguf import give_packed, is_packed, shape_of
from pipelines.loading import aligned, quiet
from pipelines.place import Place

_SHOWN = 3
_DAMAGE = (KeyError, IndexError, ValueError, TypeError, ZeroDivisionError, RuntimeError, AttributeError, OverflowError, AssertionError)

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Part:
    """kind: the class's name in diffusers or transformers; tensors: reads them, under that class's names.

    loose: the file may hold more for this network than the network has (OpenCLIP's last layer, which SD2 never reads).
    """

    kind: str
    config: Mapping[str, Any]
    tensors: Callable[[], dict[str, Tensor]]
    loose: bool = False


def outline(kind: Any, config: Mapping[str, Any]) -> Any:
    """A network of this class without weights: its parameters have shapes and nothing else, and take no memory."""
    from accelerate import init_empty_weights

    with ONE_AT_A_TIME, quiet(), init_empty_weights(include_buffers=False):
        if hasattr(kind, "from_config") and hasattr(kind, "config_name"):  # diffusers'
            return kind.from_config(dict(config))
        return kind(kind.config_class(**config))


def assemble(kind: Any, part: Part, place: Place, where: str) -> Any:
    """The network with its tensors, in evaluation mode, without gradients, on its place.

    Raises:
        BadModel: tensors are missing, left over, or of another shape.
    """
    network = outline(kind, part.config)
    wanted = network.state_dict()
    found = part.tensors()
    if not any(name.startswith("text_model.") for name in wanted):
        found = {name.removeprefix("text_model."): tensor for name, tensor in found.items()}  # as transformers' newer CLIPTextModel
    missing, strange = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    missing = [name for name in missing if not name.endswith(("position_ids", "encoder.embed_tokens.weight"))]
    if missing:
        raise BadModel(f"{where} lacks {len(missing)} tensors of its {part.kind} ({', '.join(missing[:_SHOWN])}): fetch the file again")
    if strange and not part.loose:
        raise BadModel(
            f"{where} has {len(strange)} tensors that no {part.kind} has ({', '.join(strange[:_SHOWN])}): "
            "give the model as a diffusers folder"
        )
    for name, tensor in wanted.items():
        if name in found and shape_of(found[name]) != tuple(tensor.shape):
            shapes = f"{list(shape_of(found[name]))}, where its {part.kind} has {list(tensor.shape)}"
            raise BadModel(f"{where}: tensor {name!r} is {shapes}; fetch the file again, or give the model as a diffusers folder")
    kept = tuple(getattr(kind, "_keep_in_fp32_modules", None) or ()) if str(place.dtype) == "torch.float16" else ()
    for name in [name for name in found if name not in wanted]:
        del found[name]
    if any(is_packed(tensor) for tensor in found.values()):
        give_packed(network, found, place.dtype, tuple(getattr(kind, "_keep_in_fp32_modules", None) or ()))
    for name in found:
        if found[name].is_floating_point():
            single = any(module in name.split(".") for module in kept)
            dtype = torch.float32 if single else place.dtype
            found[name] = found[name].to(dtype).contiguous()
    network.load_state_dict(found, strict=False, assign=True)
    if hasattr(network, "tie_weights"):
        network.tie_weights()
    return aligned(network.eval().requires_grad_(False).to(place.device))


def guarded(work: Callable[[], T], what: str, remedy: str) -> T:
    """What `work` returns, which reads a file by its names and shapes.

    Raises:
        BadModel: they are not as they are in any file of this layout.
    """
    try:
        return work()
    except BadModel:
        raise
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:160]
        raise BadModel(f"{what} is damaged or of an unknown variant ({type(error).__name__}: {reason}): {remedy}") from error
