"""OpenPose's files, in both directions, with hands and faces."""

import json

import numpy as np
import pytest

from core.errors import BadRequest
from core.openpose import FACE_COLOUR, HAND_LINES, HAND_POINT_COLOUR, People, draw_people, openpose_from_people, people_from_openpose
from core.skeleton import BODY_25, Joints, draw_pose


def standing() -> Joints:
    body = [(64, 24), (64, 38), (50, 38), (42, 54), (36, 68), (78, 38), (88, 52), (98, 64), (56, 70), (50, 92), (48, 116)]
    body += [(72, 70), (78, 92), (82, 116), (60, 18), (68, 18), (53, 22), (75, 22)]
    return np.array(body, float)[None]


def whole() -> People:
    """A figure with one hand, far from its body, and a face of which one point is seen."""
    people = People.of(standing())
    people.hands[0, 1] = np.stack([np.arange(21) * 2.0 + 4, np.full(21, 6.0)], axis=1)
    people.face[0, 33] = (20, 100)
    return people


def openpose(row: Joints, **canvas: int) -> str:
    flat = np.concatenate([np.nan_to_num(row), np.isfinite(row[:, :1])], axis=1).ravel().tolist()
    return json.dumps({"people": [{"pose_keypoints_2d": flat}], **canvas})


def test_files_in_pixels_fractions_and_body_25() -> None:
    people = standing()
    people[0, 17] = np.nan
    found, canvas = people_from_openpose(openpose(people[0], canvas_width=200, canvas_height=150), 256, 128)
    np.testing.assert_allclose(found.body, people)
    assert canvas == (200, 150)
    found, canvas = people_from_openpose(openpose(people[0] / 128, canvas_width=256, canvas_height=512), 64, 64)
    np.testing.assert_allclose(found.body, people * [2, 4])
    body_25 = np.full((25, 2), np.nan)
    body_25[list(BODY_25)] = people[0]
    body_25[8] = (64, 70)  # the middle of the hips, which COCO has not
    found, canvas = people_from_openpose(openpose(body_25), 128, 96)
    np.testing.assert_allclose(found.body, people)
    assert canvas == (128, 96)
    assert people_from_openpose(f"[{openpose(people[0])}]", 128, 128)[0].body.shape == (1, 18, 2)


def test_what_is_written_is_read_again() -> None:
    people = whole()
    people.body[0, 3] = np.nan
    found, canvas = people_from_openpose(openpose_from_people(people, 320, 240), 1, 1)
    assert canvas == (320, 240)
    for ours, theirs in ((people.body, found.body), (people.hands, found.hands), (people.face, found.face)):
        np.testing.assert_allclose(ours, theirs)
    nobody, _ = people_from_openpose(openpose_from_people(People.of(np.empty((0, 18, 2))), 64, 64), 1, 1)
    assert nobody.body.shape == (0, 18, 2)


def test_hands_and_faces_are_drawn_beside_the_body() -> None:
    people = whole()
    canvas = draw_people(people, 128, 128)
    np.testing.assert_array_equal(draw_people(People.of(people.body), 128, 128), draw_pose(people.body, 128, 128))
    assert tuple(canvas[100, 20]) == FACE_COLOUR
    assert tuple(canvas[6, 24]) == HAND_POINT_COLOUR
    assert len(HAND_LINES) == 20
    added = (canvas != draw_pose(people.body, 128, 128)).any(axis=2)
    rows, columns = np.nonzero(added)
    assert (set(rows[rows < 50]), set(rows[rows > 50])) == ({5, 6, 7} & set(rows), {99, 100, 101} & set(rows))
    assert columns.max() <= 46


@pytest.mark.parametrize(
    "text",
    [
        '{"people": [], "canvas_width": -1}',
        '{"people": [], "canvas_width": NaN}',
        "",
        "[]",
        "{}",
        "null",
        "[" * 10_000,
        '{"people": [{"pose_keypoints_2d": [1, 2]}]}',
        '{"people": [{"pose_keypoints_2d": [1, 2, 3]}]}',
        json.dumps({"people": [{"pose_keypoints_2d": [1, 2, 1] * 18, "hand_left_keypoints_2d": [1, 2, 1] * 5}]}),
    ],
)
def test_other_files_are_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        people_from_openpose(text, 64, 64)
