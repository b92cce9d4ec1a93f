"""What a toyland scene is, and how a seed becomes one."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from toyland import figure as figures
from toyland.figure import Figure
from toyland.geometry import Array, Solid, frame_along, rotation_y

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SHAPES = ("sphere", "cube", "capsule", "cone")
GROUNDS = ("grass", "sand", "snow", "stone")
TIMES = ("day", "sunset", "night")

# A tenth of the 32 (colour, shape) pairs is never drawn in training, so that composition can be measured.
HELD_OUT = frozenset({("orange", "cone"), ("blue", "capsule"), ("yellow", "cube")})

Split = Literal["train", "test", "composition"]
_SPLIT_KEY = {"train": 0, "test": 1, "composition": 2}


@dataclass(frozen=True)
class Thing:
    """One coloured shape standing on the ground. size: half its width, metres."""

    shape: str
    colour: str
    position: tuple[float, float]
    size: float
    yaw: float
    lying: bool = False


@dataclass(frozen=True)
class Camera:
    """A pinhole camera at (0, height, 0) that looks along +z, tilted down by `pitch` radians. focal: in picture heights."""

    height: float
    pitch: float
    focal: float = 1.374  # 40° vertical field of view


@dataclass(frozen=True)
class Scene:
    """Everything needed to draw and caption one picture."""

    seed: int
    ground: str
    time: str
    camera: Camera
    sun: tuple[float, float]  # azimuth (0 = ahead of the camera, towards +x) and elevation, radians
    texture: int
    things: tuple[Thing, ...] = ()
    figure: Figure | None = None
    solids: tuple[Solid, ...] = field(default=(), repr=False, compare=False)


def sample(seed: int, split: Split = "train") -> Scene:
    """The scene of a seed. Scenes of different splits never share a random stream.

    train and test scenes hold one to three things without the held-out pairs, or one figure; composition scenes hold exactly one
    thing, of a held-out pair.
    """
    rng = np.random.default_rng([2026, _SPLIT_KEY[split], seed])
    ground, time = str(rng.choice(GROUNDS)), str(rng.choice(TIMES))
    elevation = {"day": (45, 65), "sunset": (16, 26), "night": (40, 60)}[time]
    side = 1 if rng.random() < 0.5 else -1
    sun = (float(np.radians(side * rng.uniform(35, 150))), float(np.radians(rng.uniform(*elevation))))
    texture = int(rng.integers(1 << 30))
    common = {"seed": seed, "ground": ground, "time": time, "sun": sun, "texture": texture}
    if split != "composition" and rng.random() < 0.45:
        return _with_figure(common, rng)
    return _with_things(common, rng, split)


def _with_figure(common: dict[str, Any], rng: np.random.Generator) -> Scene:
    distance = rng.uniform(3.05, 3.8)
    camera = _aim(rng.uniform(0.95, 1.5), distance, rng.uniform(0.37, 0.44))
    pose = str(rng.choice(list(figures.POSES), p=_pose_weights()))
    turn = rng.normal(0, 0.35) if pose not in ("walking", "running") else rng.choice([-1, 1]) * rng.uniform(0.3, 1.2)
    shirt, pants = (str(name) for name in rng.choice(COLOURS, 2))
    person = Figure(
        shirt=shirt,
        pants=pants,
        skin=str(rng.choice(["light", "tan", "brown"])),
        hair=str(rng.choice(["dark", "brown", "blond"])),
        pose=pose,
        yaw=float(np.clip(turn, -1.2, 1.2)),
        position=(float(rng.uniform(-0.28, 0.28) * distance / 3), float(distance)),
        **figures.sample_limbs(pose, rng),
    )
    return Scene(camera=camera, figure=person, solids=tuple(figures.solids(person, 1)), **common)


def _with_things(common: dict[str, Any], rng: np.random.Generator, split: Split) -> Scene:
    count = 1 if split == "composition" else int(rng.choice([1, 2, 3], p=[0.35, 0.4, 0.25]))
    distance = rng.uniform(3.4, 4.2)
    camera = _aim(rng.uniform(1.2, 2.0), distance, rng.uniform(0.24, 0.34))
    low, high = {1: (0.62, 0.9), 2: (0.46, 0.66), 3: (0.38, 0.5)}[count]
    things: list[Thing] = []
    for _ in range(200):
        if len(things) == count:
            break
        shape, colour = str(rng.choice(SHAPES)), str(rng.choice(COLOURS))
        if ((colour, shape) in HELD_OUT) != (split == "composition") or (colour, shape) in {(t.colour, t.shape) for t in things}:
            continue
        size = float(rng.uniform(low, high))
        reach = 0.33 * distance / camera.focal
        x, z = rng.uniform(-reach, reach) * (0.35 if count == 1 else 1.0), distance + rng.uniform(-0.75, 1.1) * (count > 1)
        apart = all(np.hypot(x - t.position[0], z - t.position[1]) > 1.15 * (size + t.size) for t in things)
        unhidden = all(abs(x / z - t.position[0] / t.position[1]) > 0.62 * (size + t.size) / distance for t in things)
        if apart and unhidden:
            lying = shape == "capsule" and rng.random() < 0.3
            things.append(Thing(shape, colour, (float(x), float(z)), size, float(rng.uniform(0, 2 * np.pi)), lying))
    placed = tuple(things)
    solids = tuple(_solid(thing, index + 1) for index, thing in enumerate(placed))
    return Scene(camera=camera, things=placed, solids=solids, **common)


def _aim(height: float, distance: float, below: float) -> Camera:
    """A camera that sees the ground at `distance` `below` the picture's centre, in picture heights."""
    camera = Camera(height, 0.0)
    return Camera(height, float(np.arctan(height / distance) - np.arctan(below / camera.focal)))


def _pose_weights() -> list[float]:
    weights = {"free": 0.34, "standing": 0.06}
    rest = (1 - sum(weights.values())) / (len(figures.POSES) - len(weights))
    return [weights.get(pose, rest) for pose in figures.POSES]


def _solid(thing: Thing, instance: int) -> Solid:
    x, z = thing.position
    size, material = thing.size, f"colour:{thing.colour}"
    turn = rotation_y(thing.yaw)
    if thing.shape == "sphere":
        centre = np.array([x, size, z], np.float32)
        return Solid("sphere", centre, np.eye(3, dtype=np.float32) / size, size, centre, instance, material)
    if thing.shape == "cube":
        half = size * 0.82
        centre = np.array([x, half, z], np.float32)
        return Solid("cube", centre, turn / np.float32(half), half * 1.7321, centre, instance, material)
    if thing.shape == "cone":
        centre = np.array([x, size * 1.15, z], np.float32)
        matrix = np.diag([1 / size, 1 / (size * 1.15), 1 / size]).astype(np.float32)
        return Solid("cone", centre, matrix, size * 1.6, centre, instance, material)
    radius, length = size * 0.55, size * 1.1
    axis = turn @ np.array([1, 0, 0], np.float32) if thing.lying else np.array([0, 1, 0], np.float32)
    start: Array = np.array([x, radius, z], np.float32) - (axis * length / 2 if thing.lying else 0)
    middle = start + axis * length / 2
    return Solid("capsule", start, frame_along(axis), length / 2 + radius, middle, instance, material, length=length, radius=radius)
