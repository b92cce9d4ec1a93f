"""ONNX files through OpenCV's dnn, without any further library: depth networks, and whole-body pose in DWPose's layout.

Axes: H and W pixels of the picture, K = 133 points of COCO-WholeBody, b bins of a coordinate.

Source: Yang et al., "Effective whole-body pose estimation with two-stages distillation", arXiv 2307.15880 (DWPose: body 0–16, feet 17–22,
face 23–90, hands 91–132; SimCC coordinates in half pixels); ONNX's onnx.proto (where the input's shape stands).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from controls.networks import stretched
from controls.people import crop, openpose_joints, people_boxes
from core.control import Image
from core.errors import BadModel
from core.openpose import FACE_POINTS, People

MEAN, DEVIATION = np.array((0.485, 0.456, 0.406), np.float32), np.array((0.229, 0.224, 0.225), np.float32)  # ImageNet's
DEFAULT_PX = 518  # where the file leaves the size open: Depth Anything's
POINTS, BODY, FACE, LEFT_HAND, RIGHT_HAND = 133, slice(0, 17), slice(23, 91), slice(91, 112), slice(112, 133)


class _Net:
    """An ONNX file, loaded. size: rows and columns of its input; None where they are open."""

    def __init__(self, path: Path) -> None:
        try:
            data = path.read_bytes()
            self.size = input_size(data)
            self.net: Any = cv2.dnn.readNetFromONNX(np.frombuffer(data, np.uint8))
        except OSError as error:
            raise BadModel(f"estimator {str(path)!r} cannot be read ({error.strerror}): check the path") from None
        except (ValueError, IndexError, cv2.error) as error:
            raise BadModel(
                f"estimator {str(path)!r} is no ONNX network that OpenCV reads ({' '.join(str(error).split())[-120:]})"
            ) from None
        self.path = path

    def __call__(self, image_HWC: Image) -> list[NDArray[np.float32]]:
        """All outputs for a picture of the input's size."""
        values_HWC = (image_HWC.astype(np.float32) / 255 - MEAN) / DEVIATION
        self.net.setInput(np.ascontiguousarray(values_HWC.transpose(2, 0, 1))[None])
        try:
            return [np.asarray(output) for output in self.net.forward(self.net.getUnconnectedOutLayersNames())]
        except cv2.error as error:
            raise BadModel(f"estimator {str(self.path)!r} fails in OpenCV ({' '.join(str(error).split())[-120:]})") from None


class Depth:
    """Estimated depth: RGB uint8 HWC → uint8 (H, W), near = bright; for networks whose output is large where it is near."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            BadModel: missing, or no ONNX network of one picture in.
        """
        self._net = _Net(path)
        self.rows, self.columns = self._net.size or (DEFAULT_PX, DEFAULT_PX)

    def __call__(self, image_HWC: Image) -> NDArray[np.uint8]:
        height, width = image_HWC.shape[:2]
        kind = cv2.INTER_AREA if height > self.rows else cv2.INTER_CUBIC
        seen_HWC = cv2.resize(np.ascontiguousarray(image_HWC), (self.columns, self.rows), interpolation=kind)
        prediction_hw = self._net(seen_HWC)[0].squeeze()
        if prediction_hw.ndim != 2:
            raise BadModel(
                f"estimator {str(self._net.path)!r} gives {prediction_hw.shape}: a depth network gives one number for each pixel"
            )
        return stretched(cv2.resize(prediction_hw, (width, height), interpolation=cv2.INTER_CUBIC))


class Pose:
    """The people in a picture, with hands and faces: RGB uint8 HWC → People."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            BadModel: missing, or no ONNX network of one picture in.
        """
        self._net = _Net(path)
        self.rows, self.columns = self._net.size or (384, 288)

    def __call__(self, image_HWC: Image, confidence: float = 0.3, detector: str = "") -> People:
        found = [self._points(image_HWC, box, confidence) for box in people_boxes(detector, image_HWC, confidence)]
        points_PK2 = np.stack(found) if found else np.empty((0, POINTS, 2))
        faces_P702 = np.full((len(found), FACE_POINTS, 2), np.nan)
        faces_P702[:, : FACE.stop - FACE.start] = points_PK2[:, FACE]
        bodies = np.stack([openpose_joints(points[BODY]) for points in points_PK2]) if found else np.empty((0, 18, 2))
        return People(bodies, np.stack([points_PK2[:, LEFT_HAND], points_PK2[:, RIGHT_HAND]], axis=1), faces_P702)

    def _points(self, image_HWC: Image, box: NDArray[np.float64], confidence: float) -> NDArray[np.float64]:
        """All points of one person, (K, 2), NaN below the confidence."""
        crop_HWC, back = crop(image_HWC, box, (self.columns, self.rows))
        outputs = [output.squeeze() for output in self._net(crop_HWC)]
        if len(outputs) != 2 or any(output.ndim != 2 or len(output) != POINTS for output in outputs):
            shapes = ", ".join(str(output.shape) for output in outputs)
            raise BadModel(f"estimator {str(self._net.path)!r} gives {shapes}: DWPose gives 133 rows of bins for x and for y")
        across_Kb, down_Kb = outputs if outputs[0].shape[1] * self.rows == outputs[1].shape[1] * self.columns else outputs[::-1]
        points_K2 = np.stack([_bins(across_Kb, self.columns), _bins(down_Kb, self.rows)], axis=1)
        points_K2[np.minimum(across_Kb.max(axis=1), down_Kb.max(axis=1)) < confidence] = np.nan
        return back(points_K2)


def _bins(scores_Kb: NDArray[np.float32], side: int) -> NDArray[np.float64]:
    """The place of every row's highest bin, in pixels from the crop's edge."""
    places_K: NDArray[np.float64] = (scores_Kb.argmax(axis=1) + 0.5) * (side / scores_Kb.shape[1])
    return places_K


def input_size(data: bytes) -> tuple[int, int] | None:
    """Rows and columns of the first input of an ONNX file, None where one of them is open.

    Raises:
        ValueError, IndexError: no ONNX file.
    """
    model = dict(_fields(data, wanted=7))  # graph
    value = dict(_fields(model.get(7, b""), wanted=11)).get(11, b"")  # its first input
    for field in (2, 1, 2):  # type, tensor_type, shape
        value = dict(_fields(value, wanted=field)).get(field, b"")
    sides = [dict(_fields(dimension)).get(1) for field, dimension in _fields(value) if field == 1]
    if len(sides) != 4:
        raise ValueError(f"an input of {len(sides)} axes: expected 1, 3, height, width")
    rows, columns = sides[2:]
    return (int(rows), int(columns)) if rows and columns else None


def _fields(data: Any, wanted: int | None = None) -> Iterator[tuple[int, Any]]:
    """Field numbers and values of a protocol buffer's message: integers, or bytes; with `wanted`, up to the first of that number."""
    if not isinstance(data, bytes | memoryview):
        raise ValueError("no protocol buffer")
    place, value = 0, None  # type: int, Any
    while place < len(data):
        key, place = _varint(data, place)
        field, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(data, place)
        elif kind in (1, 5):
            value, place = None, place + (8 if kind == 1 else 4)
        elif kind == 2:
            length, place = _varint(data, place)
            value, place = memoryview(data)[place : place + length], place + length
        else:
            raise ValueError("no protocol buffer")
        yield field, value
        if field == wanted:
            return


def _varint(data: Any, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value, place, shift = value | (byte & 127) << shift, place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError("no protocol buffer")
