"""The embedded estimators at work: a picture of any size in, its depth or the people in it out.

The networks are transformers folders made by toyland.estimators: Depth Anything and ViTPose at a small size, over the whole picture at
128 × 128. A picture that is not square is given its own border pixels on both sides until it is, so that nothing is squeezed.

Axes: H and W pixels of the picture, J = 18 joints, h and w cells of a heatmap.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from controls.networks import load_network
from core.errors import BadModel
from core.skeleton import LIMB_JOINTS, Joints

Image = NDArray[np.uint8]  # RGB, HWC

LONGEST_PX = 4096  # of a picture's longer side; a network sees 128
PERSON_PEAK = 0.35  # mean over the limb joints' peaks; below it there is nobody
JOINT_PEAK = 0.25  # below it a joint is out of sight


@dataclass(frozen=True)
class _Frame:
    """Where a picture lies in the square that a network sees."""

    left: int
    top: int
    side: int


class _Network:
    """A transformers network and what its folder says of the pictures it takes."""

    def __init__(self, part: Any, folder: Path) -> None:
        self.network = load_network(part, folder, "restore models/toyland")
        values = _preprocessing(folder)
        self.side_px = int(values["size"]["height"])
        self.mean, self.deviation = (np.array(values[key], np.float32) for key in ("image_mean", "image_std"))

    def see(self, image_HWC: Image) -> tuple[Any, _Frame]:
        """A picture as the network takes it, (1, 3, side, side), and its place in the square."""
        import torch

        image_HWC = _narrowed(image_HWC)  # `frame` is in its pixels
        height, width = image_HWC.shape[:2]
        side = max(height, width)
        frame = _Frame(left=(side - width) // 2, top=(side - height) // 2, side=side)
        square_HWC = cv2.copyMakeBorder(
            np.ascontiguousarray(image_HWC),
            frame.top,
            side - height - frame.top,
            frame.left,
            side - width - frame.left,
            cv2.BORDER_REPLICATE,
        )
        if side != self.side_px:
            kind = cv2.INTER_AREA if side > self.side_px else cv2.INTER_CUBIC
            square_HWC = cv2.resize(square_HWC, (self.side_px, self.side_px), interpolation=kind)
        pixels_HWC = (square_HWC.astype(np.float32) / 255 - self.mean) / self.deviation
        return torch.from_numpy(np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1)))[None], frame


class DepthEstimator:
    """Estimated depth: RGB uint8 HWC → uint8 (H, W), near = bright, the farthest 0 and the nearest 255."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            BadModel: a file is missing or damaged.
        """
        from transformers import DepthAnythingForDepthEstimation

        self._network = _Network(DepthAnythingForDepthEstimation, folder)

    def __call__(self, image_HWC: Image) -> NDArray[np.uint8]:
        import torch

        size, image_HWC = image_HWC.shape[:2], _narrowed(image_HWC)
        pixels, frame = self._network.see(image_HWC)
        with torch.inference_mode():
            nearness_HW: NDArray[np.float32] = self._network.network(pixel_values=pixels).predicted_depth[0].numpy()
        if nearness_HW.shape[0] != frame.side:
            nearness_HW = cv2.resize(nearness_HW, (frame.side, frame.side), interpolation=cv2.INTER_LINEAR)
        height, width = image_HWC.shape[:2]
        nearness_HW = nearness_HW[frame.top : frame.top + height, frame.left : frame.left + width]
        if (height, width) != size:
            nearness_HW = cv2.resize(nearness_HW, size[::-1], interpolation=cv2.INTER_LINEAR)
        low, high = float(nearness_HW.min()), float(nearness_HW.max())
        levels_HW: NDArray[np.uint8] = np.rint((nearness_HW - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)
        return levels_HW


class PoseEstimator:
    """The person in a picture: RGB uint8 HWC → joints (P, 18, 2) in its pixels, NaN for joints out of sight; P is 0 or 1."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            BadModel: a file is missing or damaged.
        """
        from transformers import VitPoseForPoseEstimation

        self._network = _Network(VitPoseForPoseEstimation, folder)

    def __call__(self, image_HWC: Image) -> Joints:
        import torch

        pixels, frame = self._network.see(image_HWC)
        with torch.inference_mode():
            heatmaps_Jhw = self._network.network(pixel_values=pixels).heatmaps[0].numpy()
        cells_J2, peaks_J = peaks(heatmaps_Jhw)
        if peaks_J[list(LIMB_JOINTS)].mean() < PERSON_PEAK:
            return np.empty((0, len(peaks_J), 2))
        joints_J2: Joints = cells_J2 * (frame.side / heatmaps_Jhw.shape[1]) - (frame.left, frame.top)
        joints_J2 *= max(1.0, max(image_HWC.shape[:2]) / LONGEST_PX)
        joints_J2[peaks_J < JOINT_PEAK] = np.nan
        return joints_J2[None]


def _narrowed(image_HWC: Image) -> Image:
    """The picture, its longer side made `LONGEST_PX` if it is longer: the square about a long strip is large."""
    shrink = max(image_HWC.shape[:2]) / LONGEST_PX
    if shrink <= 1:
        return image_HWC
    height, width = (max(1, round(side / shrink)) for side in image_HWC.shape[:2])
    small_HWC: Image = cv2.resize(np.ascontiguousarray(image_HWC), (width, height), interpolation=cv2.INTER_AREA)
    return small_HWC


def peaks(heatmaps_Jhw: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The place (J, 2) as x and y in cells from the corner, and the height (J,), of every heatmap's highest cell.

    The place is refined within the cell by a parabola through the logarithms beside the peak, which is exact for a Gaussian.

    Source: Zhang et al., "Distribution-aware coordinate representation for human pose estimation", arXiv 1910.06278.
    """
    count, rows, columns = heatmaps_Jhw.shape
    row, column = np.divmod(heatmaps_Jhw.reshape(count, -1).argmax(axis=1), columns)
    each = np.arange(count)
    height = heatmaps_Jhw[each, row, column].astype(np.float64)
    logarithms = np.log(np.maximum(heatmaps_Jhw.astype(np.float64), 1e-3))

    def refined(place: NDArray[np.intp], limit: int, low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
        bend = low - 2 * logarithms[each, row, column] + high
        inside = (place > 0) & (place < limit - 1) & (bend < -1e-6)
        shift = np.where(inside, 0.5 * (low - high) / np.where(inside, bend, -1.0), 0.0)
        inner: NDArray[np.float64] = place + 0.5 + shift.clip(-0.5, 0.5)
        return inner

    beside = [logarithms[each, row, (column + step).clip(0, columns - 1)] for step in (-1, 1)]
    above = [logarithms[each, (row + step).clip(0, rows - 1), column] for step in (-1, 1)]
    return np.stack([refined(column, columns, *beside), refined(row, rows, *above)], axis=1), height


def _preprocessing(folder: Path) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadModel(f"estimator file {str(path)!r} cannot be read ({type(error).__name__}): restore models/toyland") from None
    return values
