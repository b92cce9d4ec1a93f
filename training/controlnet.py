"""The task that trains a ControlNet of any family: denoising under a caption and a condition, the base frozen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from core.errors import BadRequest
from pipelines.family import Family, Text
from pipelines.images import condition_to_tensor
from pipelines.loading import quiet
from training.cache import Gathered
from training.data import Loader, Pair
from training.export import write_folder
from training.objectives import Noised, Objective, sample_moments
from training.randomness import Draws
from training.reward import Reward
from training.steering import HINT_CHANNELS as HINT_CHANNELS
from training.steering import Steering, check_silent
from training.texts import Texts

Export = Callable[[Path, Any, int | None], None]


def new_controlnet(unet: UNet2DConditionModel, cell_px: int = 8, hint_channels: Sequence[int] = HINT_CHANNELS) -> ControlNetModel:
    """A ControlNet for a UNet alone, without the rest of its checkpoint; see `steering.UNetSteering.new`.

    Raises:
        BadRequest: the hint encoder would not end at the latents' size.
    """
    if 2 ** (len(hint_channels) - 1) != cell_px:
        raise BadRequest(f"hint_channels {tuple(hint_channels)} need {cell_px.bit_length()} widths for latent cells of {cell_px} pixels")
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=tuple(hint_channels)).float()
    check_silent(net)
    return net


@dataclass
class ControlNetTask:
    """Denoising under a caption and a condition; only the ControlNet learns.

    moments: of every pair's picture, (2·C, h, w) a row. conditions: uint8 (H, W, 3) where they are extracted, latents (C, h, w) where the
    network reads those; else they are read from their files. scale, shift: of latents, as `pipelines.vae.shift_and_scale` gives them.
    write: makes the finished folder. told: the settings that all this was made by. held_out: positions of the pairs that are measured;
    holds_out: nothing is learned from their pictures.
    """

    net: Any
    base: Family
    steering: Steering
    objective: Objective
    pairs: list[Pair]
    loader: Loader
    moments: Gathered
    texts: Texts
    scale: float | Tensor
    shift: float | Tensor = 0.0
    conditions: Gathered | None = None
    caption_dropout: float = 0.5
    condition_dropout: float = 0.0
    prior_share: float = 0.0
    reward: Reward | None = None
    write: Export | None = None
    told: dict[str, Any] = field(default_factory=dict)
    held_out: list[int] = field(default_factory=list)
    holds_out: bool = False
    name: str = "controlnet"

    def __post_init__(self) -> None:
        measured = set() if not self.holds_out else {self.pairs[position].picture for position in self.held_out}
        self.chosen = [position for position, pair in enumerate(self.pairs) if pair.picture not in measured]
        self._blacks: dict[tuple[int, int], Tensor] = {}

    def modules(self) -> dict[str, nn.Module]:
        return {"controlnet": self.net}

    def frozen(self) -> dict[str, nn.Module]:
        return {"denoiser": self.steering.denoiser}

    def __len__(self) -> int:
        return len(self.chosen)

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        """The rows of these samples."""
        return self.rows([self.chosen[index] for index in indices])

    def rows(self, positions: list[int]) -> dict[str, Tensor]:
        """Of the pairs at these positions: moments (B, 2·C, h, w), the text's tensors, and condition (B, …) as rendering feeds it.

        Where pairs have masks also mask (B, 1, h, w): the share of each latent cell that counts. Where there is a reward and the condition
        is latents also map (B, 3, H, W): its pixels in [0, 1].
        """
        found = {"moments": self.moments[positions], "condition": self._conditions(positions), **self.texts.batch(positions)}
        if self.loader.config.mask:
            found["mask"] = self._masks(positions)
        if self.reward is not None and self.steering.reads_latents:
            found["map"] = torch.stack([condition_to_tensor(self.loader.condition(self.pairs[position])) for position in positions])
        return found

    def buckets(self) -> list[int]:
        """See `training.task.WithBuckets`."""
        return [self.moments.part(position) for position in self.chosen]

    def settings(self) -> dict[str, Any]:
        """See `training.task.WithSettings`."""
        return self.told

    def latents(self, moments_B2CHW: Tensor, draws: Draws) -> Tensor:
        """Latents drawn from cached moments, as the denoiser expects them."""
        return sample_moments(moments_B2CHW, draws, self.scale, self.shift)

    def objective_at(self, latents_BCHW: Tensor) -> Objective:
        """The objective for pictures of this size: flow models move their times by it."""
        if self.objective.path.kind != "flow":
            return self.objective
        height, width = (side * self.base.cell_px for side in latents_BCHW.shape[-2:])
        return replace(self.objective, shift=self.base.shift(width, height).factor)

    def loss(self, batch: Any, draws: Draws) -> tuple[Tensor, dict[str, float | Tensor]]:
        x0_BCHW = self.latents(batch["moments"], draws)
        text = self.texts.dropped(batch, self.caption_dropout, draws)
        objective = self.objective_at(x0_BCHW)
        noised = objective.noised(x0_BCHW, draws)
        condition_BCHW, noised = self._prior(self._dropped(batch["condition"], draws), noised, text, draws)
        residuals = self.steering.residuals(self.net, noised.x_BCHW, noised.t_B, text, condition_BCHW)
        out_BCHW = self.base.predict(noised.x_BCHW, noised.t_B, text, residuals)
        loss = objective.loss(noised, out_BCHW, batch.get("mask"))
        if self.reward is None:
            return loss, {}
        kept_B = (condition_BCHW == batch["condition"]).flatten(1).all(1)
        missed = self.reward(objective, noised, out_BCHW, batch.get("map", batch["condition"]), kept_B)
        return loss + self.reward.config.weight * missed, {"reward": missed.detach()}

    def finished(self, weights: dict[str, dict[str, Tensor]]) -> Any:
        """The network with these weights, apart from the one that is trained."""
        with quiet():
            net = type(self.net).from_config(self.net.config)
        net.load_state_dict(weights["controlnet"])
        return net

    def export(self, folder: Path, ema: dict[str, dict[str, Tensor]], step: int | None = None) -> None:
        """A diffusers ControlNet folder, and what `write` makes beside it. step: that the weights are of, where it is not the last."""
        net = self.finished(ema)
        if self.write is None:
            write_folder(folder, net)
        else:
            self.write(folder, net, step)

    def _conditions(self, indices: list[int]) -> Tensor:
        if self.conditions is None:
            return torch.stack([self.steering.condition(self.loader.condition(self.pairs[index])) for index in indices])
        rows = self.conditions[indices]
        return rows if rows.is_floating_point() else torch.stack([self.steering.condition(row.numpy()) for row in rows])

    def _masks(self, indices: list[int]) -> Tensor:
        masks = [condition_to_tensor(self.loader.mask(self.pairs[index])).mean(dim=0, keepdim=True) for index in indices]
        return nn.functional.avg_pool2d(torch.stack(masks), self.base.cell_px)

    def _dropped(self, condition_BCHW: Tensor, draws: Draws) -> Tensor:
        """Conditions replaced by black ones, drawn anew at every step, so that the net also learns to say nothing."""
        if not self.condition_dropout:
            return condition_BCHW
        drop_B = draws.uniform(name="condition_dropout") < self.condition_dropout
        return torch.where(drop_B.reshape(-1, 1, 1, 1), self._black(condition_BCHW), condition_BCHW)

    def _prior(self, condition_BCHW: Tensor, noised: Noised, text: Text, draws: Draws) -> tuple[Tensor, Noised]:
        """Prior preservation: samples without a control, drawn anew at every step, whose target is what the base says alone.

        They hold the net to silence where nothing is asked of it, whatever the pictures of the dataset look like. Source of the idea: Ruiz
        et al., DreamBooth, 2023, section 4.2; the base itself is the prior here, at every time and for every caption.
        """
        if not self.prior_share:
            return condition_BCHW, noised
        drop_B111 = (draws.uniform(name="prior") < self.prior_share).reshape(-1, 1, 1, 1)
        with torch.no_grad():
            alone_BCHW = self.base.predict(noised.x_BCHW, noised.t_B, text, None)
        target_BCHW = torch.where(drop_B111, alone_BCHW.to(noised.target_BCHW.dtype), noised.target_BCHW)
        return torch.where(drop_B111, self._black(condition_BCHW), condition_BCHW), replace(noised, target_BCHW=target_BCHW)

    def _black(self, like_BCHW: Tensor) -> Tensor:
        cell_px = self.base.cell_px if self.steering.reads_latents else 1
        size = (like_BCHW.shape[2] * cell_px, like_BCHW.shape[3] * cell_px)
        if size not in self._blacks:  # the autoencoder says the same at every step
            self._blacks[size] = self.steering.condition(np.zeros((*size, sum(self.loader.channels)), np.uint8)).clone()
        return self._blacks[size].to(like_BCHW).expand_as(like_BCHW)
