"""What is done when memory runs out, rung by rung, and how latents become pictures whatever their numbers are.

halve the batch → decode in tiles → keep on the device only the network that is at work → `OutOfMemory` with a size that fits.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from core.errors import BadModel, OutOfMemory
from pipelines.family import Family
from pipelines.images import tensor_to_pictures
from pipelines.lora_names import DENOISERS
from pipelines.tiles import tiled

T = TypeVar("T")

# Beyond this the autoencoder's activations outgrow the denoising network's: 2048 × 2048.
TILED_FROM_PX = 2048 * 2048
SMALLEST_PX = 64
SHARES = (0.75, 0.5, 0.375, 0.25, 0.125)

HALVED = "memory ran out: the batch was halved to {count}"
TILED = "memory ran out: decoded in tiles"
OFFLOADED = "memory ran out: networks waited on the CPU"
IN_FLOAT32 = "the autoencoder overflowed in {dtype}: decoded in float32"
BLACK = "the picture is all black"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator gave up; on a GPU torch has an exception of its own, on the CPU only words."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def frugally(work: Callable[[range], Tensor], pictures: range, family: Family, notes: list[str]) -> Tensor:
    """work(pictures), a row each; where memory runs out, with less of it: by halves first, then as `persistently`.

    Raises:
        OutOfMemory: nothing helped.
    """
    if len(pictures) == 1:
        return persistently(lambda: work(pictures), family, notes)
    try:
        return work(pictures)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    _release(family)
    middle = pictures.start + (len(pictures) + 1) // 2
    _note(notes, HALVED.format(count=middle - pictures.start))
    return torch.cat([frugally(work, half, family, notes) for half in (range(pictures.start, middle), range(middle, pictures.stop))])


def persistently(work: Callable[[], T], family: Family, notes: list[str]) -> T:
    """What `work` returns; where memory runs out, in tiles, then with every idle network on the CPU. What was done is added to `notes`.

    Raises:
        OutOfMemory: nothing helped. The other errors of `work` pass through.
    """
    rungs: tuple[tuple[str, Callable[[], AbstractContextManager[None]]], ...] = (
        ("", nullcontext),
        (TILED, lambda: tiled(family)),
        (OFFLOADED, lambda: _tiled_and_offloaded(family)),
    )
    for note, rung in rungs:
        try:
            with rung():
                found = work()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            _note(notes, note)
            return found
        _release(family)
    raise OutOfMemory(f"no memory on {family.place.device} for one picture, even in tiles and with idle networks on the CPU")


@contextmanager
def explained(what: str, remedy: str) -> Iterator[None]:
    """An allocator's error as ours: "no memory to load …".

    Raises:
        OutOfMemory: memory ran out inside.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"no memory {what}: {remedy}") from error


def _note(notes: list[str], note: str) -> None:
    if note and note not in notes:
        notes.append(note)


def _release(family: Family) -> None:
    if family.place.device.type == "cuda":
        torch.cuda.empty_cache()


def fitting_size(family: Family, attempt: Callable[[int, int], object], width: int, height: int) -> tuple[int, int] | None:
    """The largest smaller size of about the same shape at which `attempt(width, height)` finds memory, or None."""
    cell = max(8, family.side_px)
    for share in SHARES:
        smaller = tuple(int(side * share**0.5) // cell * cell for side in (width, height))
        if min(smaller) < SMALLEST_PX:
            return None
        try:
            attempt(*smaller)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            _release(family)
        else:
            return smaller[0], smaller[1]
    return None


@contextmanager
def offloaded(family: Family) -> Iterator[None]:
    """Every network waits on the CPU until it is called, and goes back there when the next one is; nothing, where they do so anyway."""
    if family.offloads:
        yield
        return
    from accelerate import cpu_offload_with_hook
    from accelerate.hooks import remove_hook_from_module

    hook: Any = None
    # What a ControlNet has taken parts of stays, for it calls them at any time.
    networks = [network for name, network in family.networks().items() if not (family.lent and name in DENOISERS)]
    try:
        for network in networks:
            _, hook = cpu_offload_with_hook(network, family.place.device, prev_module_hook=hook)
        yield
    finally:
        for network in networks:
            remove_hook_from_module(network)
            network.to(family.place.device)


@contextmanager
def _tiled_and_offloaded(family: Family) -> Iterator[None]:
    with tiled(family), offloaded(family):
        yield


@contextmanager
def in_float32(family: Family) -> Iterator[None]:
    """The autoencoder computes in float32; afterwards it is bit by bit what it was."""
    if next(family.vae.parameters()).dtype == torch.float32:
        yield
        return
    place, dtype = family.place, next(family.vae.parameters()).dtype
    family.place = replace(place, dtype=torch.float32)
    family.vae.to(torch.float32)
    try:
        yield
    finally:
        family.vae.to(dtype)
        family.place = place


def decode(family: Family, latents_BChw: Tensor, *, tiles: bool = False, notes: list[str]) -> Tensor:
    """Pictures (B, 3, H, W), finite; a half-precision autoencoder that overflows is asked once more in float32.

    Raises:
        BadModel: the picture is not finite all the same.
    """
    with ExitStack() as stack:
        if tiles:
            stack.enter_context(tiled(family))
        pixels = family.decode(latents_BChw)
        if bool(pixels.isfinite().all()):
            return pixels
        dtype = next(family.vae.parameters()).dtype
        if dtype != torch.float32:
            stack.enter_context(in_float32(family))
            pixels = family.decode(latents_BChw)
            if bool(pixels.isfinite().all()):
                _note(notes, IN_FLOAT32.format(dtype=str(dtype).removeprefix("torch.")))
                return pixels
    raise BadModel(
        f"the picture is not finite after decoding in {str(dtype).removeprefix('torch.')}"
        + (" and in float32" if dtype != torch.float32 else "")
        + ": the autoencoder's weights are damaged; fetch the model again"
    )


def blackness(pixels_B3HW: Tensor) -> list[bool]:
    """Which of the pictures are all black."""
    return [not picture_HWC.any() for picture_HWC in tensor_to_pictures(pixels_B3HW)]
