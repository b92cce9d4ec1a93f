"""A posed human figure: named poses, joints in COCO-18 order, and the solids that make its body.

The body's own axes: `left` is the person's left, `up` the world's up, `forward` where the face looks. Lengths are in metres for a person
of about 1.75 m; the head is a little large and the limbs a little thick, so that both survive at 128 pixels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toyland.geometry import Array, Solid, frame_along, rotation_y

POSES = {
    # name: (phrase in a caption, sampler of the angles)
    "standing": "standing",
    "raised": "with arms raised",
    "spread": "with arms spread",
    "waving": "waving",
    "walking": "walking",
    "running": "running",
    "kicking": "kicking",
    "crouching": "crouching",
    "star": "jumping",
    "free": "",
}

UPPER_ARM, FOREARM, THIGH, SHIN = 0.29, 0.27, 0.43, 0.43
TORSO, SHOULDER, HIP, NECK, HEAD = 0.50, 0.215, 0.115, 0.10, 0.165


@dataclass(frozen=True)
class Limb:
    """One arm or leg, in degrees. polar: 0 hangs, 180 points up; azimuth: 0 is sideways, 90 forward; bend: of elbow or knee."""

    polar: float
    azimuth: float
    bend: float


@dataclass(frozen=True)
class Figure:
    """A person: clothes and skin by colour name, and the pose."""

    shirt: str
    pants: str
    skin: str
    hair: str
    pose: str
    yaw: float  # radians; 0 faces the camera
    position: tuple[float, float]  # x and z of the pelvis on the ground, metres
    right_arm: Limb
    left_arm: Limb
    right_leg: Limb
    left_leg: Limb


def sample_limbs(pose: str, rng: np.random.Generator) -> dict[str, Limb]:
    """Angles for a named pose, with natural variation."""

    def limb(polar: tuple[float, float], azimuth: tuple[float, float], bend: tuple[float, float]) -> Limb:
        return Limb(*(float(rng.uniform(*span)) for span in (polar, azimuth, bend)))

    def hanging() -> Limb:
        return limb((8, 28), (-10, 30), (5, 30))

    def leg() -> Limb:
        return limb((4, 13), (-10, 20), (0, 8))

    arms, legs = [hanging(), hanging()], [leg(), leg()]
    if pose == "raised":
        arms = [limb((135, 170), (0, 30), (0, 40)) for _ in range(2)]
    elif pose == "spread":
        arms = [limb((75, 105), (-5, 15), (0, 20)) for _ in range(2)]
    elif pose == "waving":
        arms[0] = limb((95, 140), (0, 25), (30, 90))
    elif pose in ("walking", "running"):
        fast = pose == "running"
        swing, knee, elbow = ((35, 55), (30, 80), (60, 100)) if fast else ((18, 30), (5, 25), (10, 35))
        back = (-95, -80)
        arms = [limb(swing, (70, 90), elbow), limb(swing, back, elbow)]
        legs = [limb(swing, back, knee), limb(swing, (80, 95), knee if fast else (0, 12))]
    elif pose == "kicking":
        legs[0] = limb((50, 85), (30, 90), (0, 25))
        arms = [limb((40, 80), (-10, 30), (0, 40)) for _ in range(2)]
    elif pose == "crouching":
        legs = [limb((70, 95), (40, 70), (95, 115)) for _ in range(2)]
        arms = [limb((30, 60), (40, 90), (10, 70)) for _ in range(2)]
    elif pose == "star":
        arms = [limb((115, 145), (-5, 10), (0, 15)) for _ in range(2)]
        legs = [limb((22, 36), (-5, 5), (0, 8)) for _ in range(2)]
    elif pose == "free":
        arms = [limb((5, 170), (-20, 80), (0, 110)) for _ in range(2)]
        legs = [limb((3, 30), (-30, 80), (0, 40)) for _ in range(2)]
    if rng.random() < 0.5:
        arms, legs = arms[::-1], legs[::-1]
    return {"right_arm": arms[0], "left_arm": arms[1], "right_leg": legs[0], "left_leg": legs[1]}


def joints(figure: Figure) -> Array:
    """World positions (18, 3) of the joints in COCO-18 order; the lowest foot stands on the ground."""
    left, up, forward = _axes(figure)

    def direction(limb: Limb, side: Array) -> Array:
        polar, azimuth = np.radians(limb.polar), np.radians(limb.azimuth)
        pointing: Array = -np.cos(polar) * up + np.sin(polar) * (np.cos(azimuth) * side + np.sin(azimuth) * forward)
        return pointing

    def bent(first: Array, towards: Array, degrees: float) -> Array:
        hinge = towards - (towards @ first) * first
        hinge /= np.linalg.norm(hinge) + 1e-6
        turned: Array = np.cos(np.radians(degrees)) * first + np.sin(np.radians(degrees)) * hinge
        return turned

    pelvis = np.zeros(3, np.float32)
    neck = pelvis + TORSO * up
    head = neck + (NECK + HEAD) * up
    points = {"neck": neck}
    for name, side, arm, leg in (("right", -left, figure.right_arm, figure.right_leg), ("left", left, figure.left_arm, figure.left_leg)):
        shoulder, hip = neck + SHOULDER * side - 0.03 * up, pelvis + HIP * side
        upper, thigh = direction(arm, side), direction(leg, side)
        elbow, knee = shoulder + UPPER_ARM * upper, hip + THIGH * thigh
        points |= {
            f"{name}_shoulder": shoulder,
            f"{name}_elbow": elbow,
            f"{name}_wrist": elbow + FOREARM * bent(upper, 0.6 * forward + 0.8 * up, arm.bend),
            f"{name}_hip": hip,
            f"{name}_knee": knee,
            f"{name}_ankle": knee + SHIN * bent(thigh, -forward - 0.2 * up, leg.bend),
            f"{name}_eye": head + HEAD * (0.92 * forward + 0.33 * side + 0.12 * up),
            f"{name}_ear": head + HEAD * (0.98 * side),
        }
    points["nose"] = head + HEAD * (forward - 0.12 * up)
    order = ["nose", "neck"]
    order += [f"right_{part}" for part in ("shoulder", "elbow", "wrist")] + [f"left_{part}" for part in ("shoulder", "elbow", "wrist")]
    order += [f"right_{part}" for part in ("hip", "knee", "ankle")] + [f"left_{part}" for part in ("hip", "knee", "ankle")]
    order += ["right_eye", "left_eye", "right_ear", "left_ear"]
    joints_18x3 = np.stack([points[name] for name in order]).astype(np.float32)
    lift = 0.09 - joints_18x3[[10, 13], 1].min()
    if figure.pose == "star":
        lift += 0.18
    return joints_18x3 + np.array([figure.position[0], lift, figure.position[1]], np.float32)


def solids(figure: Figure, instance: int) -> list[Solid]:
    """The body as solids; materials are `shirt:red`, `pants:blue`, `skin:…`, `head:…`, `shoe`."""
    j = joints(figure)
    left, up, forward = _axes(figure)
    neck, hips = j[1], (j[8] + j[11]) / 2
    shirt, pants, skin = f"colour:{figure.shirt}", f"colour:{figure.pants}", f"skin:{figure.skin}"
    body = [
        _capsule(hips + 0.14 * up, neck - 0.13 * up, 0.15, shirt, instance, flatten=(forward, 0.75), widen=(left, 1.28)),
        _capsule(j[8] + 0.02 * left, j[11] - 0.02 * left, 0.125, pants, instance),
        _capsule(neck - 0.02 * up, neck + 0.12 * up, 0.06, skin, instance),
        _ball(neck + (NECK + HEAD) * up, HEAD, f"head:{figure.skin}:{figure.hair}", instance, np.stack([left, up, forward])),
    ]
    for shoulder, elbow, wrist, hip, knee, ankle in ((2, 3, 4, 8, 9, 10), (5, 6, 7, 11, 12, 13)):
        hand = j[wrist] + 0.06 * (j[wrist] - j[elbow]) / FOREARM
        body += [
            _capsule(j[shoulder], j[elbow], 0.076, shirt, instance),
            _capsule(j[elbow], j[wrist], 0.062, skin, instance),
            _ball(hand, 0.082, skin, instance),
            _capsule(j[hip], j[knee], 0.105, pants, instance),
            _capsule(j[knee], j[ankle], 0.086, pants, instance),
            _capsule(j[ankle] - 0.015 * up, j[ankle] + 0.14 * forward - 0.015 * up, 0.07, "shoe", instance),
        ]
    return body


def face_visible(figure: Figure, to_camera: Array) -> NDArray[np.bool_]:
    """Booleans (18,): False for eyes, ears and nose that look away from the camera."""
    left, _, forward = _axes(figure)
    visible = np.ones(18, bool)
    towards = to_camera / np.linalg.norm(to_camera)
    visible[0] = forward @ towards > -0.1
    visible[14] = (0.92 * forward - 0.33 * left) @ towards > 0
    visible[15] = (0.92 * forward + 0.33 * left) @ towards > 0
    visible[16], visible[17] = -left @ towards > -0.25, left @ towards > -0.25
    return visible


def _axes(figure: Figure) -> tuple[Array, Array, Array]:
    turn = rotation_y(figure.yaw)
    return turn @ np.array([1, 0, 0], np.float32), np.array([0, 1, 0], np.float32), turn @ np.array([0, 0, -1], np.float32)


def _capsule(
    start: Array,
    end: Array,
    radius: float,
    material: str,
    instance: int,
    *,
    flatten: tuple[Array, float] | None = None,
    widen: tuple[Array, float] | None = None,
) -> Solid:
    """A capsule between two points, optionally scaled along two world directions at right angles to it."""
    length = float(np.linalg.norm(end - start))
    axis = (end - start) / length
    matrix = frame_along(axis)
    grow = 1.0
    for direction, factor in (item for item in (flatten, widen) if item is not None):
        outer = np.outer(direction, direction)
        matrix = matrix @ (np.eye(3, dtype=np.float32) - outer * (1 - 1 / factor)).astype(np.float32)
        grow = max(grow, factor)
    middle = (start + end) / 2
    bound = (length / 2 + radius) * grow
    return Solid("capsule", start, matrix.astype(np.float32), bound, middle, instance, material, length=length, radius=radius)


def _ball(centre: Array, radius: float, material: str, instance: int, axes: Array | None = None) -> Solid:
    rotation = np.eye(3, dtype=np.float32) if axes is None else axes
    return Solid("sphere", centre, (rotation / radius).astype(np.float32), radius, centre, instance, material)
