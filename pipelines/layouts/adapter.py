"""T2I-Adapters in single files, under diffusers' names or TencentARC's. Source: Mou et al., T2I-Adapter, 2023, and its published code."""

import re

from pipelines.layouts.header import Header, count
from pipelines.layouts.part import Part

_PER_BLOCK = 2  # residual blocks of each block of a published adapter
_CELLS = {192: (3, 8), 64: (1, 8), 768: (3, 16), 256: (1, 16)}  # channels of the unshuffled map: (the map's, pixels to a cell)


def is_adapter(header: Header) -> bool:
    """Whether a file holds an adapter: blocks of two convolutions in one body, and nothing else."""
    bare = [name.removeprefix("adapter.") for name in header.shapes]
    return bool(bare) and all(name.startswith(("body.", "conv_in.")) for name in bare)


def adapter(header: Header) -> Part:
    """The adapter of a single file."""
    names = {name if name.startswith("adapter.") else f"adapter.{_renamed(name)}": name for name in header.shapes}
    shapes = {name: header.shapes[theirs] for name, theirs in names.items()}
    blocks = count(shapes, "adapter.body.*.")
    resnets = count(shapes, "adapter.body.0.resnets.*.")
    if "adapter.conv_in.weight" in shapes:
        channels = [shapes[f"adapter.body.{i}.resnets.0.block2.weight"][0] for i in range(blocks)]
        read, cell = _CELLS[shapes["adapter.conv_in.weight"][1]]
        kind = "full_adapter_xl" if cell == 16 else "full_adapter"
    else:
        widths = [shapes[f"adapter.body.{i}.out_conv.weight"][0] for i in range(blocks)]
        channels = widths[:-1]  # diffusers' light adapters repeat their last width by themselves
        read, cell = _CELLS[shapes["adapter.body.0.in_conv.weight"][1]]
        kind = "light_adapter"
    config = {"in_channels": read, "channels": channels, "num_res_blocks": resnets, "downscale_factor": cell, "adapter_type": kind}
    return Part("T2IAdapter", config, lambda: header.tensors(names))


def _renamed(name: str) -> str:
    """TencentARC's name as diffusers': residual blocks are numbered through there, or stand in a body of their own."""
    if match := re.fullmatch(r"body\.(\d+)\.body\.(\d+)\.(.+)", name):
        return f"body.{match[1]}.resnets.{match[2]}.{match[3]}"
    if (match := re.fullmatch(r"body\.(\d+)\.(block[12]\..+|in_conv\..+)", name)) is not None:
        block, inner = divmod(int(match[1]), _PER_BLOCK)
        return f"body.{block}.in_conv.{match[2][8:]}" if match[2].startswith("in_conv") else f"body.{block}.resnets.{inner}.{match[2]}"
    return name
