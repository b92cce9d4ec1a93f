"""Ray intersections against the shapes' own equations, and normals against their gradients."""

import numpy as np
import pytest
from numpy.typing import NDArray

from toyland.geometry import Solid, frame_along, intersect, normals, rotation_y

EYE = np.zeros((3, 1), np.float32)
CENTRE = np.array([0.3, 0.1, 6], np.float32)
TURN = rotation_y(0.6) @ frame_along(np.array([0.28, 0.96, 0], np.float32))


def solid(kind: str) -> Solid:
    scale = np.diag([1.1, 0.9, 0.8]).astype(np.float32) if kind != "capsule" else np.eye(3, dtype=np.float32)
    return Solid(kind, CENTRE, scale @ TURN, 4.0, CENTRE, 1, "colour:red", length=1.2, radius=0.6)


def outside(shape: Solid, points_3N: NDArray[np.float64]) -> NDArray[np.float64]:
    """A function of world points that is negative inside the solid, zero on its surface, and smooth but at edges."""
    x, y, z = shape.matrix.astype(np.float64) @ (points_3N - shape.centre[:, None])
    value: NDArray[np.float64]
    match shape.kind:
        case "sphere":
            value = x**2 + y**2 + z**2 - 1
        case "cube":
            value = np.abs(np.stack([x, y, z])).max(axis=0) - 1
        case "cone":
            value = np.maximum(np.hypot(x, z) - (1 - y) / 2, -1 - y)
        case _:
            value = np.sqrt(x**2 + (y - np.clip(y, 0, shape.length)) ** 2 + z**2) - shape.radius
    return value


def rays(count: int = 400) -> NDArray[np.float32]:
    spread = np.random.default_rng(1).uniform(-0.35, 0.45, (2, count))
    return np.stack([*spread, np.ones(count)]).astype(np.float32)


@pytest.mark.parametrize("kind", ["sphere", "cube", "cone", "capsule"])
def test_the_first_hit_lies_on_the_surface_and_nothing_lies_before_it(kind: str) -> None:
    shape, directions = solid(kind), rays()
    t = intersect(shape, EYE, directions)
    hit = np.isfinite(t)
    assert 0.05 < hit.mean() < 0.95
    at = directions[:, hit].astype(np.float64) * t[hit]
    # float32 at a distance of 6: 1e-3 is a hundred roundings of the squares
    np.testing.assert_allclose(outside(shape, at), 0, atol=1e-3)
    steps = np.linspace(0.01, 1, 300)
    for ray, first in zip(directions.T, t, strict=True):
        before = steps * (first - 2e-2 if np.isfinite(first) else 12.0)
        assert (outside(shape, ray[:, None].astype(np.float64) * before) > -2e-3).all()


@pytest.mark.parametrize("kind", ["sphere", "cube", "cone", "capsule"])
def test_normals_are_the_gradient(kind: str) -> None:
    shape, directions = solid(kind), rays()
    t = intersect(shape, EYE, directions)
    at = (directions * t)[:, np.isfinite(t)]
    found = normals(shape, at)
    step = 1e-3
    gradient = np.stack([outside(shape, at + step * axis[:, None]) - outside(shape, at - step * axis[:, None]) for axis in np.eye(3)])
    gradient /= np.linalg.norm(gradient, axis=0)
    cosine = (gradient * found).sum(axis=0)
    assert (cosine > 0.999).mean() > 0.97  # the rest lies on an edge, where there are two


def test_a_sphere_ahead_is_hit_at_its_distance_less_its_radius() -> None:
    ball = Solid("sphere", np.array([0, 0, 5], np.float32), np.eye(3, dtype=np.float32) / 2, 2.0, np.array([0, 0, 5], np.float32), 1, "")
    straight = np.array([[0], [0], [1]], np.float32)
    assert intersect(ball, EYE, straight)[0] == pytest.approx(3.0, abs=1e-5)
    assert intersect(ball, EYE, 2 * straight)[0] == pytest.approx(1.5, abs=1e-5), "the ray parameter counts directions, not metres"
    assert np.isinf(intersect(ball, EYE, -straight)[0]), "what lies behind is not hit"
    inside = intersect(ball, np.array([[0], [0], [5]], np.float32), straight)
    assert inside[0] == pytest.approx(2.0, abs=1e-5)


def test_a_frame_takes_its_axis_up_and_is_a_rotation() -> None:
    for axis in np.random.default_rng(2).normal(size=(20, 3)).astype(np.float32):
        axis /= np.linalg.norm(axis)
        frame = frame_along(axis)
        np.testing.assert_allclose(frame @ axis, [0, 1, 0], atol=1e-6)
        np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-6)
