"""Pose fidelity against joints that are known."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from controls import estimators, pose
from controls.pose import compare, compare_maps, extract, looks_finished, read_file
from controls.prepare import load_map
from core.errors import BadRequest
from core.openpose import FACE_POINTS, People, draw_people
from core.request import ControlUnit
from core.skeleton import LIMB_JOINTS, Joints, detect_joints, draw_pose


def standing(scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)) -> Joints:
    body = [(64, 24), (64, 38), (50, 38), (42, 54), (36, 68), (78, 38), (88, 52), (98, 64), (56, 70), (50, 92), (48, 116)]
    body += [(72, 70), (78, 92), (82, 116), (60, 18), (68, 18), (53, 22), (75, 22)]
    return np.array(body, float)[None] * scale + shift


def value(wanted: Joints, got: Joints, size_px: int = 256) -> float | None:
    score = compare_maps(draw_pose(wanted, size_px, size_px), draw_pose(got, size_px, size_px))
    return None if score is None else score.value


def test_maps_are_compared_joint_by_joint() -> None:
    wanted = standing(2)
    assert value(wanted, wanted) == 1.0
    moved = wanted.copy()
    moved[0, LIMB_JOINTS[1]] -= (40, 0)  # a wrist, by a fifth of the height
    assert value(wanted, moved) == pytest.approx(0.9)
    assert value(wanted, wanted + 60) == 0.0
    assert value(wanted, np.zeros((0, 18, 2))) == 0.0


def test_every_wanted_person_needs_one_of_their_own() -> None:
    two = np.concatenate([standing(1, (0, 0)), standing(1, (110, 60))])
    assert value(two, two[::-1]) == 1.0
    assert value(two, two[:1]) == pytest.approx(0.5)


@pytest.mark.parametrize("hidden", [[1], [1, 2], [3], [8], [9], [6, 12]], ids=str)
def test_somebody_with_a_joint_out_of_sight_is_still_one(hidden: list[int], install: Callable[[estimators.Estimate], None]) -> None:
    """What lies beyond it is drawn apart from the rest, and was a person of its own whom nobody in the picture was."""
    seen = standing(2)
    seen[0, hidden] = np.nan
    for found in (seen, standing(2)):
        install(lambda image_HWC, found=found: found)
        score = compare(draw_pose(seen, 256, 256), np.zeros((256, 256, 3), np.uint8))
        assert score is not None
        assert (score.value, score.parts["people wanted"]) == (1.0, 1.0)
    two = np.concatenate([seen / 2, standing(1, (110, 60))])
    assert value(two, two) == 1.0
    assert value(two, two[1:]) == pytest.approx(0.5)


def test_drawn_hands_are_nobody(install: Callable[[estimators.Estimate], None]) -> None:
    """Their points are blue, as the left knee's disc is."""
    body = standing(4)
    spread = np.stack([np.cos(np.linspace(0.2, 2.6, 5)), np.sin(np.linspace(0.2, 2.6, 5))], axis=1)
    fingers = (spread[:, None] * np.arange(7, 35, 7)[:, None]).reshape(20, 2)
    hands = np.stack([np.concatenate([body[0, [wrist]], body[0, wrist] + fingers]) for wrist in (7, 4)])[None]
    wanted = draw_people(People(body, hands, np.full((1, FACE_POINTS, 2), np.nan)), 512, 512)
    assert len(detect_joints(wanted)) > 1
    install(lambda image_HWC: body)
    score = compare(wanted, np.zeros((512, 512, 3), np.uint8))
    assert score is not None
    assert (score.value, score.parts["people wanted"]) == (1.0, 1.0)


def test_nothing_to_measure_is_no_score() -> None:
    face = standing()
    face[0, 2:14] = np.nan
    assert value(face, standing()) is None
    assert value(np.zeros((0, 18, 2)), standing()) is None


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[estimators.Estimate], None]:
    monkeypatch.setattr(estimators, "ROOT", tmp_path)
    monkeypatch.setattr(estimators, "LOADERS", {})

    def put(estimate: estimators.Estimate) -> None:
        (tmp_path / "estimator-pose").mkdir(exist_ok=True)
        estimators.LOADERS["pose"] = lambda folder: estimate
        estimators._load.cache_clear()

    return put


@pytest.mark.usefixtures("install")
def test_without_an_estimator() -> None:
    picture = np.zeros((128, 128, 3), np.uint8)
    assert compare(draw_pose(standing(), 128, 128), picture) is None
    with pytest.raises(BadRequest, match="no pose estimator is installed"):
        extract(picture, pose.Params())


def test_with_an_estimator(install: Callable[[estimators.Estimate], None]) -> None:
    install(lambda image_HWC: standing())
    picture = np.full((128, 128, 3), 90, np.uint8)
    np.testing.assert_array_equal(extract(picture, pose.Params()), draw_pose(standing(), 128, 128))
    score = compare(draw_pose(standing(), 128, 128), picture)
    assert score is not None
    assert score.value == 1.0


def test_openpose_files_are_placed_like_pictures_of_their_canvas() -> None:
    flat = np.concatenate([standing()[0], np.ones((18, 1))], axis=1).ravel().tolist()
    data = json.dumps({"people": [{"pose_keypoints_2d": flat}], "canvas_width": 128, "canvas_height": 128}).encode()
    np.testing.assert_array_equal(read_file(data, 256, 256, "crop"), draw_pose(standing(2), 256, 256))
    np.testing.assert_array_equal(read_file(data, 128, 64, "just"), draw_pose(standing() * [1, 0.5], 128, 64))
    np.testing.assert_array_equal(read_file(data, 256, 128, "fill"), draw_pose(standing(1, (64, 0)), 256, 128))


def test_people_beside_the_canvas_are_noticed(tmp_path: Path) -> None:
    """OpenPose's own files name no canvas: their points are pixels of a picture that is not there."""

    def said(joints: Joints, **canvas: int) -> list[str]:
        flat = np.concatenate([joints[0], np.ones((18, 1))], axis=1).ravel().tolist()
        path = tmp_path / "pose.json"
        path.write_text(json.dumps({"people": [{"pose_keypoints_2d": flat}], **canvas}))
        return list(load_map(ControlUnit(kind="pose", image=path), 128, 128).warnings)

    assert said(standing()) == said(standing(4), canvas_width=512, canvas_height=512) == []
    beside, *_ = said(standing(4))
    assert "pose.json has 18 of 18 joints outside 128x128, and it names no canvas: set canvas_width and canvas_height" in beside
    assert "has 18 of 18 joints outside its canvas of 100x100" in said(standing() + 100, canvas_width=100, canvas_height=100)[0]
    assert said(standing(1, (0, 20)), canvas_width=128, canvas_height=128) == []  # feet cut off
    (wide,) = said(standing(), canvas_width=256, canvas_height=128)
    assert "pose.json is 256x128 and loses 50% to fit 128x128" in wide


def test_a_drawn_pose_is_noticed_and_a_picture_is_not() -> None:
    assert looks_finished(draw_pose(standing(), 128, 128))
    assert not looks_finished(np.zeros((64, 64, 3), np.uint8))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert not looks_finished(noise)
