"""How a model lies in memory, by the person's choice: what waits on the CPU, in which numbers weights are kept, how attention is computed.

The ladder in `pipelines/memory.py` answers when memory runs out; this is for who knows beforehand that it will. Nothing here changes what
is drawn but `storage` and `quantise`, which round weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from core.errors import BadRequest, unknown_name
from pipelines.checkpoint import Checkpoint, Wrapped
from pipelines.family import Family
from pipelines.loading import quiet
from pipelines.lora_names import DENOISERS
from pipelines.place import Place
from pipelines.quantise import QUANTISED, check_quantise, need_package, quantise

Offload = Literal["none", "model", "group", "sequential"]
Storage = Literal["as_computed", "float8"]
Quantise = Literal["none", "int8", "llm_int8", "nf4"]
STORAGES: Mapping[str, str] = {
    "as_computed": "weights are kept in the numbers that are computed in",
    "float8": "the denoising network's weights are kept in 8 bits and spread out layer by layer",
}
OFFLOADS: Mapping[str, str] = {
    "none": "every network stays on the device",
    "model": "networks wait on the CPU and come whole, one at a time",
    "group": "networks come layer by layer, each while it is at work, the next being fetched meanwhile on CUDA",
    "sequential": "weights come layer by layer and are dropped at once: least memory, slowest",
}
# Attention as people call it, and as diffusers' dispatcher does, with the package that it comes with.
ATTENTION: Mapping[str, tuple[str, str | None]] = {
    "sdpa": ("native", None),
    "flash": ("flash", "flash_attn"),
    "sage": ("sage", "sageattention"),
    "xformers": ("xformers", "xformers"),
}


@dataclass(frozen=True)
class Memory:
    """offload: one of `OFFLOADS`; storage: "float8" keeps the denoising network's weights in 8 bits and computes as before; quantise:
    how its matrices are rounded, one of `QUANTISED` or "none"; attention: one of `ATTENTION`, None for the library's own.
    """

    offload: Offload = "none"
    storage: Storage = "as_computed"
    quantise: Quantise = "none"
    attention: str | None = None

    def check(self, device: str = "cpu") -> None:
        """
        Raises:
            BadRequest: a name is unknown, its package is not installed, the device cannot do it, or two settings exclude each other.
        """
        if self.offload not in OFFLOADS:
            raise unknown_name("offload", self.offload, OFFLOADS)
        if self.storage not in STORAGES:
            raise unknown_name("storage", self.storage, STORAGES)
        if self.quantise not in ("none", *QUANTISED):
            raise unknown_name("quantise", self.quantise, ("none", *QUANTISED))
        if self.quantise != "none":
            check_quantise(self.quantise, device)
            able = ("none",) if self.quantise == "llm_int8" else ("none", "model")
            if self.storage != "as_computed" or self.offload not in able:
                raise BadRequest(
                    f"quantise = {self.quantise!r} goes with offload {' or '.join(able)}, and storage as_computed: leave the other out"
                )
        if self.offload == "sequential" and self.storage != "as_computed":
            raise BadRequest("offload = 'sequential' drops weights that storage = 'float8' would cast: use offload group")
        if self.storage == "float8" and device == "mps":
            raise BadRequest("storage = 'float8' is not for mps, which has no such numbers: use offload, or a smaller model")
        if self.attention is not None:
            if self.attention not in ATTENTION:
                raise unknown_name("attention", self.attention, ATTENTION)
            package = ATTENTION[self.attention][1]
            if package is not None:
                need_package(package, f"attention = {self.attention!r}")

    @property
    def waits(self) -> bool:
        """Whether weights are read to the CPU first, to stay there or to be rounded on the way."""
        return self.offload != "none" or self.quantise != "none"

    def load(self, family: type[Family], checkpoint: Checkpoint, place: Place) -> Family:
        """A family of this checkpoint that lies in memory as these settings say, and computes on `place`.

        Raises:
            BadModel, Mismatch: as `Family.load`.
            BadRequest: the attention backend cannot be used here.
        """
        loaded = family.load(Waiting(checkpoint) if self.waits else checkpoint, place)
        loaded.checkpoint = checkpoint
        self._settle(loaded, place)
        loaded.offloads, loaded.rounding = self.offload != "none", self.rounding
        return loaded

    @property
    def rounding(self) -> tuple[str, ...]:
        """What of this changes pictures, by its names: ways of rounding weights."""
        return tuple(name for name in (self.storage, self.quantise) if name not in ("as_computed", "none"))

    def _settle(self, family: Family, place: Place) -> None:
        networks = family.networks()
        for name in DENOISERS:
            if name in networks:
                self._settle_denoiser(networks[name], place)
        if self.offload == "none" and self.waits:
            for network in networks.values():
                network.to(place.device)
        if self.offload == "model":
            _take_turns(list(networks.values()), place)
        for network in networks.values() if self.offload in ("group", "sequential") else ():
            _by_layers(network, place, sequential=self.offload == "sequential")

    def _settle_denoiser(self, network: Any, place: Place) -> None:
        if self.attention is not None:
            set_attention(network, ATTENTION[self.attention][0])
        if self.quantise != "none":
            quantise(network, self.quantise, place if self.offload == "none" else on_cpu(place))
        if self.storage == "float8":
            network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=place.dtype)


class Waiting(Wrapped):
    """A checkpoint whose networks come to the CPU, wherever they will compute."""

    def network(self, kind: Any, part: str, place: Place) -> Any:
        """See `Checkpoint.network`."""
        return self.checkpoint.network(kind, part, on_cpu(place))


def on_cpu(place: Place) -> Place:
    """The same numbers, on the CPU."""
    return replace(place, device=torch.device("cpu"))


def set_attention(network: Any, backend: str) -> None:
    """One network's attention by the name of diffusers' dispatcher; the library's default for all others stays what it was.

    Raises:
        BadRequest: the backend cannot be used here.
    """
    from diffusers.models import attention_dispatch

    if not any(hasattr(getattr(module, "processor", None), "_attention_backend") for module in network.modules()):
        _set_older_attention(network, backend)
        return
    registry: Any = attention_dispatch._AttentionBackendRegistry
    before = registry.get_active_backend()[0]
    try:
        with quiet():
            network.set_attention_backend(backend)
    except (RuntimeError, ImportError, ValueError) as error:
        raise _unusable(backend, error) from error
    finally:
        registry.set_active_backend(before)  # which the call above changes for the whole process


def _set_older_attention(network: Any, backend: str) -> None:
    """Of networks from before the dispatcher (UNets, SD3, Sana): SDPA is what they have, xformers what they can be given."""
    if backend == "native":
        return
    if backend != "xformers":
        raise BadRequest(f"attention backend {backend!r} is not for {type(network).__name__}: use sdpa or xformers")
    try:
        network.enable_xformers_memory_efficient_attention()
    except (RuntimeError, ImportError, ValueError, NotImplementedError) as error:
        raise _unusable(backend, error) from error


def _unusable(backend: str, error: Exception) -> BadRequest:
    reason = " ".join(str(error).split())[:160]
    return BadRequest(f"attention backend {backend!r} cannot be used here ({reason}): use sdpa")


def _take_turns(networks: list[nn.Module], place: Place) -> None:
    from accelerate import cpu_offload_with_hook

    hook: Any = None
    for network in networks:
        _, hook = cpu_offload_with_hook(network, place.device, prev_module_hook=hook)


def _by_layers(network: nn.Module, place: Place, *, sequential: bool) -> None:
    if sequential:
        from accelerate import cpu_offload

        cpu_offload(network, execution_device=place.device)
        return
    from diffusers.hooks import apply_group_offloading

    streams = place.device.type == "cuda"
    apply_group_offloading(network, place.device, torch.device("cpu"), offload_type="leaf_level", use_stream=streams, non_blocking=streams)
