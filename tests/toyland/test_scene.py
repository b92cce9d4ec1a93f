"""What a seed becomes: always the same, in bounds, and with the held-out pairs held out."""

import numpy as np
import pytest

from core.skeleton import JOINTS
from toyland import figure as figures
from toyland.scene import COLOURS, GROUNDS, HELD_OUT, SHAPES, TIMES, Scene, sample


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [sample(seed) for seed in range(600)]


def test_a_seed_is_a_scene() -> None:
    for split in ("train", "test", "composition"):
        assert sample(11, split) == sample(11, split)
    assert len({sample(11, split).texture for split in ("train", "test", "composition")}) == 3, "splits share no random stream"


def test_the_held_out_pairs_are_a_tenth_and_never_in_training(scenes: list[Scene]) -> None:
    assert len(HELD_OUT) / (len(COLOURS) * len(SHAPES)) == pytest.approx(0.1, abs=0.01)
    pairs = {(thing.colour, thing.shape) for scene in scenes for thing in scene.things}
    assert not pairs & HELD_OUT
    assert len(pairs) == len(COLOURS) * len(SHAPES) - len(HELD_OUT), "every other pair is seen"
    assert not {(thing.colour, thing.shape) for seed in range(200) for thing in sample(seed, "test").things} & HELD_OUT
    for seed in range(100):
        (thing,) = sample(seed, "composition").things
        assert (thing.colour, thing.shape) in HELD_OUT


def test_every_word_of_the_world_is_drawn(scenes: list[Scene]) -> None:
    assert {scene.ground for scene in scenes} == set(GROUNDS)
    assert {scene.time for scene in scenes} == set(TIMES)
    figure_share = np.mean([scene.figure is not None for scene in scenes])
    assert figure_share == pytest.approx(0.45, abs=0.08)  # four deviations of 600 draws
    assert {scene.figure.pose for scene in scenes if scene.figure} == set(figures.POSES)
    assert {len(scene.things) for scene in scenes if not scene.figure} == {1, 2, 3}


def test_things_stand_on_the_ground_and_apart(scenes: list[Scene]) -> None:
    for scene in scenes:
        for index, thing in enumerate(scene.things):
            for other in scene.things[:index]:
                assert np.hypot(*np.subtract(thing.position, other.position)) > thing.size + other.size
        if not scene.figure:
            assert all(solid.bound_centre[1] > 0 for solid in scene.solids)


def test_a_figure_has_fixed_bones_and_stands_on_the_ground(scenes: list[Scene]) -> None:
    for scene in scenes:
        figure = scene.figure
        if figure is None:
            continue
        at = figures.joints(figure)
        assert at.shape == (len(JOINTS), 3)
        # shoulder to elbow, elbow to wrist, hip to knee, knee to ankle, on both sides
        for start, end, length in (
            (2, 3, figures.UPPER_ARM),
            (5, 6, figures.UPPER_ARM),
            (3, 4, figures.FOREARM),
            (6, 7, figures.FOREARM),
            (8, 9, figures.THIGH),
            (11, 12, figures.THIGH),
            (9, 10, figures.SHIN),
            (12, 13, figures.SHIN),
        ):
            assert np.linalg.norm(at[end] - at[start]) == pytest.approx(length, abs=1e-4)
        lowest = at[[10, 13], 1].min()
        assert lowest == pytest.approx(0.27 if figure.pose == "star" else 0.09, abs=1e-4), "ankles are above soles; a jumper is in the air"
