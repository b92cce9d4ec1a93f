"""Trains the embedded depth and pose estimators on pictures made a little worse than rendered ones, for they judge generated pictures.

Both are the transformers classes of the large published ones at a small size: Depth Anything's vision transformer with DPT's neck and
head, and ViTPose with its simple decoder, over the whole picture, since toyland has one person at most.

Sources: Yang et al., "Depth Anything", arXiv 2401.10891; Ranftl et al., "Vision transformers for dense prediction", arXiv 2103.13413;
Xu et al., "ViTPose", arXiv 2204.12484; the loss of gradients: Ranftl et al., arXiv 1907.01341.

Axes: B pictures, C channels, H and W pixels or heatmap cells, J = 18 joints.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    PreTrainedModel,
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
)

from core.skeleton import JOINTS
from toyland.arrays import packed
from toyland.dataset import read_rows
from toyland.degrade import degrade
from training.randomness import Draws

SIZE_PX, PATCH_PX = 128, 8
WIDTH, HEADS, LAYERS = 96, 4, 4
CELLS, SIGMA_CELLS = 64, 2.0  # of a heatmap's side, and of the peak at a joint
HEATMAP_WEIGHT, PLACE_WEIGHT, PLACE_SHARPNESS = 100.0, 0.1, 12.0
EMPTY_SHARE = 5  # one in so many scenes without a person is shown to the pose estimator
GRADIENT_WEIGHT = 0.5
SWAPPED_SIDE = {"right": "left", "left": "right"}
# which joint a joint becomes in a mirror
MIRRORED = [JOINTS.index("_".join(SWAPPED_SIDE.get(word, word) for word in name.split("_"))) for name in JOINTS]


def new_depth_estimator() -> DepthAnythingForDepthEstimation:
    """Depth Anything at a small size: 128 px in, inverse depth from 0 (sky) to about 1 (nearest) out."""
    backbone = Dinov2Config(
        image_size=SIZE_PX,
        patch_size=PATCH_PX,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        mlp_ratio=2,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        use_mask_token=False,
    )
    network = DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=backbone,
            patch_size=PATCH_PX,
            reassemble_hidden_size=WIDTH,
            reassemble_factors=[4, 2, 1, 0.5],
            neck_hidden_sizes=[16, 24, 24, 24],
            fusion_hidden_size=20,
            head_hidden_size=16,
        )
    )
    for layer in [*network.neck.modules(), *network.head.modules()]:
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.reset_parameters()  # a deviation of 0.02 is meant for wide layers; in narrow ones the signal would die
    # the first fusion has nothing to fuse and never calls this half; several processes cannot train what gets no gradient
    network.neck.fusion_stage.layers[0].residual_layer1.requires_grad_(False)
    nn.init.constant_(network.head.conv3.bias, 0.3)  # or the last ReLU may start, and stay, at zero
    return network


def new_pose_estimator() -> VitPoseForPoseEstimation:
    """ViTPose at a small size: 128 px in, 18 heatmaps of 64 × 64 out, peaks of 1 at joints."""
    backbone = VitPoseBackboneConfig(
        image_size=[SIZE_PX, SIZE_PX],
        patch_size=[PATCH_PX, PATCH_PX],
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        mlp_ratio=2,
        out_indices=[LAYERS],
    )
    labels = dict(enumerate(JOINTS))
    return VitPoseForPoseEstimation(
        VitPoseConfig(
            backbone_config=backbone,
            use_simple_decoder=True,
            scale_factor=CELLS * PATCH_PX // SIZE_PX,
            id2label=labels,
            label2id={name: index for index, name in labels.items()},
        )
    )


@dataclass
class DepthTask:
    """A picture's inverse depth, scaled to its own range as in toyland's depth maps, with its steps where the picture has them."""

    network: DepthAnythingForDepthEstimation
    dataset: Path
    name: str = "estimator-depth"

    def __post_init__(self) -> None:
        self.images, self.maps = packed(self.dataset, "images"), packed(self.dataset, "depth")

    def modules(self) -> dict[str, nn.Module]:
        return {"network": self.network}

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        return {"images": torch.from_numpy(self.images[indices]), "maps": torch.from_numpy(self.maps[indices][..., 0].copy())}

    def loss(self, batch: Any, draws: Draws) -> tuple[Tensor, dict[str, float | Tensor]]:
        flip = draws.uniform(name="flip") < 0.5
        x_BCHW = pixels(mirrored(batch["images"].permute(0, 3, 1, 2), flip), draws)
        wanted_BHW = mirrored(batch["maps"], flip).float() / 255
        error_BHW = self.network(pixel_values=x_BCHW).predicted_depth.float() - wanted_BHW
        absolute = error_BHW.abs().mean()
        steps = sum(_gradient(error_BHW, scale) for scale in (1, 2, 4))
        return absolute + GRADIENT_WEIGHT * steps, {"absolute": absolute.detach(), "rmse": error_BHW.detach().square().mean().sqrt()}

    def export(self, folder: Path, ema: dict[str, dict[str, Tensor]]) -> None:
        save(new_depth_estimator(), ema["network"], folder)


@dataclass
class PoseTask:
    """A heatmap for every joint of the one person in a picture; all of them empty where there is none.

    The squared error says how high a peak is, and so whether there is anybody. Alone it would begin with thousands of steps of predicting
    nothing at all, since a peak is so small; a cross-entropy over the places of each map says from the first step where to look.
    """

    network: VitPoseForPoseEstimation
    dataset: Path
    name: str = "estimator-pose"

    def __post_init__(self) -> None:
        self.images, self.joints_NJ2 = packed(self.dataset, "images"), joints(self.dataset)
        people = np.isfinite(self.joints_NJ2).any(axis=(1, 2))
        self.shown = np.flatnonzero(people | (np.arange(len(people)) % EMPTY_SHARE == 0))

    def modules(self) -> dict[str, nn.Module]:
        return {"network": self.network}

    def __len__(self) -> int:
        return len(self.shown)

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        chosen = self.shown[indices]
        return {"images": torch.from_numpy(self.images[chosen]), "joints": torch.from_numpy(self.joints_NJ2[chosen])}

    def loss(self, batch: Any, draws: Draws) -> tuple[Tensor, dict[str, float | Tensor]]:
        flip = draws.uniform(name="flip") < 0.5
        x_BCHW = pixels(mirrored(batch["images"].permute(0, 3, 1, 2), flip), draws)
        xy_BJ2 = batch["joints"]
        wanted_BJHW = heatmaps(torch.where(flip[:, None, None], mirrored_joints(xy_BJ2), xy_BJ2))
        found_BJHW = self.network(pixel_values=x_BCHW).heatmaps.float()
        height = functional.mse_loss(found_BJHW, wanted_BJHW)
        place = _place_loss(found_BJHW, wanted_BJHW)
        person = torch.isfinite(xy_BJ2).all(dim=-1).any(dim=1)
        peak = found_BJHW.detach().amax(dim=(2, 3)).mean(dim=1)
        loss = HEATMAP_WEIGHT * height + PLACE_WEIGHT * place
        return loss, {
            "height": height.detach(),
            "place": place.detach(),
            "peak_person": peak[person].mean().nan_to_num(),
            "peak_empty": peak[~person].mean().nan_to_num(),
        }

    def export(self, folder: Path, ema: dict[str, dict[str, Tensor]]) -> None:
        save(new_pose_estimator(), ema["network"], folder)


def pixels(images_BCHW: Tensor, draws: Draws) -> Tensor:
    """uint8 pictures made worse, as the networks take them: from -1 to 1."""
    with torch.autocast(images_BCHW.device.type, enabled=False):
        return degrade(images_BCHW.float() / 255, draws) * 2 - 1


def mirrored(images: Tensor, flip_B: Tensor) -> Tensor:
    """Pictures (B, …, W), those where `flip_B` is true with left and right exchanged."""
    return torch.where(flip_B.view(-1, *[1] * (images.ndim - 1)), images.flip(-1), images)


def mirrored_joints(xy_BJ2: Tensor) -> Tensor:
    """The joints of pictures with left and right exchanged: a left hand becomes a right one."""
    corner = torch.tensor([SIZE_PX, 0], device=xy_BJ2.device)
    sign = torch.tensor([-1, 1], device=xy_BJ2.device)
    return (corner + sign * xy_BJ2)[:, MIRRORED]


def heatmaps(xy_BJ2: Tensor) -> Tensor:
    """A Gaussian peak of height 1 at every joint given in pixels, sampled at the cells' centres: (B, J, CELLS, CELLS); zeros for NaN."""
    centres = (torch.arange(CELLS, device=xy_BJ2.device) + 0.5) * (SIZE_PX / CELLS)
    spread = 2 * (SIGMA_CELLS * SIZE_PX / CELLS) ** 2
    x, y = (torch.exp(-((centres - xy_BJ2[..., axis, None]) ** 2) / spread) for axis in (0, 1))
    return (y[..., :, None] * x[..., None, :]).nan_to_num(0.0)


def joints(dataset: Path) -> np.ndarray:
    """The joints of every scene of a built dataset: float32 (N, J, 2) in pixels, NaN where unseen or where there is nobody."""
    nowhere = [float("nan")] * 2
    rows = [[xy or nowhere for xy in row["joints"] or [None] * len(JOINTS)] for row in read_rows(dataset)]
    return np.array(rows, np.float32)


def _place_loss(found_BJHW: Tensor, wanted_BJHW: Tensor) -> Tensor:
    """Cross-entropy in nats between where the wanted heatmaps lie and where the found ones do, over the joints that are seen."""
    mass_BJ1 = wanted_BJHW.flatten(2).sum(dim=-1, keepdim=True)
    where = wanted_BJHW.flatten(2) / mass_BJ1.clamp(min=1e-6)
    cross = -(where * functional.log_softmax(PLACE_SHARPNESS * found_BJHW.flatten(2), dim=-1)).sum(dim=-1)
    seen = (mass_BJ1[..., 0] > 1).float()
    return (cross * seen).sum() / seen.sum().clamp(min=1)


def _gradient(error_BHW: Tensor, scale: int) -> Tensor:
    """The mean absolute gradient of an error seen `scale` times coarser: it keeps steps where they belong."""
    error = functional.avg_pool2d(error_BHW[:, None], scale)
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def save(network: PreTrainedModel, weights: dict[str, Tensor], folder: Path) -> None:
    """Writes a transformers folder: weights in half precision, and how pictures are to be brought to the network."""
    network.load_state_dict(weights)
    network.half().save_pretrained(folder)
    preprocessing = {
        "do_resize": True,
        "size": {"height": SIZE_PX, "width": SIZE_PX},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n")
