"""Pictures and what is known of them, against cameras and planes worked out apart from the renderer."""

import numpy as np
import pytest
from numpy.typing import NDArray

from toyland import figure as figures
from toyland.render import ALBEDO, FAR, Rendered, depth_map, render
from toyland.scene import Camera, Scene, Thing, _solid, sample

SIZE = 96


def scene_of(thing: Thing, **changes: object) -> Scene:
    settings: dict[str, object] = {"seed": 0, "ground": "snow", "time": "day", "camera": Camera(1.5, 0.15), "sun": (0.9, 0.9), "texture": 5}
    return Scene(**(settings | changes), things=(thing,), solids=(_solid(thing, 1),))  # type: ignore[arg-type]


BALL = Thing("sphere", "red", (0.3, 4.0), 0.7, 0.0)


def project(scene: Scene, points_N3: NDArray[np.float64], size: int = SIZE) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixels (N, 2) and depths (N,) of world points, by a homogeneous camera matrix."""
    pitch, focal = scene.camera.pitch, scene.camera.focal * size
    intrinsic = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    # rows: to the right, down, ahead
    rotation = np.array([[1, 0, 0], [0, -np.cos(pitch), -np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]])
    image = intrinsic @ rotation @ (points_N3 - [0, scene.camera.height, 0]).T
    return (image[:2] / image[2]).T, image[2]


def backproject(scene: Scene, depth_HW: NDArray[np.float32]) -> NDArray[np.float64]:
    """The world point (H, W, 3) that each pixel's depth speaks of."""
    size = depth_HW.shape[0]
    pitch, focal = scene.camera.pitch, scene.camera.focal * size
    row, column = np.mgrid[:size, :size] + 0.5
    right, down = (column - size / 2) / focal, (row - size / 2) / focal
    depth = depth_HW.astype(np.float64)
    up, ahead = np.cos(pitch) * -down - np.sin(pitch), np.sin(pitch) * -down + np.cos(pitch)
    with np.errstate(invalid="ignore"):
        return np.stack([right * depth, scene.camera.height + up * depth, ahead * depth], axis=-1)


@pytest.fixture(scope="module")
def ball() -> tuple[Scene, Rendered]:
    scene = scene_of(BALL)
    return scene, render(scene, SIZE)


def test_the_same_scene_is_the_same_picture() -> None:
    for seed in (0, 2):
        first, second = render(sample(seed), 64), render(sample(seed), 64)
        np.testing.assert_array_equal(first.picture_HWC, second.picture_HWC)
        np.testing.assert_array_equal(first.depth_HW, second.depth_HW)
        np.testing.assert_array_equal(first.joints_18x2, second.joints_18x2)


def test_depth_of_the_ground_is_where_the_ray_meets_it(ball: tuple[Scene, Rendered]) -> None:
    scene, rendered = ball
    at_HW3 = backproject(scene, rendered.depth_HW)
    near = rendered.ground_HW & (rendered.depth_HW < 20)
    assert near.mean() > 0.2
    np.testing.assert_allclose(at_HW3[near][:, 1], 0, atol=1e-4)  # float32 depths of up to 20 m


def test_depth_of_a_ball_lies_on_the_ball(ball: tuple[Scene, Rendered]) -> None:
    scene, rendered = ball
    on = rendered.instance_HW == 1
    distance = np.linalg.norm(backproject(scene, rendered.depth_HW)[on] - [BALL.position[0], BALL.size, BALL.position[1]], axis=1)
    np.testing.assert_allclose(distance, BALL.size, atol=1e-4)


def test_a_ball_covers_the_pixels_whose_rays_pass_it(ball: tuple[Scene, Rendered]) -> None:
    scene, rendered = ball
    ray = backproject(scene, np.ones((SIZE, SIZE), np.float32)) - [0, scene.camera.height, 0]
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
    to_centre = np.array([BALL.position[0], BALL.size - scene.camera.height, BALL.position[1]])
    miss = np.linalg.norm(to_centre - (ray @ to_centre)[..., None] * ray, axis=-1)
    np.testing.assert_array_equal(rendered.instance_HW == 1, miss < BALL.size)


def test_masks_agree(ball: tuple[Scene, Rendered]) -> None:
    for scene, rendered in (ball, *((sample(seed), render(sample(seed), SIZE)) for seed in range(4))):
        instances = np.array([solid.instance for solid in scene.solids])
        np.testing.assert_array_equal(rendered.instance_HW, np.where(rendered.solid_HW < 0, 0, instances[rendered.solid_HW]))
        assert not (rendered.ground_HW & (rendered.instance_HW > 0)).any()
        sky = ~rendered.ground_HW & (rendered.instance_HW == 0)
        assert np.isinf(rendered.depth_HW[sky]).all()
        assert (rendered.depth_HW[~sky] <= FAR).all()


def test_joints_are_projected_from_the_figure() -> None:
    seen = 0
    for seed in range(30):
        scene = sample(seed)
        if scene.figure is None:
            assert np.isnan(render(scene, 64).joints_18x2).all()
            continue
        rendered = render(scene, SIZE)
        xy, depth = project(scene, figures.joints(scene.figure).astype(np.float64))
        shown = np.isfinite(rendered.joints_18x2[:, 0])
        assert shown[1:14].all(), "only the face can look away"
        np.testing.assert_allclose(rendered.joints_18x2[shown], xy[shown], atol=2e-3)  # float32 at 100 px
        for (x, y), joint_depth in zip(rendered.joints_18x2[1:14], depth[1:14], strict=True):
            if 0 <= x < SIZE and 0 <= y < SIZE:
                # a joint lies inside its limb, at most a torso's half-width behind what is seen there
                assert rendered.depth_HW[int(y), int(x)] < joint_depth + 1e-3
                assert rendered.instance_HW[int(y), int(x)] == 1
                seen += 1
    assert seen > 80


def test_the_depth_map_can_be_turned_back_into_metres(ball: tuple[Scene, Rendered]) -> None:
    depth_HW = ball[1].depth_HW
    map_HWC, (near, far) = depth_map(depth_HW)
    assert (map_HWC[..., 0] == map_HWC[..., 2]).all()
    assert (map_HWC.min(), map_HWC.max()) == (0, 255)
    assert map_HWC[np.isinf(depth_HW)].max() == 0
    assert near == pytest.approx(depth_HW.min())
    assert far == pytest.approx(FAR)
    inverse = map_HWC[..., 0] / 255 * (1 / near - 1 / far) + 1 / far
    half_a_level = 0.5 / 255 * (1 / near - 1 / far)
    np.testing.assert_allclose(inverse, 1 / np.minimum(depth_HW, FAR), atol=half_a_level + 1e-6)


@pytest.mark.parametrize("colour", ["red", "green", "blue", "white", "black"])
def test_a_thing_has_its_colour(colour: str) -> None:
    rendered = render(scene_of(Thing("cube", colour, (0.0, 4.0), 0.7, 0.6)), SIZE)
    median = np.median(rendered.picture_HWC[rendered.instance_HW == 1], axis=0)
    if colour in ("red", "green", "blue"):
        assert median.argmax() == ("red", "green", "blue").index(colour) == int(np.argmax(ALBEDO[colour]))
    else:
        assert median.min() > 100 if colour == "white" else median.max() < 60


def test_the_shadow_falls_away_from_the_sun() -> None:
    """The centre of a ball's shadow on the ground is where the line from the sun through the ball meets it."""
    for azimuth in (np.radians(140), np.radians(-140)):
        scene = scene_of(BALL, sun=(azimuth, 0.9))
        rendered = render(scene, SIZE)
        sun = np.array([np.sin(azimuth) * np.cos(0.9), np.sin(0.9), np.cos(azimuth) * np.cos(0.9)])
        centre = np.array([BALL.position[0], BALL.size, BALL.position[1]])
        inside, across = (
            centre - sun * (BALL.size / sun[1]),
            centre - sun * (BALL.size / sun[1]) + [2.4 * BALL.size * np.sign(sun[0]), 0, 0],
        )
        (dark_xy, light_xy), _ = project(scene, np.stack([inside, across]))
        levels = [float(rendered.picture_HWC[int(y), int(x)].mean()) for x, y in (dark_xy, light_xy)]
        hidden = rendered.instance_HW[int(dark_xy[1]), int(dark_xy[0])] == 1
        assert hidden or levels[0] < 0.8 * levels[1]


def test_night_is_darker_than_day() -> None:
    means = {time: render(scene_of(BALL, time=time), 64).picture_HWC.mean() for time in ("day", "sunset", "night")}
    assert means["night"] < 0.6 * means["sunset"] < means["day"]


def test_edges_are_smooth_and_the_rest_is_untouched(ball: tuple[Scene, Rendered]) -> None:
    """Across the ball's rim a pixel is the mean of its parts in linear light; where nothing changes, one ray is enough."""
    scene, rendered = ball
    fine = render(scene, SIZE * 3)
    box = fine.picture_HWC.reshape(SIZE, 3, SIZE, 3, 3).astype(np.float64)
    flat = np.ptp(box, axis=(1, 3)).max(axis=-1) < 6
    assert flat.mean() > 0.7
    np.testing.assert_allclose(rendered.picture_HWC[flat], box.mean(axis=(1, 3))[flat], atol=6)
    rim = (fine.instance_HW.reshape(SIZE, 3, SIZE, 3).mean(axis=(1, 3)) % 1) > 0
    linear = ((box / 255) ** 2.2).mean(axis=(1, 3)) ** (1 / 2.2) * 255
    error = np.abs(rendered.picture_HWC[rim].astype(np.float64) - linear[rim])
    # nine points of a pixel miss its true share of the ball by a fraction of a ninth of the contrast, which is up to 150 levels
    assert np.median(error) < 8
