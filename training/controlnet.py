"""A ControlNet: a copy of the base's encoder that speaks through convolutions which are zero at first, and the task that trains it.

Source: Zhang et al., Adding Conditional Control to Text-to-Image Diffusion Models, 2023, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from core.errors import BadRequest, Mismatch
from pipelines.images import condition_to_tensor
from pipelines.loading import quiet
from training.cache import Gathered, Rows
from training.data import Loader, Pair
from training.objectives import Objective, drop_captions, sample_moments
from training.randomness import Draws

HINT_CHANNELS = (16, 32, 96, 256)  # of published SD ControlNets


def new_controlnet(
    unet: UNet2DConditionModel, cell_px: int = 8, hint_channels: Sequence[int] = HINT_CHANNELS, condition_channels: int = 3
) -> ControlNetModel:
    """A ControlNet for a UNet: encoder and middle copied, everything it says zero.

    cell_px: pixels a latent cell is wide. hint_channels: of the hint encoder, which halves the size between any two of them.

    Raises:
        BadRequest: the hint encoder would not end at the latents' size.
    """
    shrinks = 2 ** (len(hint_channels) - 1)
    if shrinks != cell_px:
        raise BadRequest(
            f"hint_channels {tuple(hint_channels)} shrink a condition {shrinks} times, but a latent cell is {cell_px} "
            f"pixels wide: give {cell_px.bit_length()} widths"
        )
    net = ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=tuple(hint_channels), conditioning_channels=condition_channels
    ).float()
    check_silent(net)
    return net


def zero_convolutions(net: ControlNetModel) -> dict[str, nn.Module]:
    """The convolutions that are zero at the start: after every block, after the middle, and the hint encoder's last."""
    blocks = {f"controlnet_down_blocks.{index}": conv for index, conv in enumerate(net.controlnet_down_blocks)}
    return {
        **blocks,
        "controlnet_mid_block": net.controlnet_mid_block,
        "controlnet_cond_embedding.conv_out": net.controlnet_cond_embedding.conv_out,
    }


def check_silent(net: ControlNetModel) -> None:
    """Whether weight and bias of every zero convolution are 0, so that training starts at the base's own pictures.

    Raises:
        Mismatch: one is not.
    """
    for name, conv in zero_convolutions(net).items():
        for part, parameter in conv.named_parameters():
            if parameter.count_nonzero():
                raise Mismatch(f"zero convolution {name}.{part} is not zero: the library's initialisation has changed")


@dataclass
class ControlNetTask:
    """Denoising under a caption and a condition; only the ControlNet learns.

    moments: of every pair's picture, (2·C, h, w) a row. texts: of every pair's caption, (L, D) a row. empty_LD: of the empty prompt.
    conditions: (H, W, 3) uint8 a row, where they are extracted; else they are read from their files.
    """

    net: ControlNetModel
    unet: UNet2DConditionModel
    objective: Objective
    pairs: list[Pair]
    loader: Loader
    moments: Gathered
    texts: Rows
    empty_LD: Tensor
    scaling_factor: float
    conditions: Gathered | None = None
    caption_dropout: float = 0.5
    half: bool = False
    name: str = "controlnet"

    def modules(self) -> dict[str, nn.Module]:
        return {"controlnet": self.net}

    def frozen(self) -> dict[str, nn.Module]:
        return {"unet": self.unet}

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        """moments (B, 2·C, h, w), text (B, L, D), condition (B, 3, H, W) in [0, 1] as rendering feeds it."""
        if self.conditions is None:
            maps = [self.loader.condition(self.pairs[index]) for index in indices]
        else:
            maps = list(self.conditions[indices].numpy())
        condition = torch.stack([condition_to_tensor(map_HWC) for map_HWC in maps])
        return {"moments": self.moments[indices], "text": self.texts[indices], "condition": condition}

    def buckets(self) -> list[int]:
        """See `training.task.WithBuckets`."""
        return [self.moments.part(index) for index in range(len(self.pairs))]

    def loss(self, batch: Any, draws: Draws) -> tuple[Tensor, dict[str, float | Tensor]]:
        x0_BCHW = sample_moments(batch["moments"], draws, self.scaling_factor)
        text_BLD = drop_captions(batch["text"].float(), self.empty_LD, self.caption_dropout, draws)
        noised = self.objective.noised(x0_BCHW, draws)
        down, middle = self.net(
            noised.x_BCHW, noised.t_B, encoder_hidden_states=text_BLD, controlnet_cond=batch["condition"], return_dict=False
        )
        out_BCHW = self.unet(
            noised.x_BCHW,
            noised.t_B,
            encoder_hidden_states=text_BLD,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]
        return self.objective.loss(noised, out_BCHW), {}

    def export(self, folder: Path, ema: dict[str, dict[str, Tensor]]) -> None:
        """A diffusers ControlNet folder."""
        net = ControlNetModel.from_config(self.net.config)
        net.load_state_dict(ema["controlnet"])
        with quiet():
            (net.half() if self.half else net).save_pretrained(folder)
