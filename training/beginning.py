"""What a new ControlNet is before it has learned anything: how much of the base it copies, how wide it is, and what it reads."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.errors import BadRequest
from pipelines.variants import LimnControlNetModel, copy_encoder, unet_levels
from training.config import HINT_CHANNELS as HINT_CHANNELS
from training.config import Variant as Variant

# Entries of a UNet's config with one value a block.
_PER_BLOCK = (
    "down_block_types", "block_out_channels", "attention_head_dim", "num_attention_heads", "only_cross_attention",
    "transformer_layers_per_block",
)  # fmt: skip


@dataclass(frozen=True)
class Start:
    """How a ControlNet begins.

    blocks: how many are copied (SD and SDXL: of the encoder; SD3: joint ones; FLUX: double and single ones); empty for the usual numbers.
    variant: full, lite (half as wide, nothing copied) or lora (differences of a `rank` to the base's encoder). channels: of each condition;
    kind: what the condition is, the kinds of several joined by +, empty for none of ours.
    """

    hint_channels: tuple[int, ...] = HINT_CHANNELS
    blocks: tuple[int, ...] = ()
    variant: Variant = "full"
    rank: int = 64
    channels: tuple[int, ...] = (3,)
    kind: str = ""

    @property
    def low_rank(self) -> dict[str, int]:
        """The rank, where there is one, as an entry of a config."""
        return {"rank": self.rank} if self.variant == "lora" else {}


def unet_is_plain(unet: Any, start: Start) -> bool:
    """Whether diffusers' own class will do: the whole encoder, copied."""
    return start.variant == "full" and _count(unet, start) == len(unet.config.block_out_channels)


def unet_variant(unet: Any, start: Start) -> Any:
    """A silent variant for a UNet.

    Raises:
        BadRequest: as many blocks are not there, or the widths cannot be halved.
    """
    count, whole = _count(unet, start), len(unet.config.block_out_channels)
    entries = inspect.signature(LimnControlNetModel.parent.__init__).parameters
    config = {name: unet.config[name] for name in entries if name in unet.config}
    for name in _PER_BLOCK:
        if isinstance(config.get(name), list | tuple):
            config[name] = tuple(config[name])[:count]
    if count < whole:
        config["mid_block_type"] = "UNetMidBlock2D"  # which is left out
    if start.variant == "lite":
        config["block_out_channels"] = tuple(_half(width, config) for width in config["block_out_channels"])
    config |= {
        "residual_channels": unet_levels(unet.config),
        "conditioning_channels": sum(start.channels),
        "conditioning_embedding_out_channels": start.hint_channels,
        **start.low_rank,
    }
    net = LimnControlNetModel.from_config(config).float()
    if start.variant != "lite":
        copy_encoder(net, unet, net.copied)
    return net


def half_as_wide(base: Mapping[str, Any]) -> dict[str, int]:
    """Half the heads of a transformer, and the width that its zero layers write to.

    Raises:
        BadRequest: it has an odd number of heads.
    """
    heads, size = int(base["num_attention_heads"]), int(base["attention_head_dim"])
    if heads % 2:
        raise BadRequest(f"variant lite halves the width, but the base has {heads} attention heads: use full or lora")
    return {"num_attention_heads": heads // 2, "residual_channels": heads * size}


def counts(given: Sequence[int], usual: Sequence[int], most: Sequence[int], why: str) -> tuple[int, ...]:
    """How many blocks are copied.

    Raises:
        BadRequest: other numbers than can be.
    """
    found = tuple(given) or tuple(usual)
    if len(found) != len(most) or not all(0 <= count <= limit for count, limit in zip(found, most, strict=True)) or not sum(found):
        raise BadRequest(f"blocks {list(found)}: give {len(most)} numbers up to {list(most)} ({why})")
    return found


def _count(unet: Any, start: Start) -> int:
    whole = (len(unet.config.block_out_channels),)
    return counts(start.blocks, whole, whole, "blocks of the encoder, outermost first; all of them and the middle by default")[0]


def _half(width: int, config: Mapping[str, Any]) -> int:
    heads = config.get("num_attention_heads") or config["attention_head_dim"]
    many = [config["norm_num_groups"] or 1, *(heads if isinstance(heads, list | tuple) else (heads,))]
    if width % 2 or width // 2 % many[0] or not any(width // 2 % one == 0 for one in many[1:]):
        raise BadRequest(
            f"variant lite halves the widths, but {many[0]} norm groups and {many[1:]} heads do not divide {width} / 2: use full or lora"
        )
    return width // 2
