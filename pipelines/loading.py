"""Reading checkpoints: diffusers folders with safetensors weights, complete and undamaged, or a `BadModel` that says why not."""

import json
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.errors import BadModel
from core.making import ONE_AT_A_TIME
from pipelines.place import Place

PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl", ".pickle")
WEIGHT_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
_SHOWN_KEYS = 3
_ALIGNMENT = 64  # bytes: what torch's own allocator gives
_MAGIC = {b"PK\x03\x04": "PyTorch's zip of pickles"} | {bytes((0x80, protocol)): "a pickle" for protocol in range(2, 6)}


def read_config(path: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint.

    Raises:
        BadModel: it is missing, or not a JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise BadModel(f"model file {str(path)!r} is missing: give a complete diffusers folder") from None
    except ValueError:
        raise BadModel(f"model file {str(path)!r} is damaged (not JSON): fetch the model again") from None
    if not isinstance(values, dict):
        raise BadModel(f"model file {str(path)!r} is damaged (not a JSON object): fetch the model again")
    return values


def refuse_pickle(path: Path) -> None:
    """
    Raises:
        BadModel: the file's ending, or its first bytes, are those of a pickle, which runs code when it is read.
    """
    if path.suffix.lower() in PICKLES:
        raise BadModel(f"{str(path)!r} is a pickle file, and reading one can run any code: {_conversion()}")
    try:
        with path.open("rb") as file:
            begin = file.read(9)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return  # missing or no file at all: others say so
    disguised = next((kind for magic, kind in _MAGIC.items() if begin.startswith(magic)), None)
    if disguised and begin[8:] != b"{":  # where safetensors' header begins, after its length, which may look like anything
        raise BadModel(f"{str(path)!r} is {disguised} under another name, and reading one can run any code: {_conversion()}")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a part of a checkpoint is loaded from, each checked from its header to its last byte's place.

    Raises:
        BadModel: there is none, or one is cut short or damaged.
    """
    for name in WEIGHT_NAMES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            files = [folder / name]
        elif index.is_file():
            files = sorted({folder / str(shard) for shard in read_config(index).get("weight_map", {}).values()})
        else:
            continue
        for file in files:
            check_safetensors(file)
        return files
    pickles = sorted(file.name for file in folder.glob("*") if file.suffix.lower() in PICKLES)
    if pickles:
        raise BadModel(f"{str(folder)!r} has weights only as {pickles[0]}, a pickle, and reading one can run any code: {_conversion()}")
    raise BadModel(f"no weights in {str(folder)!r}: expected diffusion_pytorch_model.safetensors or model.safetensors there")


def check_safetensors(file: Path) -> None:
    """Whether a file is as long as its own header says, without reading its tensors.

    Raises:
        BadModel: it is missing, is not safetensors, or is cut short.
    """
    from safetensors import SafetensorError, safe_open

    refuse_pickle(file)
    try:
        with safe_open(file, "pt"):
            pass
    except OSError:
        raise BadModel(f"weights {str(file)!r} are missing or cannot be read: fetch the model again") from None
    except (SafetensorError, ValueError, struct.error) as error:
        raise BadModel(f"weights {str(file)!r} are damaged or cut short ({error}): fetch the file again") from None


def load_part(part: Any, folder: Path, place: Place) -> Any:
    """A network of a checkpoint: `part` is its class in diffusers or transformers, `folder` holds config.json and weights.

    Returned in evaluation mode, without gradients, on its place; weights in fewer bits than `place.dtype` are cast up.

    Raises:
        BadModel: a file is missing or damaged, or tensors are missing or of another shape.
    """
    from safetensors import SafetensorError

    read_config(folder / "config.json")
    files = weight_files(folder)
    options = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    with ONE_AT_A_TIME, quiet():
        try:
            network, info = part.from_pretrained(folder, dtype=place.dtype, **options)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BadModel(f"weights {str(files[0])!r} do not fit their config.json ({reason}): fetch the model again") from error
    missing = sorted(info["missing_keys"])
    if missing:
        shown = ", ".join(missing[:_SHOWN_KEYS])
        more = f" and {len(missing) - _SHOWN_KEYS} more" if len(missing) > _SHOWN_KEYS else ""
        raise BadModel(f"weights {str(files[0])!r} lack {len(missing)} tensors ({shown}{more}): fetch the model again")
    return aligned(network.eval().requires_grad_(False).to(place.device))


def aligned(network: Any) -> Any:
    """The network, with every tensor that lies askew in a mapped file copied out of it.

    Kernels round differently by where numbers lie, and a picture must not depend on the length of a file's header.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT:
            tensor.data = tensor.data.clone()
    return network


def load_tokenizer(kind: Any, folder: Path) -> Any:
    """A tokenizer of a checkpoint: `kind` is its class in transformers.

    Raises:
        BadModel: it cannot be read.
    """
    try:
        with quiet():
            return kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadModel(f"tokenizer in {str(folder)!r} cannot be read ({reason}): fetch the model again") from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no remarks of the model libraries: what matters is raised."""
    import diffusers.utils.logging
    import transformers.utils.logging

    before = diffusers.utils.logging.get_verbosity(), transformers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity(diffusers.utils.logging.CRITICAL)
    transformers.utils.logging.set_verbosity(transformers.utils.logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of how their own classes will be named one day
            yield
    finally:
        diffusers.utils.logging.set_verbosity(before[0])
        transformers.utils.logging.set_verbosity(before[1])
        transformers.utils.logging.enable_progress_bar()


def _conversion() -> str:
    return "use the model's safetensors version, or convert it (huggingface.co/spaces/safetensors/convert)"
