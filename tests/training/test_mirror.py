"""A mirrored map is the map of the mirrored picture."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from controls.normal import Params, normals
from core.errors import BadImage
from core.skeleton import JOINTS, draw_pose
from training import encode
from training.check import check
from training.data import DataConfig, Loader, read_pairs
from training.mirror import is_mirrorable, mirrored_map


def test_a_mirrored_pose_has_its_left_and_right_joints_swapped() -> None:
    random = np.random.default_rng(0)
    people = random.uniform(20, 236, (1, len(JOINTS), 2))
    mirrored = people.copy()
    mirrored[..., 0] = 256 - mirrored[..., 0]
    other = [JOINTS.index(n.replace("left", "L").replace("right", "left").replace("L", "right")) for n in JOINTS]
    wanted_HWC = draw_pose(mirrored[:, other], 256, 256)
    found_HWC = mirrored_map(draw_pose(people, 256, 256), "pose")
    assert set(map(tuple, np.unique(found_HWC.reshape(-1, 3), axis=0))) == set(map(tuple, np.unique(wanted_HWC.reshape(-1, 3), axis=0)))
    # limbs that cross are drawn over one another in another order, and outlines round to the other side
    assert (found_HWC != wanted_HWC).any(axis=2).mean() < 0.02
    assert (np.ascontiguousarray(draw_pose(people, 256, 256)[:, ::-1]) != wanted_HWC).any(axis=2).mean() > 0.05


def test_mirrored_normals_turn_round() -> None:
    nearness_HW = np.random.default_rng(1).integers(0, 256, (64, 80), dtype=np.uint8)
    settings = Params.model_validate({"smooth": 5.0})
    wanted_HWC = normals(np.ascontiguousarray(nearness_HW[:, ::-1]), settings)
    found_HWC = mirrored_map(normals(nearness_HW, settings), "normal")
    # 127.5 rounds to either side
    assert np.abs(found_HWC.astype(int) - wanted_HWC.astype(int)).max() <= 1


def test_what_points_nowhere_stays_black() -> None:
    map_HWC = np.full((8, 10, 3), (200, 128, 220), np.uint8)
    map_HWC[:, :3] = 0  # a background that was cut away
    found_HWC = mirrored_map(map_HWC, "normal")
    assert not found_HWC[:, 7:].any()
    assert (found_HWC[:, :7] == (55, 128, 220)).all()


def test_a_pose_whose_colours_have_suffered_is_not_mirrored(tmp_path: Path) -> None:
    people = np.random.default_rng(0).uniform(20, 236, (1, len(JOINTS), 2))
    map_HWC = draw_pose(people, 256, 256)
    squeezed = cv2.imdecode(cv2.imencode(".jpg", map_HWC[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1], cv2.IMREAD_COLOR)
    assert squeezed is not None
    assert is_mirrorable(map_HWC, "pose")
    assert is_mirrorable(np.zeros_like(map_HWC), "pose")
    assert not is_mirrorable(squeezed[..., ::-1], "pose")
    assert is_mirrorable(squeezed[..., ::-1], "depth")
    for folder, image in (("images", np.full_like(map_HWC, 90)), ("pose", squeezed)):
        (tmp_path / folder).mkdir()
        assert cv2.imwrite(str(tmp_path / folder / "a.png"), image)
    (tmp_path / "images" / "a.txt").write_text("a person")
    values: dict[str, Any] = {"folder": tmp_path, "condition": "pose", "width": 64, "height": 64}
    for flip in (False, True):
        given = DataConfig.model_validate(values | {"flip": flip})
        found, _ = check(given)
        assert any("cannot swap left and right" in line for line in found.lines()) == flip
        with pytest.raises(BadImage, match=r"pose/a\.png' is a pose .* save it as PNG") if flip else nullcontext():
            encode.check(tmp_path / "cache", read_pairs(given), Loader(given))  # though it was fine without flip


def test_other_maps_keep_their_colours() -> None:
    map_HWC = np.random.default_rng(2).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    assert np.array_equal(mirrored_map(map_HWC, "depth"), map_HWC[:, ::-1])
