"""What the pose canvas holds becomes joints, a map and OpenPose's JSON, and comes back from them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.errors import BadRequest
from core.images import encode_png
from core.openpose import People, openpose_from_people
from core.skeleton import draw_pose
from web import pose


def standing() -> list[Any]:
    return [[list(joint) for joint in pose.STANDING]]


def test_people_come_back_from_json_and_from_a_map(tmp_path: Path) -> None:
    people = standing()
    people[0][4] = None
    joints = pose.joints(people, 256, 128)
    assert joints.shape == (1, 18, 2)
    assert np.isnan(joints[0, 4]).all()
    assert joints[0, 0] == pytest.approx([0.30 * 256, 0.16 * 128])
    (tmp_path / "a.json").write_text(openpose_from_people(People.of(joints), 256, 128))
    back = pose.read_people(tmp_path / "a.json")
    assert back[0][4] is None
    assert np.allclose([joint for joint in back[0] if joint], [joint for joint in people[0] if joint], atol=1e-3)

    square = pose.joints(people, 256, 256)
    (tmp_path / "map.png").write_bytes(encode_png(draw_pose(square, 256, 256)))
    (found,) = pose.read_people(tmp_path / "map.png")
    for wanted, got in zip(people[0], found, strict=True):
        assert (wanted is None) == (got is None)
        assert wanted is None or got is None or np.hypot(*np.subtract(wanted, got)) < 2 / 256  # detected to about a pixel


@pytest.mark.parametrize("people", [None, [], 7, "people", [[1]], [[[0, 0]] * 17], [[["x", 0]] * 18], [[[0.5, 0.5]] * 18] * 21])
def test_what_is_not_people_is_refused(people: Any) -> None:
    with pytest.raises(BadRequest, match="people"):
        pose.joints(people, 64, 64)


def test_points_outside_the_canvas_are_unseen() -> None:
    people = standing()
    people[0][0] = [1.5, 0.5]
    people[0][1] = [float("nan"), 0.5]
    assert np.isnan(pose.joints(people, 64, 64)[0, :2, 0]).all()


def test_files_without_people_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_text('{"people": []}')
    with pytest.raises(BadRequest, match=r"empty\.json' shows nobody"):
        pose.read_people(tmp_path / "empty.json")
