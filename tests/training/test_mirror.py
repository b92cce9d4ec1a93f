"""A mirrored map is the map of the mirrored picture."""

import numpy as np

from controls.normal import Params, normals
from core.skeleton import JOINTS, draw_pose
from training.mirror import mirrored_map


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


def test_other_maps_keep_their_colours() -> None:
    map_HWC = np.random.default_rng(2).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    assert np.array_equal(mirrored_map(map_HWC, "depth"), map_HWC[:, ::-1])
