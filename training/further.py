"""Training a finished ControlNet further: whether it is what the settings make, and can be trained here at all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from core.errors import Mismatch
from pipelines.checkpoint import Checkpoint, open_checkpoint
from pipelines.controlnet_flux_hole import reads_hole
from pipelines.engine import resolve
from pipelines.family import Family, Place
from pipelines.variants import with_differences
from training.steering import UNSHIFTED, Steering

# Entries of a config that the settings decide; the numbers of blocks only where they are given.
_DECIDED = (
    "rank", "conditioning_channels", "extra_conditioning_channels", "maps", "block_out_channels", "num_attention_heads",
)  # fmt: skip
_BLOCKS = ("num_layers", "num_single_layers")


def load_controlnet(base: Family, path: Path, control: Steering, blocks: Sequence[int] = ()) -> Any:
    """A finished ControlNet to train further, from its folder, its .safetensors file or the hub. blocks: as in the settings.

    Raises:
        BadModel, Mismatch: it is none, is damaged, was made for another base, is of a kind that is only drawn with, or is another variant
            than is to be trained.
    """
    checkpoint = open_checkpoint(resolve(str(path)))
    base.check_control(checkpoint)
    config, found, wanted = checkpoint.config(""), checkpoint.classes.get(""), control.kind.__name__
    if what := _only_drawn_with(base, checkpoint):
        raise Mismatch(f"init {str(path)!r} {what}, which cannot be trained further here: start from a plain ControlNet, or leave out init")
    if found != wanted:
        raise Mismatch(
            f"init {str(path)!r} is a {found}, these settings make a {wanted}: start from one of those, or change variant and blocks"
        )
    new = control.new()
    for entry in (*_DECIDED, *(_BLOCKS if blocks else ())):
        if entry in config and entry in new.config and _plain(new.config[entry]) != _plain(config[entry]):
            raise Mismatch(
                f"init {str(path)!r} has {entry} {_plain(config[entry])}, these settings make {_plain(new.config[entry])}: "
                "start from one of the same variant, rank, blocks and conditions"
            )
    if new.config.get("rank"):
        return with_differences(new, checkpoint)
    net = checkpoint.network(control.kind, "", Place(base.place.device, torch.float32)).requires_grad_(True)
    if net.config.get("force_zeros_for_pooled_projection"):
        control.fed = UNSHIFTED
    return net


def _only_drawn_with(base: Family, checkpoint: Checkpoint) -> str:
    """What keeps a published ControlNet from being trained; empty for nothing."""
    config = checkpoint.config("")
    if base.name == "flux":
        if config.get("num_mode"):
            return f"is a union of {config['num_mode']} modes"
        if config.get("conditioning_embedding_channels"):
            return "reads pixels instead of latents (XLabs)"
        return "reads a hole beside the picture (alimama)" if reads_hole(checkpoint) else ""
    if base.name == "sd3" and (config.get("use_pos_embed") is False or config.get("joint_attention_dim", 0) is None):
        return "reads the picture through the base's own layers (Stable Diffusion 3.5 Large)"
    return ""


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
