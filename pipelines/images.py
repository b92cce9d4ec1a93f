"""Between pictures as the rest of Limn knows them (RGB uint8 HWC) and the tensors that networks take."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.control import Image


def condition_to_tensor(map_HWC: Image) -> Tensor:
    """A control map as ControlNets take it, in training as in rendering: float32 (3, H, W) in [0, 1], on the CPU."""
    return torch.from_numpy(np.ascontiguousarray(map_HWC)).permute(2, 0, 1).contiguous().float() / 255.0


def picture_to_tensor(image_HWC: Image) -> Tensor:
    """A picture as autoencoders take it: float32 (3, H, W) in [−1, 1], on the CPU."""
    return condition_to_tensor(image_HWC) * 2.0 - 1.0


def hole_of(map_HWC: Image, mask_HW: NDArray[np.uint8] | None) -> Tensor:
    """Where an inpainting ControlNet's map is to be painted, as booleans (H, W): its mask (255 there), or without one what is black."""
    return torch.from_numpy(mask_HW >= 128 if mask_HW is not None else ~map_HWC.any(axis=-1))


def tensor_to_pictures(pixels_BCHW: Tensor) -> list[Image]:
    """An autoencoder's pictures, in [−1, 1] on any device, as RGB uint8 HWC; what is out of range is clipped."""
    levels = (pixels_BCHW.float() * 127.5 + 127.5).round().clamp(0.0, 255.0)
    pixels_BHWC = levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return list(pixels_BHWC)
