"""Where networks live and in which numbers they compute."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Place:
    """A device and a dtype. by_default: nobody asked for this dtype, so a family may take another of as many bits (`Family.half`)."""

    device: torch.device
    dtype: torch.dtype
    by_default: bool = False
