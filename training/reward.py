"""Cycle consistency as a reward: what a control's kind sees in the picture that one step of denoising gives, held against the condition.

x̂_0 is only clear enough to be looked at near the picture, so samples at later times do not count. The reward must not look through the
network that fidelity is measured with, or fidelity would measure what was trained for.

Axes: B rows, C channels, H and W pixels, h and w what a network sees or gives, J joints.
Source: Li et al., ControlNet++: Improving Conditional Controls with Efficient Consistency Feedback, 2024, section 3.3.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from controls import estimators
from controls.networks import DISTANCES, Preprocessing, load
from controls.people import BOX_MARGIN, COCO_TO_OPENPOSE
from core.errors import BadRequest
from core.skeleton import detect_joints
from training.config import RewardConfig
from training.data import Loader
from training.objectives import Noised, Objective

Look = Callable[[Tensor, Tensor], Tensor]
"""Pictures (B, 3, H, W) and conditions of the same shape, both in [0, 1] → how little they agree (B,), 0 for perfectly."""

PEAK_CELLS = 2.0  # deviation of a heatmap's peak, as ViTPose and the embedded estimator were trained
_STEEP = 0.25  # of the distance between Canny's thresholds: over so much the soft edge rises


@dataclass
class Reward:
    """What is added to the loss: weight · (how little x̂_0 agrees with its condition), over the samples near enough to the picture."""

    config: RewardConfig
    look: Look
    vae: Any
    shift: float | Tensor
    scale: float | Tensor

    def __call__(self, objective: Objective, noised: Noised, out_BCHW: Tensor, maps_B3HW: Tensor, counts_B: Tensor) -> Tensor:
        """The disagreement of the rows that count, a scalar: those of `counts_B` whose time is not beyond the config's.

        Their sum over how many of B uniform times are expected to count, not over how many did: so micro-batches and processes add up to
        what the whole batch gives. maps_B3HW: the conditions as pixels in [0, 1].
        """
        near_B = counts_B & (noised.t_B.float() / len(objective.path) <= self.config.until)
        rows = near_B.nonzero().flatten()
        if not len(rows):
            return out_BCHW.new_zeros(()).float()
        with torch.autocast(out_BCHW.device.type, enabled=False):
            alpha_B, sigma_B = objective.path.alpha_sigma(noised.t_B[rows])
            x0_BCHW = objective.parameterisation.denoised(noised.x_BCHW[rows].float(), out_BCHW[rows].float(), alpha_B, sigma_B)
            pixels_B3HW = self.vae.decode(x0_BCHW / self.scale + self.shift, return_dict=False)[0] * 0.5 + 0.5
            return self.look(pixels_B3HW.clamp(0.0, 1.0), maps_B3HW[rows]).sum() / (self.config.until * len(near_B))


def make_reward(config: RewardConfig, loader: Loader, vae: Any, factors: tuple[Any, Any]) -> Reward | None:
    """The reward that the settings ask for; None without a weight. factors: `shift_and_scale` of the autoencoder.

    Raises:
        BadRequest: a kind that nothing differentiable looks for.
        BadModel: the estimator is missing, damaged or of another kind.
    """
    if not config.weight:
        return None
    kind = loader.control.name if loader.control and len(loader.controls) == 1 else ""
    if kind not in LOOKS or loader.channels != (3,):
        raise BadRequest(
            f"reward.weight {config.weight:g}: there is no reward for {'+'.join(loader.config.kinds)}, only for one of {', '.join(LOOKS)}: "
            "set reward.weight=0"
        )
    return Reward(config, LOOKS[kind](config.estimator, loader, vae.device), vae.requires_grad_(False), *factors)


def check_evaluator(config: RewardConfig, loader: Loader, base: str, measures: bool) -> None:
    """Whether fidelity is measured through another network than the reward looks through.

    Raises:
        BadRequest: it is the same.
    """
    kind = loader.control.name if loader.control else ""
    if config.weight and measures and kind in ("depth", "pose") and config.estimator == estimators.default(kind, base):
        raise BadRequest(
            f"reward.estimator is the {kind} network that fidelity is measured with, which would then measure what was trained for: "
            "name another reward.estimator, or set monitor.fidelity_every=0"
        )


def soft_edges(pixels_B3HW: Tensor, low: float, high: float) -> Tensor:
    """Canny's edges with a gradient, (B, 1, H, W): near 1 on ridges of the gradient above the thresholds' middle, near 0 elsewhere.

    The gradient's size is differentiable; where its ridges run is taken as given. Hysteresis is left out: with one threshold and steep
    edges this is `cv2.Canny` (3 × 3 Sobel, L1 size, the strongest channel). Source: Canny, 1986.
    """
    along, across = pixels_B3HW.new_tensor([-1.0, 0.0, 1.0]), pixels_B3HW.new_tensor([1.0, 2.0, 1.0])
    kernel_x = torch.outer(across, along).expand(3, 1, 3, 3)
    padded = F.pad(pixels_B3HW * 255.0, (1, 1, 1, 1), mode="replicate")
    x, y = (F.conv2d(padded, kernel, groups=3) for kernel in (kernel_x, kernel_x.transpose(2, 3)))
    size, channel = (x.abs() + y.abs()).max(dim=1, keepdim=True)
    with torch.no_grad():
        ridge = _on_ridge(size, x.gather(1, channel), y.gather(1, channel))
    steep = max(high - low, 1.0) * _STEEP
    return torch.sigmoid((size - (low + high) / 2) / steep) * ridge


def _on_ridge(size: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Where the gradient is larger than at the neighbours before and behind it, in the eight directions of a grid."""
    around = F.pad(size, (1, 1, 1, 1))
    height, width = size.shape[-2:]

    def beside(down: int, right: int) -> Tensor:
        return around[..., 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    flat, upright = y.abs() < math.tan(math.pi / 8) * x.abs(), y.abs() > math.tan(3 * math.pi / 8) * x.abs()
    level = (size > beside(0, -1)) & (size >= beside(0, 1))
    vertical = (size > beside(-1, 0)) & (size >= beside(1, 0))
    falling = (size > beside(-1, -1)) & (size > beside(1, 1))
    rising = (size > beside(-1, 1)) & (size > beside(1, -1))
    slanted = torch.where(x * y >= 0, falling, rising)
    return torch.where(flat, level, torch.where(upright, vertical, slanted)).to(size.dtype)


def canny(estimator: str, loader: Loader, device: torch.device) -> Look:
    """Soft edges against the condition's, both as wide as the pixels beside them, so that an edge may lie a pixel off."""
    assert loader.control is not None
    settings: Any = loader.control.parse_params(loader.config.params)

    def look(pixels_B3HW: Tensor, maps_B3HW: Tensor) -> Tensor:
        found, wanted = soft_edges(pixels_B3HW, settings.low, settings.high), maps_B3HW.mean(1, keepdim=True)
        wide = [F.max_pool2d(edges, 3, stride=1, padding=1) for edges in (found, wanted)]
        return (wide[0] - wide[1]).square().flatten(1).mean(1)

    return look


def depth(estimator: str, loader: Loader, device: torch.device) -> Look:
    """1 − the correlation of estimated nearness and condition, which no scale and no shift changes."""
    from transformers import AutoModelForDepthEstimation

    network, see = _network(AutoModelForDepthEstimation, "depth", estimator, device)
    far_is_large = network.config.model_type in DISTANCES or getattr(network.config, "depth_estimation_type", "") == "metric"

    def look(pixels_B3HW: Tensor, maps_B3HW: Tensor) -> Tensor:
        predicted = network(pixel_values=see(pixels_B3HW)).predicted_depth
        found_B1hw = predicted.reshape(len(predicted), 1, *predicted.shape[-2:])
        found = F.interpolate(found_B1hw, maps_B3HW.shape[-2:], mode="bilinear").flatten(1)
        wanted = maps_B3HW.mean(1).flatten(1)
        found = 1 / found.clamp(min=1e-3) if far_is_large else found
        found, wanted = (values - values.mean(1, keepdim=True) for values in (found, wanted))
        sizes = found.norm(dim=1) * wanted.norm(dim=1)
        return torch.where(wanted.norm(dim=1) > 1e-3, 1 - (found * wanted).sum(1) / sizes.clamp(min=1e-6), 0.0)

    return look


def pose(estimator: str, loader: Loader, device: torch.device) -> Look:
    """Heatmaps of the largest person against peaks at the condition's joints: the squared difference as a share of the peaks' own."""
    from transformers import VitPoseForPoseEstimation

    network, see = _network(VitPoseForPoseEstimation, "pose", estimator, device)
    whole = network.config.num_labels != len(COCO_TO_OPENPOSE)  # the embedded one: OpenPose's joints, over the whole picture
    order = range(network.config.num_labels) if whole else COCO_TO_OPENPOSE

    def look(pixels_B3HW: Tensor, maps_B3HW: Tensor) -> Tensor:
        height, width = pixels_B3HW.shape[-2:]
        rows, columns = see.target(height, width)
        losses = []
        for pixels_3HW, map_3HW in zip(pixels_B3HW, maps_B3HW, strict=True):
            joints = _largest(map_3HW)
            if joints is None:
                losses.append(pixels_3HW.sum() * 0.0)
                continue
            joints_J2 = torch.from_numpy(joints[list(order)]).float().to(device)
            corner_2, size_2 = _box(joints_J2, (width, height), columns / rows, whole)
            crop = _cropped(pixels_3HW, corner_2, size_2, (rows, columns), "border" if whole else "zeros")
            found_Jhw = network(pixel_values=see.normalised(crop)).heatmaps[0]
            cells_2 = torch.tensor([found_Jhw.shape[2], found_Jhw.shape[1]], device=device)
            wanted_Jhw = _peaks((joints_J2 - corner_2) / size_2 * cells_2, found_Jhw.shape[-2:])
            seen_J = wanted_Jhw.flatten(1).any(1)
            losses.append((found_Jhw - wanted_Jhw)[seen_J].square().sum() / wanted_Jhw[seen_J].square().sum().clamp(min=1e-6))
        return torch.stack(losses)

    return look


LOOKS: Mapping[str, Callable[[str, Loader, torch.device], Look]] = {"canny": canny, "depth": depth, "pose": pose}


class _Seeing:
    """Pictures as a network takes them, with a gradient."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.prepare = Preprocessing.read(name)
        self.mean, self.deviation = (
            torch.from_numpy(values).float().reshape(1, 3, 1, 1).to(device) for values in (self.prepare.mean, self.prepare.deviation)
        )

    def target(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns that a picture is given."""
        return self.prepare.target(height, width)

    def normalised(self, pixels_B3hw: Tensor) -> Tensor:
        """Pictures of the right size."""
        return (pixels_B3hw - self.mean) / self.deviation

    def __call__(self, pixels_B3HW: Tensor) -> Tensor:
        size = self.target(*pixels_B3HW.shape[-2:])
        return self.normalised(F.interpolate(pixels_B3HW, size, mode="bilinear", antialias=True))


def _network(part: Any, kind: str, name: str, device: torch.device) -> tuple[Any, _Seeing]:
    where = name or str(estimators.ROOT / f"estimator-{kind}")
    return load(part, where, kind).to(device), _Seeing(where, device)


def _largest(map_3HW: Tensor) -> Any | None:
    """The joints (18, 2) of the person on a pose map who takes most room; None where nobody does."""
    map_HWC = (map_3HW.permute(1, 2, 0) * 255).round().byte().cpu().numpy()
    people = [person for person in detect_joints(np.ascontiguousarray(map_HWC)) if np.isfinite(person[:, 0]).sum() > 1]
    return max(people, key=lambda person: float(np.prod(np.ptp(person[np.isfinite(person[:, 0])], axis=0))), default=None)


def _box(joints_J2: Tensor, size: tuple[int, int], aspect: float, whole: bool) -> tuple[Tensor, Tensor]:
    """Corner and size, (x, y) each, of what the network sees: a square around the picture, or a person with room around."""
    if whole:
        side = max(size)
        return joints_J2.new_tensor([(size[0] - side) / 2, (size[1] - side) / 2]), joints_J2.new_tensor([side, side])
    there = joints_J2[joints_J2.isfinite().all(1)]
    low, high = there.amin(0), there.amax(0)
    wide, tall = (high - low).tolist()
    width = max(wide, tall * aspect, 1.0) * BOX_MARGIN
    extent = joints_J2.new_tensor([width, width / aspect])
    return (low + high) / 2 - extent / 2, extent


def _cropped(pixels_3HW: Tensor, corner_2: Tensor, size_2: Tensor, to: tuple[int, int], outside: str) -> Tensor:
    """A box of a picture at a size (rows, columns), (1, 3, rows, columns)."""
    height, width = pixels_3HW.shape[-2:]
    whole = pixels_3HW.new_tensor([width, height])
    scale, shift = size_2 / whole, (2 * corner_2 + size_2) / whole - 1
    theta = torch.stack([torch.stack([scale[0], scale.new_zeros(()), shift[0]]), torch.stack([scale.new_zeros(()), scale[1], shift[1]])])
    grid = F.affine_grid(theta[None], [1, 3, *to], align_corners=False)
    return F.grid_sample(pixels_3HW[None], grid, padding_mode=outside, align_corners=False)


def _peaks(cells_J2: Tensor, size: tuple[int, int]) -> Tensor:
    """Gaussians of height 1 at places (x, y) measured in cells from the corner, (J, h, w); zeros for those that are out of sight."""
    rows, columns = (torch.arange(count, device=cells_J2.device) + 0.5 for count in size)
    distance_Jhw = (cells_J2[:, 0, None, None] - columns) ** 2 + (cells_J2[:, 1, None, None] - rows[:, None]) ** 2
    return torch.exp(-distance_Jhw / (2 * PEAK_CELLS**2)).nan_to_num(0.0)
