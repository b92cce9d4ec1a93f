"""OpenPose's JSON in and out, and people with hands and faces.

Shapes: P people, 18 body joints, 21 points of each of 2 hands (left, right), 70 points of a face; xy in pixels from the picture's corner,
NaN where unseen (see `core.skeleton`).

Source: OpenPose's output format (people[].pose_keypoints_2d and its siblings as x, y, confidence); the web editors' files add canvas_width
and canvas_height; ControlNet's maps draw hands as coloured lines with blue points and faces as white points.
"""

import colorsys
import json
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from core.errors import BadRequest
from core.skeleton import BODY_25, JOINTS, Image, Joints, draw_pose, fixed_point

HAND_POINTS, FACE_POINTS = 21, 70
# From the wrist, five fingers of four points each.
HAND_LINES = tuple((0 if point % 4 == 1 else point - 1, point) for point in range(1, HAND_POINTS))
HAND_COLOURS = tuple(
    tuple(round(255 * part) for part in colorsys.hsv_to_rgb(line / len(HAND_LINES), 1, 1)) for line in range(len(HAND_LINES))
)
HAND_POINT_COLOUR, FACE_COLOUR = (0, 0, 255), (255, 255, 255)
_FORMAT = "expected people[].pose_keypoints_2d as x, y, confidence"


@dataclass(frozen=True, eq=False)
class People:
    """Some people: body (P, 18, 2), hands (P, 2, 21, 2) with the left one first, face (P, 70, 2)."""

    body: Joints
    hands: Joints
    face: Joints

    @classmethod
    def of(cls, body: Joints) -> "People":
        """People of whom only the body is known."""
        count = len(body)
        return cls(body, np.full((count, 2, HAND_POINTS, 2), np.nan), np.full((count, FACE_POINTS, 2), np.nan))

    def moved(self, where: Any) -> "People":
        """The people with every point put through `where`, (…, 2) → (…, 2)."""
        return People(where(self.body), where(self.hands), where(self.face))


def draw_people(people: People, width: int, height: int) -> Image:
    """The OpenPose map of people with their hands and faces: RGB uint8 (height, width, 3)."""
    canvas = draw_pose(people.body, width, height)
    scale = min(width, height) / 512
    thickness, radius = max(1, round(2 * scale)), max(1, round(3 * scale))
    for hand in people.hands.reshape(-1, HAND_POINTS, 2):
        for (a, b), colour in zip(HAND_LINES, HAND_COLOURS, strict=True):
            if np.isfinite(hand[[a, b]]).all():
                cv2.line(canvas, fixed_point(hand[a]), fixed_point(hand[b]), colour, thickness, cv2.LINE_8, 4)
        _dots(canvas, hand, radius, HAND_POINT_COLOUR)
    for face in people.face:
        _dots(canvas, face, max(1, round(2 * scale)), FACE_COLOUR)
    return canvas


def _dots(canvas: Image, points: Joints, radius: int, colour: tuple[int, int, int]) -> None:
    for point in points[np.isfinite(points).all(axis=1)]:
        cv2.circle(canvas, fixed_point(point), radius << 4, colour, -1, cv2.LINE_8, 4)


def people_from_openpose(text: str | bytes, width: int, height: int) -> tuple[People, tuple[float, float]]:
    """People from OpenPose's JSON, and the canvas they stand on: points in its pixels, and its (width, height).

    `width` and `height` are the canvas where the file does not say. Accepts OpenPose's own files (COCO-18 or BODY_25) and the web editors'
    (a list of them, with `canvas_width` and `canvas_height`, coordinates in pixels or 0 to 1). Confidence 0 means unseen.

    Raises:
        BadRequest: not such a file, or a number of values that fits neither body nor hand nor face.
    """
    try:
        root: Any = json.loads(text)
        root = root[0] if isinstance(root, list) else root
        canvas = (float(root.get("canvas_width", width)), float(root.get("canvas_height", height)))
        if not all(1 <= side <= 1e5 for side in canvas):
            raise BadRequest(f"an OpenPose canvas of {canvas[0]:g} × {canvas[1]:g}: sides of 1 to 100000 are accepted")
        bodies, hands, faces = [], [], []
        for person in root["people"]:
            bodies.append(_body(_triples(person["pose_keypoints_2d"]), canvas))
            hands.append([_part(person.get(f"hand_{side}_keypoints_2d"), HAND_POINTS, canvas) for side in ("left", "right")])
            faces.append(_part(person.get("face_keypoints_2d"), FACE_POINTS, canvas))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError) as error:
        raise BadRequest(f"not an OpenPose file ({type(error).__name__}): {_FORMAT}") from None
    none = People.of(np.empty((0, len(JOINTS), 2)))
    return (People(np.stack(bodies), np.array(hands), np.stack(faces)) if bodies else none), canvas


def openpose_from_people(people: People, width: int, height: int) -> str:
    """The people as OpenPose's JSON with the canvas size, in pixels; unseen points are 0 with confidence 0."""
    rows = [
        {
            "pose_keypoints_2d": _flat(body),
            "face_keypoints_2d": _flat(face),
            "hand_left_keypoints_2d": _flat(hands[0]),
            "hand_right_keypoints_2d": _flat(hands[1]),
        }
        for body, hands, face in zip(people.body, people.hands, people.face, strict=True)
    ]
    return json.dumps({"people": rows, "canvas_width": width, "canvas_height": height})


def _flat(points: Joints) -> list[float]:
    seen = np.isfinite(points).all(axis=1, keepdims=True)
    return [round(float(value), 3) for value in np.concatenate([np.where(seen, points, 0), seen], axis=1).ravel()]


def _triples(values: Any) -> Joints:
    return np.array(values, np.float64).reshape(-1, 3)


def _points(rows: Joints, canvas: tuple[float, float]) -> Joints:
    """x and y in pixels of the points that are seen, NaN for the others."""
    seen = (rows[:, 2] > 0) & np.isfinite(rows).all(axis=1)
    fractions = seen.any() and rows[seen, :2].max() <= 1
    points: Joints = np.full((len(rows), 2), np.nan)
    points[seen] = rows[seen, :2] * (canvas if fractions else (1, 1))
    return points


def _body(rows: Joints, canvas: tuple[float, float]) -> Joints:
    if len(rows) not in (18, 25):
        raise BadRequest(f"a pose with {len(rows)} joints: OpenPose's COCO (18) and BODY_25 (25) are known")
    return _points(rows[list(BODY_25)] if len(rows) == 25 else rows, canvas)


def _part(values: Any, count: int, canvas: tuple[float, float]) -> Joints:
    """A hand or a face, which may be absent; a face of 68 points lacks the two pupils."""
    rows = _triples(values or [])
    if len(rows) not in (0, count, count - 2 if count == FACE_POINTS else count):
        raise BadRequest(f"a hand or face with {len(rows)} points: OpenPose's hands have {HAND_POINTS}, its faces {FACE_POINTS}")
    points: Joints = np.full((count, 2), np.nan)
    points[: len(rows)] = _points(rows, canvas)
    return points
