"""Human poses as 18 COCO joints: their names, OpenPose's limbs and colours, the map a pose ControlNet reads, and PCK.

Shapes: P people, J = 18 joints, xy in pixels from the picture's top-left corner (so a pixel's centre is at +0.5 and
scaling a pose is a multiplication). A joint that is out of sight is NaN in both coordinates.

Source: Cao et al., "OpenPose", arXiv 1812.08008 (joints, limbs, colours); ControlNet's published openpose maps
(limbs as ellipses at 60% brightness below full-brightness joint discs, on black, not anti-aliased).
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from core.errors import BadRequest

Image = NDArray[np.uint8]  # RGB, HWC
Joints = NDArray[np.floating[Any]]  # (…, 18, 2), x and y in pixels, NaN where unseen

JOINTS = (
    "nose",
    "neck",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "right_hip",
    "right_knee",
    "right_ankle",
    "left_hip",
    "left_knee",
    "left_ankle",
    "right_eye",
    "left_eye",
    "right_ear",
    "left_ear",
)

# Seventeen limbs over eighteen joints, in OpenPose's drawing order: a tree rooted at the neck.
LIMBS = (
    (1, 2),
    (1, 5),
    (2, 3),
    (3, 4),
    (5, 6),
    (6, 7),
    (1, 8),
    (8, 9),
    (9, 10),
    (1, 11),
    (11, 12),
    (12, 13),
    (1, 0),
    (0, 14),
    (14, 16),
    (0, 15),
    (15, 17),
)

# RGB; colour i belongs to joint i and to limb i.
COLOURS = (
    (255, 0, 0),
    (255, 85, 0),
    (255, 170, 0),
    (255, 255, 0),
    (170, 255, 0),
    (85, 255, 0),
    (0, 255, 0),
    (0, 255, 85),
    (0, 255, 170),
    (0, 255, 255),
    (0, 170, 255),
    (0, 85, 255),
    (0, 0, 255),
    (85, 0, 255),
    (170, 0, 255),
    (255, 0, 255),
    (255, 0, 170),
    (255, 0, 85),
)

LIMB_JOINTS = (3, 4, 6, 7, 8, 9, 10, 11, 12, 13)  # both elbows, wrists, hips, knees and ankles: what PCK is taken over
BODY_25 = (*range(8), *range(9, 19))  # where OpenPose's BODY_25 output holds the eighteen COCO joints

_LIMB_BRIGHTNESS = 0.6
_REFERENCE_PX = 512  # the size at which OpenPose's 4 px half-width and radius are meant
_TOLERANCE = 40  # levels by which a channel may differ from a joint's colour
_SHIFT = 4  # binary digits behind the point in OpenCV's coordinates: 1/16 px
_TURN = np.linspace(0, 2 * np.pi, 64, endpoint=False)
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)


def draw_pose(people_xy: Joints, width: int, height: int) -> Image:
    """The OpenPose map of some people: `people_xy` (P, 18, 2) → RGB uint8 (height, width, 3).

    Sticks are 4 px and discs 4 px in half-width at 512 px and scale with the shorter side, but never fall under 1.5 px and 2 px,
    so that a 128 px map stays legible. A limb with an unseen end is left out, as is a disc without its joint.

    Raises:
        BadRequest: the array is not (P, 18, 2).
    """
    people_xy = _checked(people_xy)
    scale = min(width, height) / _REFERENCE_PX
    half_width, radius = max(1.5, 4 * scale), max(2.0, 4 * scale)
    canvas = np.zeros((height, width, 3), np.uint8)
    for (a, b), colour in zip(LIMBS, COLOURS, strict=False):
        for joints_xy in people_xy:
            if np.isfinite(joints_xy[[a, b]]).all():
                _stick(canvas, joints_xy[[a, b]], half_width, colour)
    for joint, colour in enumerate(COLOURS):
        for x, y in people_xy[:, joint]:
            if np.isfinite(x) and np.isfinite(y):
                cv2.circle(canvas, fixed_point((x, y)), round(radius * 2**_SHIFT), colour, -1, cv2.LINE_8, _SHIFT)
    return canvas


def _checked(people_xy: Joints) -> Joints:
    people_xy = np.asarray(people_xy, np.float64)
    if people_xy.ndim != 3 or people_xy.shape[1:] != (len(JOINTS), 2):
        raise BadRequest(f"pose of shape {people_xy.shape}: give people × {len(JOINTS)} joints × 2 coordinates")
    return people_xy


def fixed_point(xy: Sequence[float] | Joints) -> tuple[int, int]:
    """A place in OpenCV's fixed-point coordinates, whose origin is the centre of the first pixel; far-off points are brought near."""
    x, y = (round((min(max(v, -1e5), 1e5) - 0.5) * 2**_SHIFT) for v in xy)
    return x, y


def _stick(canvas: Image, ends_xy: Joints, half_width: float, colour: Sequence[int]) -> None:
    (x0, y0), (x1, y1) = ends_xy
    half_length = float(np.hypot(x1 - x0, y1 - y0)) / 2
    along = np.array([x1 - x0, y1 - y0]) / max(2 * half_length, 1e-9)
    across = np.array([-along[1], along[0]])
    outline = ends_xy.mean(axis=0) + _CIRCLE @ np.stack([half_length * along, half_width * across])
    polygon = np.rint((outline.clip(-1e5, 1e5) - 0.5) * 2**_SHIFT).astype(np.int32)
    cv2.fillConvexPoly(canvas, polygon, [int(channel * _LIMB_BRIGHTNESS) for channel in colour], cv2.LINE_8, _SHIFT)


def detect_joints(map_HWC: Image) -> Joints:
    """The people on a drawn pose map: RGB uint8 HWC → (P, 18, 2), NaN for joints that are not there.

    Discs are found by colour and joined by the limbs drawn between them. People whose neck is hidden come apart into several.
    """
    bright_N = np.flatnonzero(np.maximum(np.maximum(map_HWC[..., 0], map_HWC[..., 1]), map_HWC[..., 2]) >= 255 - _TOLERANCE)
    candidates = [_discs(map_HWC, joint, bright_N) for joint in range(len(JOINTS))]
    people: dict[tuple[int, int], int] = {}  # (joint, candidate) → person
    for joint, found in enumerate(candidates):
        for index in range(len(found)):
            people[joint, index] = len(people)
    for limb, (a, b) in enumerate(LIMBS):
        pairs = [(_drawn(map_HWC, p, q, limb), i, j) for i, p in enumerate(candidates[a]) for j, q in enumerate(candidates[b])]
        taken_a: set[int] = set()
        taken_b: set[int] = set()
        for score, i, j in sorted(pairs, reverse=True):
            if score < 0.5 or i in taken_a or j in taken_b:
                continue
            taken_a.add(i)
            taken_b.add(j)
            keep, drop = people[a, i], people[b, j]
            people = {key: keep if person == drop else person for key, person in people.items()}
    names = sorted(set(people.values()))
    people_xy = np.full((len(names), len(JOINTS), 2), np.nan)
    for (joint, index), person in people.items():
        people_xy[names.index(person), joint] = candidates[joint][index]
    return people_xy


def _discs(map_HWC: Image, joint: int, bright_N: NDArray[np.intp]) -> list[NDArray[np.float64]]:
    """Centres of the full-brightness discs of one joint's colour, largest first, at most 32; specks of resampling are dropped.

    bright_N: the places, counted row by row, that are bright enough for any joint's colour.
    """
    apart_N = np.abs(map_HWC.reshape(-1, 3)[bright_N].astype(np.int16) - np.array(COLOURS[joint], np.int16)).max(axis=-1)
    mask = np.zeros(map_HWC.shape[:2], np.uint8)
    mask.flat[bright_N[apart_N <= _TOLERANCE]] = 1
    _, _, stats, centres = cv2.connectedComponentsWithStats(mask, connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    order = [int(i) for i in np.argsort(-areas, kind="stable")[:32] if areas[i] >= 0.2 * areas.max()]
    return [np.asarray(centres[1 + i], np.float64) + 0.5 for i in order]


def _drawn(map_HWC: Image, a_xy: NDArray[np.float64], b_xy: NDArray[np.float64], limb: int) -> float:
    """How much of the line between two discs has a limb on it, 0 to 1; discs and other limbs that cross it count as unknown."""
    colour = np.array(COLOURS[limb], np.int16)
    steps = np.linspace(0.2, 0.8, 13)[:, None]
    points = np.floor(a_xy + steps * (b_xy - a_xy)).astype(int).clip(0, np.array(map_HWC.shape[1::-1]) - 1)
    pixels = map_HWC[points[:, 1], points[:, 0]].astype(np.int16)
    same = np.abs(pixels - (colour * _LIMB_BRIGHTNESS).astype(np.int16)).max(axis=1) <= 30
    blank = pixels.max(axis=1) < 40
    if not blank.any() and not same.any():
        return 0.55  # wholly covered by others: better than a gap, worse than seeing it
    return float((same.sum() + 0.5 * (~same & ~blank).sum()) / len(pixels))


def pck(wanted_xy: Joints, got_xy: Joints, fraction: float = 0.1) -> float:
    """Percentage of correct keypoints over the ten limb joints, as 0 to 1: `wanted_xy` and `got_xy` (18, 2).

    A joint is correct within `fraction` of the wanted figure's height (its joints' vertical extent, or the horizontal one where
    that is larger: somebody lying down). Joints unseen in `wanted_xy` do not count; NaN is returned when none is left.

    Source: Yang and Ramanan, "Articulated human detection with flexible mixtures of parts", TPAMI 2013 (PCK).
    """
    wanted, got = wanted_xy[list(LIMB_JOINTS)], got_xy[list(LIMB_JOINTS)]
    seen = np.isfinite(wanted).all(axis=1)
    if not seen.any():
        return float("nan")
    visible = wanted_xy[np.isfinite(wanted_xy).all(axis=1)]
    height = float((visible.max(axis=0) - visible.min(axis=0)).max())
    distance = np.hypot(*(wanted - got)[seen].T)
    return float((distance <= fraction * height).mean())  # NaN compares as wrong


# COCO's spread of human annotations for each joint, as a share of the person's size; the neck, which COCO has not, as the shoulders.
_SPREADS = np.array([26, 79, 79, 72, 62, 79, 72, 62, 107, 87, 89, 107, 87, 89, 25, 25, 35, 35]) / 1000


def oks(wanted_xy: Joints, got_xy: Joints) -> float:
    """Object keypoint similarity of one person, 0 to 1, over the joints seen in `wanted_xy`: (18, 2) both.

    The person's area is their joints' bounding box, for want of an outline. NaN is returned when no joint is wanted.

    Source: COCO's keypoint evaluation (exp(−d² / 2s²k²) with k = 2σ), cocodataset.org.
    """
    seen = np.isfinite(wanted_xy).all(axis=1)
    if not seen.any():
        return float("nan")
    extent = np.ptp(wanted_xy[seen], axis=0)
    area = max(float(extent[0] * extent[1]), 1.0)
    squared = ((wanted_xy - got_xy)[seen] ** 2).sum(axis=1)
    similarity = np.exp(-squared / (2 * area * (2 * _SPREADS[seen]) ** 2))
    return float(np.where(np.isfinite(similarity), similarity, 0).mean())
