"""The pose map against the joints it was drawn from, OpenPose's own conventions, and PCK's closed form."""

import numpy as np
import pytest

from core.errors import BadRequest
from core.skeleton import COLOURS, JOINTS, LIMB_JOINTS, LIMBS, Joints, detect_joints, draw_pose, oks, pck


def standing(scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)) -> Joints:
    """One figure on a 128 px picture whose joints lie apart."""
    body = [(64, 24), (64, 38), (50, 38), (42, 54), (36, 68), (78, 38), (88, 52), (98, 64), (56, 70), (50, 92), (48, 116)]
    body += [(72, 70), (78, 92), (82, 116), (60, 18), (68, 18), (53, 22), (75, 22)]
    return np.array(body, float)[None] * scale + shift


def test_the_limbs_are_a_tree_over_all_joints() -> None:
    reached = {1}
    for _ in LIMBS:
        reached |= {b for a, b in LIMBS if a in reached}
    assert reached == set(range(len(JOINTS)))
    assert len(LIMBS) == len(JOINTS) - 1
    assert len(set(COLOURS)) == len(COLOURS) == len(JOINTS)


@pytest.mark.parametrize("size_px", [128, 256, 512])
def test_joints_come_back_from_the_drawn_map(size_px: int) -> None:
    wanted = standing(size_px / 128)
    found = detect_joints(draw_pose(wanted, size_px, size_px))
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1.0  # a disc 5 px across has its centroid within a pixel, also where a neighbour covers some


def test_published_colours_on_black_without_antialiasing() -> None:
    canvas = draw_pose(standing(4), 512, 512)
    for (x, y), colour in zip(standing(4)[0], COLOURS, strict=True):
        assert tuple(canvas[int(y), int(x)]) == colour
    limbs = {tuple(int(0.6 * channel) for channel in colour) for colour in COLOURS[:17]}
    assert {tuple(int(v) for v in pixel) for pixel in np.unique(canvas.reshape(-1, 3), axis=0)} <= limbs | set(COLOURS) | {(0, 0, 0)}
    assert (canvas[0, 0] == 0).all()


def test_discs_are_centred_to_a_fraction_of_a_pixel() -> None:
    people = np.full((1, 18, 2), np.nan)
    people[0, 4] = (20.5, 30.5)
    rows, columns = np.nonzero(draw_pose(people, 64, 64).any(axis=2))
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == (20.5, 30.5)


def test_unseen_joints_draw_nothing_and_stay_unseen() -> None:
    people = standing()
    people[0, [4, 17]] = np.nan
    found = detect_joints(draw_pose(people, 128, 128))
    assert np.isnan(found[0, [4, 17]]).all()
    assert np.isfinite(np.delete(found[0], [4, 17], axis=0)).all()
    assert not draw_pose(np.full((1, 18, 2), np.nan), 64, 64).any()
    assert detect_joints(np.zeros((64, 64, 3), np.uint8)).shape == (0, 18, 2)


def test_two_people_are_told_apart() -> None:
    people = np.concatenate([standing(2, (-60, 0)), standing(2, (90, 10))])
    found = detect_joints(draw_pose(people, 384, 256))
    found = found[np.argsort(found[:, 1, 0])]
    assert found.shape == people.shape
    assert np.abs(found - people).max() <= 1.0


def test_points_far_outside_do_not_break_the_drawing() -> None:
    people = standing()
    people[0, 4] = (1e9, -1e9)
    draw_pose(people, 128, 128)


def test_wrong_shape_is_refused() -> None:
    with pytest.raises(BadRequest, match="18 joints"):
        draw_pose(np.zeros((18, 2)), 64, 64)


def test_pck_counts_limb_joints_within_a_tenth_of_the_height() -> None:
    wanted = standing()[0]
    height = wanted[:, 1].max() - wanted[:, 1].min()
    assert pck(wanted, wanted) == 1.0
    moved = wanted.copy()
    moved[LIMB_JOINTS[0]] += (0.099 * height, 0)
    moved[LIMB_JOINTS[1]] += (0, 0.101 * height)
    moved[LIMB_JOINTS[2]] = np.nan
    moved[0] += 100  # the nose is no limb joint
    assert pck(wanted, moved) == pytest.approx(0.8)
    hidden = wanted.copy()
    hidden[list(LIMB_JOINTS[:5])] = np.nan
    assert pck(hidden, moved) == 1.0
    assert np.isnan(pck(np.full((18, 2), np.nan), wanted))


def test_oks_is_cocos_formula() -> None:
    wanted = standing()[0]
    assert oks(wanted, wanted) == 1.0
    moved = wanted.copy()
    moved[0] += (3, 4)  # the nose by 5 pixels
    area = np.prod(np.ptp(wanted, axis=0))
    assert oks(wanted, moved) == pytest.approx((17 + np.exp(-25 / (2 * area * (2 * 0.026) ** 2))) / 18)
    moved[0] = np.nan  # not found counts as infinitely far
    assert oks(wanted, moved) == pytest.approx(17 / 18)
    assert np.isnan(oks(np.full((18, 2), np.nan), wanted))
