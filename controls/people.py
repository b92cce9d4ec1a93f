"""Several people in a picture: RT-DETR finds them, ViTPose their seventeen COCO joints, and those become OpenPose's eighteen.

Axes: P people, J = 17 joints of COCO, h and w cells of a heatmap.

Source: Zhao et al., "DETRs beat YOLOs on real-time object detection", arXiv 2304.08069; Xu et al., "ViTPose", arXiv 2204.12484.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from controls.learned import peaks
from controls.networks import Preprocessing, load, run
from core.control import Image
from core.errors import BadModel
from core.skeleton import JOINTS, Joints

DETECTOR = "PekingU/rtdetr_r50vd_coco_o365"
PERSON = "person"  # the detector's word for it
MOST_PEOPLE = 32
BOX_MARGIN = 1.25  # a person's box is widened by this before their joints are looked for, as in ViTPose's training

# Where COCO's seventeen joints stand among OpenPose's eighteen; the neck is the middle of the shoulders.
COCO_TO_OPENPOSE = (0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10)
NECK, SHOULDERS = JOINTS.index("neck"), (JOINTS.index("right_shoulder"), JOINTS.index("left_shoulder"))


class Detector:
    """The people in a picture: RGB uint8 HWC → boxes (P, 4) as left, top, right, bottom in pixels, surest first."""

    def __init__(self, name: str) -> None:
        """
        Raises:
            BadModel: missing, damaged, no object detector, or one that knows no people.
        """
        from transformers import AutoModelForObjectDetection

        self.network, self.prepare = load(AutoModelForObjectDetection, name, "person detector"), Preprocessing.read(name)
        names = {str(label).lower(): int(number) for number, label in self.network.config.id2label.items()}
        if PERSON not in names:
            raise BadModel(f"detector {name!r} knows no 'person' among its {len(names)} classes: give one that was trained on COCO")
        self.person = names[PERSON]

    def __call__(self, image_HWC: Image, confidence: float) -> NDArray[np.float64]:
        output = run(self.network, pixel_values=self.prepare(image_HWC))
        scores_Q = output.logits[0, :, self.person].sigmoid().cpu().numpy()
        centres_Q4 = output.pred_boxes[0].double().cpu().numpy()
        order = [int(place) for place in np.argsort(-scores_Q, kind="stable")[:MOST_PEOPLE] if scores_Q[place] >= confidence]
        x, y, width, height = centres_Q4[order].T.reshape(4, -1) * np.array([*image_HWC.shape[1::-1]] * 2)[:, None]
        boxes_P4: NDArray[np.float64] = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1)
        return boxes_P4


@lru_cache(maxsize=2)
def _detector(name: str) -> Detector:
    return Detector(name)


class Pose:
    """The people in a picture: RGB uint8 HWC → joints (P, 18, 2) in its pixels, NaN for joints out of sight."""

    def __init__(self, name: str) -> None:
        """
        Raises:
            BadModel: missing, damaged, no ViTPose, or one for other joints than COCO's.
        """
        from transformers import VitPoseForPoseEstimation

        self.network, self.prepare = load(VitPoseForPoseEstimation, name, "pose"), Preprocessing.read(name)
        if self.network.config.num_labels != len(COCO_TO_OPENPOSE):
            raise BadModel(f"pose estimator {name!r} finds {self.network.config.num_labels} joints: give one for COCO's 17")
        experts = getattr(self.network.config.backbone_config, "num_experts", 1)
        self.inputs: dict[str, Any] = {"dataset_index": _zero()} if experts > 1 else {}

    def __call__(self, image_HWC: Image, confidence: float = 0.3, detector: str = "") -> Joints:
        people = [self._joints(image_HWC, box, confidence) for box in people_boxes(detector, image_HWC, confidence)]
        return np.stack(people) if people else np.empty((0, len(JOINTS), 2))

    def _joints(self, image_HWC: Image, box: NDArray[np.float64], confidence: float) -> Joints:
        rows, columns = self.prepare.target(*image_HWC.shape[:2])
        crop_HWC, back = crop(image_HWC, box, (columns, rows))
        output = run(self.network, pixel_values=self.prepare(crop_HWC, (rows, columns)), **self.inputs)
        places_J2, peaks_J = decode(output.heatmaps[0].float().cpu().numpy(), (columns, rows))
        joints_J2 = back(places_J2)
        joints_J2[peaks_J < confidence] = np.nan
        return openpose_joints(joints_J2)


def decode(heatmaps_Jhw: NDArray[np.float32], size: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places (J, 2) on the crop of a `size` (width, height), measured from its corner, and the heights (J,) of the peaks.

    ViTPose's heatmaps reach from the crop's first pixel centre to its last. Source: Huang et al., "The devil is in the details: delving
    into unbiased data processing for human pose estimation", arXiv 1911.07524.
    """
    cells_J2, peaks_J = peaks(heatmaps_Jhw)
    _, rows, columns = heatmaps_Jhw.shape
    return (cells_J2 - 0.5) * ((size[0] - 1) / (columns - 1), (size[1] - 1) / (rows - 1)) + 0.5, peaks_J


def people_boxes(detector: str, image_HWC: Image, confidence: float) -> NDArray[np.float64]:
    """Where the people are, (P, 4), by a detector's name: none is RT-DETR, 'whole' takes the picture as one person's."""
    if detector == "whole":
        return np.array([[0, 0, *image_HWC.shape[1::-1]]], np.float64)
    return _detector(detector or DETECTOR)(image_HWC, confidence)


def _zero() -> Any:
    import torch

    return torch.zeros(1, dtype=torch.long)


def crop(
    image_HWC: Image, box: NDArray[np.float64], size: tuple[int, int]
) -> tuple[Image, Callable[[NDArray[np.float64]], NDArray[np.float64]]]:
    """A person's part of a picture at `size` (width, height), and the way back for points (…, 2) on it.

    The box (left, top, right, bottom) is widened to the crop's proportions and by a margin; what lies outside the picture is black.
    """
    left, top, right, bottom = box
    width, height = size
    scale = width / (max(right - left, (bottom - top) * width / height, 1e-3) * BOX_MARGIN)
    shift = np.array(size) / 2 - scale * np.array([left + right, top + bottom]) / 2
    # points are measured from the corner, OpenCV's from the first pixel's centre
    transform = np.column_stack([np.eye(2) * scale, shift + 0.5 * scale - 0.5])
    crop_HWC: Image = cv2.warpAffine(np.ascontiguousarray(image_HWC), transform, size, flags=cv2.INTER_LINEAR)
    return crop_HWC, lambda points: (points - shift) / scale


def openpose_joints(joints_J2: NDArray[np.float64]) -> Joints:
    """COCO's seventeen joints as OpenPose's eighteen; the neck is seen if both shoulders are."""
    joints: Joints = np.full((len(JOINTS), 2), np.nan)
    joints[list(COCO_TO_OPENPOSE)] = joints_J2
    joints[NECK] = joints[list(SHOULDERS)].mean(axis=0)
    return joints
