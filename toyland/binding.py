"""Goes on training the base together with a depth ControlNet, so that every object gets the colour its own noun is said with.

Alone, the base hardly has to know that "a red sphere" paints the sphere: as soon as a noisy picture shows shapes it shows their colours
too. A depth map shows shapes where nothing of the colours is left, and then the caption alone says which is which. So scenes of several
objects, noisy times and cells inside objects count for more here. A share of the pictures is denoised without the map, so that the base
does not forget how to place objects by itself.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel
from torch import Tensor, nn
from torch.nn import functional

from toyland.arrays import packed
from toyland.base import CAPTION_DROPOUT, SCHEDULER, VARIANTS, BaseTask
from toyland.dataset import read_rows
from training.objectives import Objective, ObjectiveConfig, sample_moments
from training.randomness import Draws

SEVERAL = 3  # how often a scene of several objects is shown for every other scene
WITHOUT_MAP = 0.3
OBJECT_WEIGHT = 3.0
NOISY_TIMES = 1.0
CELL_PX = 8


@dataclass
class BindingTask:
    """Denoising of latents under a caption and, mostly, a depth map; UNet, text encoder and ControlNet learn."""

    base: BaseTask
    net: ControlNetModel
    dataset: Path
    name: str = "binding"
    objective: Objective = field(
        default_factory=lambda: Objective.from_scheduler_config(SCHEDULER, ObjectiveConfig(noisy_times=NOISY_TIMES))
    )

    def __post_init__(self) -> None:
        self.depth, self.masks = packed(self.dataset, "depth"), packed(self.dataset, "masks")
        times = [SEVERAL if len(row["things"]) > 1 else 1 for row in read_rows(self.dataset)]
        self.shown = np.repeat(np.arange(len(times)), times)

    def modules(self) -> dict[str, nn.Module]:
        return {**self.base.modules(), "controlnet": self.net}

    def __len__(self) -> int:
        return len(self.shown)

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        chosen = self.shown[indices].tolist()
        maps = {"depth": torch.from_numpy(self.depth[chosen]), "masks": torch.from_numpy(self.masks[chosen])}
        return {**self.base.batch(chosen), **maps}

    def loss(self, batch: Any, draws: Draws) -> tuple[Tensor, dict[str, float | Tensor]]:
        x0_BCHW = sample_moments(batch["moments"], draws, 1.0)
        variant = (draws.uniform(name="variant") * VARIANTS).long()
        tokens = batch["tokens"][torch.arange(len(variant), device=variant.device), variant].long()
        dropped = draws.uniform(name="caption dropout") < CAPTION_DROPOUT
        tokens = torch.where(dropped[:, None], self.base.empty.to(tokens.device), tokens)
        shown_B111 = (draws.uniform(name="map") >= WITHOUT_MAP).float()[:, None, None, None]
        noised = self.objective.noised(x0_BCHW, draws)
        text_BLD = self.base.text_encoder(tokens).last_hidden_state
        condition_BCHW = batch["depth"].permute(0, 3, 1, 2).float().div(255).contiguous()
        down, middle = self.net(
            noised.x_BCHW, noised.t_B, encoder_hidden_states=text_BLD, controlnet_cond=condition_BCHW, return_dict=False
        )
        out_BCHW = self.base.unet(
            noised.x_BCHW,
            noised.t_B,
            text_BLD,
            down_block_additional_residuals=[residual * shown_B111 for residual in down],
            mid_block_additional_residual=middle * shown_B111,
            return_dict=False,
        )[0]
        inside_B1HW = functional.avg_pool2d(((batch["masks"] > 0) & (batch["masks"] < 255)).float()[:, None], CELL_PX)
        weight_B1HW = 1 + OBJECT_WEIGHT * inside_B1HW
        square_BCHW = (out_BCHW.float() - noised.target_BCHW.float()).square()
        loss = (weight_B1HW * square_BCHW).mean() / weight_B1HW.mean()
        object_B = (square_BCHW.detach().mean(1, keepdim=True) * inside_B1HW).sum((1, 2, 3)) / inside_B1HW.sum((1, 2, 3)).clamp(min=1)
        early = (noised.t_B > 0.8 * len(self.objective.path)).float() * shown_B111[:, 0, 0, 0]
        return loss, {"object_early": (object_B * early).sum() / early.sum().clamp(min=1)}

    def export(self, folder: Path, ema: dict[str, dict[str, Tensor]]) -> None:
        self.base.export(folder, ema)
        net = ControlNetModel.from_config(self.net.config)
        net.load_state_dict(ema["controlnet"])
        net.save_pretrained(folder / "controlnet")
