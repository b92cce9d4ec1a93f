"""Where networks live and in which numbers they compute."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Place:
    """A device and a dtype."""

    device: torch.device
    dtype: torch.dtype
