"""FLUX.1's ControlNets for holes, which diffusers has no class for: tokens of the map with channels for where the picture stays.

Source: alimama-creative, FLUX-Controlnet-Inpainting, 2024.
"""

from typing import Any, ClassVar

from diffusers import FluxControlNetModel
from safetensors import safe_open
from torch import nn

from pipelines.checkpoint import Checkpoint
from pipelines.tokens import PATCH
from pipelines.variants import Variant

_EMBEDDER = "controlnet_x_embedder.weight"


class FluxHoleControlNetModel(Variant, FluxControlNetModel):  # type: ignore[misc]  # diffusers is untyped
    """A FluxControlNetModel whose maps have further channels in each token."""

    parent: ClassVar[Any] = FluxControlNetModel

    def __init__(self, extra_condition_channels: int = PATCH**2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register_to_config(extra_condition_channels=extra_condition_channels)
        self.controlnet_x_embedder = nn.Linear(self.config.in_channels + extra_condition_channels, self.inner_dim)


def reads_hole(checkpoint: Checkpoint) -> bool:
    """Whether a FLUX ControlNet's maps have those channels, from its tensors: its config names diffusers' class.

    Raises:
        BadModel: its files are missing or damaged.
    """
    for file in checkpoint.files(""):
        with safe_open(file, "pt") as tensors:
            if _EMBEDDER in tensors.keys():  # noqa: SIM118 (no mapping)
                wide: int = tensors.get_slice(_EMBEDDER).get_shape()[1]
                return wide == int(checkpoint.config("").get("in_channels", 64)) + PATCH**2
    return False
