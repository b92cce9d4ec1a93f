"""How much memory a request will take, from shapes alone.

weights + the larger of what one forward of the denoising network takes and what decoding takes, each estimated as

    denoising: rows × positions × width × `FORWARD` × bytes a number
    decoding:  pictures × pixels × width × `DECODE` × bytes a number

positions: latent cells of a UNet, tokens of a transformer; width: of its first level; pixels: of a tile where tiles are on. Adding up the
live tensors of forwards without numbers (torch's meta device, fused attention) through the published configurations gave 17 for SD 1.5 at
512 pixels, 14 for SDXL, 13 for SD3 and 17 for FLUX.1 at 1024, and 6 for the autoencoder; the factors leave room for what allocators and
kernels keep besides. It is an estimate to be warned by.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.request import RenderRequest
from pipelines.family import Family
from pipelines.layouts.gguf import is_gguf
from pipelines.lora_names import DENOISERS
from pipelines.memory import TILED_FROM_PX
from pipelines.residency import Memory, Offload

FORWARD, DECODE = 20, 8
# Of a rounded weight, with its share of the scales.
_BITS = {"float8": 8.0, "int8": 8.1, "llm_int8": 8.1, "nf4": 4.5}
_TILE_PX = 512 * 512  # what an autoencoder decodes at once where it works in tiles


@dataclass(frozen=True)
class Footprint:
    """Bytes: of the base model's weights by network, of the controls' networks, of a forward, of a decode."""

    base: dict[str, int]
    controls: int
    forward: int
    decode: int
    offload: Offload = "none"

    @property
    def weights(self) -> int:
        """Those that are on the device at once."""
        together = {"none": sum(self.base.values()), "model": max(self.base.values(), default=0)}
        return together.get(self.offload, 0) + self.controls

    @property
    def total(self) -> int:
        """At the worst moment, everything on the device."""
        return self.weights + max(self.forward, self.decode)

    @property
    def least(self) -> int:
        """With idle networks elsewhere and tiles: the largest network alone."""
        return max((*(self.base.values() if self.offload in ("none", "model") else ()), self.controls), default=0)


def footprint(
    family: Family,
    request: RenderRequest,
    controls: Sequence[int],
    *,
    together: int = 1,
    loaded: bool = False,
    memory: Memory | None = None,
) -> Footprint:
    """Of a request with its defaults. family: loaded or outlined; controls: bytes of each ControlNet; together: pictures drawn at once;
    loaded: the base model is there already; memory: how it will lie."""
    networks, memory = family.networks(), memory or Memory()
    base = {} if loaded else {name: _bytes(network) for name, network in networks.items()}
    for name in base.keys() & DENOISERS:
        base[name] = _rounded(base[name], networks[name], family.checkpoint.files(name), memory)
    number = torch.finfo(family.place.dtype).bits // 8
    sides = [(request.width, request.height)]
    if request.hires is not None:
        sides.append((round(request.width * request.hires.scale), round(request.height * request.hires.scale)))
    pixels = max(width * height for width, height in sides)
    classifier_free = family.guidance == "classifier_free" and request.guidance_scale != 1.0
    halves = 2 if classifier_free or request.true_cfg_scale != 1.0 else 1
    rows = together * (halves + (request.pag_scale != 0.0) + (request.skip_layers is not None))
    denoiser: Any = networks.get("unet") or networks["transformer"]
    positions = pixels // (family.cell_px * _patch(denoiser)) ** 2
    tiled = request.tile_vae == "on" or (request.tile_vae == "auto" and pixels >= TILED_FROM_PX)
    autoencoder: Any = family.vae
    precise = torch.finfo(next(autoencoder.parameters()).dtype).bits // 8
    return Footprint(
        base,
        sum(controls),
        rows * positions * _width(denoiser.config) * FORWARD * number,
        (min(pixels, _TILE_PX) if tiled else together * pixels) * _narrowest(autoencoder.config) * DECODE * precise,
        memory.offload,
    )


def file_bytes(files: Sequence[Path], dtype: torch.dtype) -> int:
    """What weight files take as numbers of this kind."""
    from pipelines.layouts.header import Header

    return sum(Header.read(file).parameters for file in files) * (torch.finfo(dtype).bits // 8)


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a device, or None where it cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def shown(number: int) -> str:
    """Bytes as people write them."""
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{math.ceil(number / 1e6)} MB"


def _rounded(plain: int, network: nn.Module, files: Sequence[Path], memory: Memory) -> int:
    """What a denoising network's weights take, given what they take in the numbers that it computes in."""
    bits = min(_BITS.get(name, 32.0) for name in (*memory.rounding, ""))
    whole = round(sum(parameter.numel() for parameter in network.parameters()) * bits / 8)
    packed = sum(file.stat().st_size for file in files) if files and all(is_gguf(file) for file in files) else plain
    return min(plain, whole, packed)


def _bytes(network: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())


def _patch(denoiser: Any) -> int:
    """Latent cells to a side of a position; FLUX packs two by two outside of its network."""
    if type(denoiser).__name__.startswith(("Flux", "QwenImage")):
        return 2
    size = denoiser.config.get("patch_size") or denoiser.config.get("all_patch_size") or 1
    return int(size if isinstance(size, int) else size[0])


def _width(config: Any) -> int:
    """Channels of a UNet's first level, or of a transformer's tokens."""
    if "block_out_channels" in config:
        return int(config["block_out_channels"][0])
    return int(config.get("dim") or int(config["num_attention_heads"]) * int(config["attention_head_dim"]))


def _narrowest(config: Any) -> int:
    """Channels of an autoencoder where its pictures are largest."""
    widths = config.get("block_out_channels") or config.get("decoder_block_out_channels") or [config.get("base_dim", 128)]
    return min(int(width) for width in widths)
