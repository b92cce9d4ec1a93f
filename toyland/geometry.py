"""Closed-form ray intersections, vectorised over rays.

Legend: N rays; arrays of points and directions are (3, N) float32, so that each coordinate is one contiguous row.

Every solid is a canonical shape under an affine map: a world point p is `matrix @ (p - centre)` in the shape's own space. The ray
parameter t is the same in both spaces because directions are not renormalised, so one formula per shape serves spheres and
ellipsoids, cubes and slabs, round and flattened capsules.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
EPSILON = np.float32(1e-4)


@dataclass(frozen=True)
class Solid:
    """A shape in the world.

    kind: "sphere" (unit ball), "cube" ([-1, 1]³), "cone" (apex (0, 1, 0), base radius 1 at y = -1) or "capsule" (the segment from
    the origin to (0, length, 0), swept by a ball of radius `radius`).
    """

    kind: str
    centre: Array  # (3,)
    matrix: Array  # (3, 3), world to shape
    bound: float  # radius of a world ball around `bound_centre` that holds the solid
    bound_centre: Array  # (3,)
    instance: int
    material: str
    length: float = 0.0
    radius: float = 0.0


def intersect(solid: Solid, origin_3N: Array, direction_3N: Array) -> Array:
    """Ray parameter (N,) of the first hit in front of each origin, inf where there is none."""
    count = direction_3N.shape[1]
    hit = np.full(count, np.inf, np.float32)
    offset = origin_3N - solid.bound_centre[:, None]
    along = (offset * direction_3N).sum(0)
    square = (direction_3N * direction_3N).sum(0)
    near = along * along - square * ((offset * offset).sum(0) - np.float32(solid.bound) ** 2) >= 0
    index = np.flatnonzero(near)
    if index.size == 0:
        return hit
    origin = origin_3N[:, index] if origin_3N.shape[1] > 1 else origin_3N
    o_3N = solid.matrix @ (origin - solid.centre[:, None])
    d_3N = solid.matrix @ direction_3N[:, index]
    with np.errstate(divide="ignore", invalid="ignore"):
        t = _SHAPES[solid.kind](solid, o_3N, d_3N)
    t = np.where(np.isfinite(t) & (t > EPSILON), t, np.float32(np.inf))
    hit[index] = t
    return hit


def normals(solid: Solid, points_3N: Array) -> Array:
    """Unit outward normals (3, N) at world points on the solid's surface."""
    p_3N = solid.matrix @ (points_3N - solid.centre[:, None])
    x, y, z = p_3N
    if solid.kind == "sphere":
        n_3N = p_3N
    elif solid.kind == "cube":
        face = np.abs(p_3N).argmax(0)
        n_3N = np.where(np.arange(3)[:, None] == face, np.sign(p_3N), 0)
    elif solid.kind == "cone":
        n_3N = np.stack([x, (1 - y) / 4, z])
        n_3N = np.where(y < -1 + 1e-3, np.array([[0.0], [-1.0], [0.0]]), n_3N)
    else:
        n_3N = np.stack([x, y - np.clip(y, 0, solid.length), z])
    world = solid.matrix.T @ n_3N.astype(np.float32)
    unit: Array = world / np.maximum(np.sqrt((world * world).sum(0)), np.float32(1e-9))
    return unit


def rotation_y(angle: float) -> Array:
    """Rotation by `angle` radians about the vertical axis."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], np.float32)


def frame_along(axis: Array) -> Array:
    """A rotation matrix that takes the unit vector `axis` to +y (world to shape)."""
    helper = np.array([0, 0, 1] if abs(axis[2]) < 0.9 else [1, 0, 0], np.float32)
    x = np.cross(axis, helper)
    x /= np.linalg.norm(x)
    return np.stack([x, axis, np.cross(x, axis)]).astype(np.float32)


def _sphere(_: Solid, o: Array, d: Array) -> Array:
    return _ball(o, d, 1.0)


def _ball(o: Array, d: Array, radius: float) -> Array:
    a, b, c = (d * d).sum(0), (o * d).sum(0), (o * o).sum(0) - np.float32(radius) ** 2
    root = np.sqrt(b * b - a * c)
    first = (-b - root) / a
    nearest: Array = np.where(first > EPSILON, first, (-b + root) / a)
    return nearest


def _cube(_: Solid, o: Array, d: Array) -> Array:
    inverse = 1 / np.where(np.abs(d) < 1e-9, np.float32(1e-9), d)
    a, b = (-1 - o) * inverse, (1 - o) * inverse
    enter, leave = np.minimum(a, b).max(0), np.maximum(a, b).min(0)
    t = np.where(enter > EPSILON, enter, leave)
    return np.where(enter <= leave, t, np.inf)


def _cone(_: Solid, o: Array, d: Array) -> Array:
    # x² + z² = ((1 - y) / 2)² for -1 <= y <= 1, and the base disc
    k, ky = (1 - o[1]) / 2, -d[1] / 2
    a = d[0] ** 2 + d[2] ** 2 - ky * ky
    b = o[0] * d[0] + o[2] * d[2] - k * ky
    c = o[0] ** 2 + o[2] ** 2 - k * k
    root = np.sqrt(b * b - a * c)
    best = np.full(a.shape, np.inf, np.float32)
    for t in ((-b - root) / a, (-b + root) / a):
        y = o[1] + t * d[1]
        best = np.where((t > EPSILON) & (np.abs(y) <= 1) & (t < best), t, best)
    t = (-1 - o[1]) / d[1]
    x, z = o[0] + t * d[0], o[2] + t * d[2]
    return np.where((t > EPSILON) & (x * x + z * z <= 1) & (t < best), t, best)


def _capsule(solid: Solid, o: Array, d: Array) -> Array:
    # the tube around the y axis, then the two end balls
    radius, length = np.float32(solid.radius), np.float32(solid.length)
    a = d[0] ** 2 + d[2] ** 2
    b = o[0] * d[0] + o[2] * d[2]
    t = (-b - np.sqrt(b * b - a * (o[0] ** 2 + o[2] ** 2 - radius * radius))) / a
    y = o[1] + t * d[1]
    best = np.where((t > EPSILON) & (y >= 0) & (y <= length), t, np.float32(np.inf))
    for height in (np.float32(0), length):
        cap = _ball(np.stack([o[0] + 0 * d[0], o[1] - height + 0 * d[0], o[2] + 0 * d[0]]), d, solid.radius)
        best = np.where((cap > EPSILON) & (cap < best), cap, best)
    return best


_SHAPES = {"sphere": _sphere, "cube": _cube, "cone": _cone, "capsule": _capsule}
