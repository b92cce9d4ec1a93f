"""Measures against closed forms, and the colour judge against scenes whose colours are known."""

import numpy as np
import pytest

from toyland.measure import Palette, delta_125, psnr, regions
from toyland.render import depth_map, render
from toyland.scene import sample


@pytest.fixture(scope="module")
def palette() -> Palette:
    return Palette.measure(250)


def test_psnr_is_its_formula() -> None:
    image_HWC = np.full((8, 8, 3), 100, np.uint8)
    assert psnr(image_HWC, image_HWC + 5) == pytest.approx(20 * np.log10(255 / 5))
    assert psnr(image_HWC, image_HWC) == pytest.approx(60)
    mask_HW = np.zeros((8, 8), bool)
    assert np.isnan(psnr(image_HWC, image_HWC, mask_HW))
    mask_HW[0] = True
    other_HWC = image_HWC.copy()
    other_HWC[0] += 10
    assert psnr(image_HWC, other_HWC, mask_HW) == pytest.approx(20 * np.log10(255 / 10))
    assert psnr(image_HWC, other_HWC, ~mask_HW) == pytest.approx(60)


def test_delta_is_one_for_the_truth_at_any_scale_and_falls_with_error() -> None:
    depth_HW = render(sample(3), 64).depth_HW
    exact_HW = depth_map(depth_HW)[0][..., 0]
    # whole levels of 255 are coarser than a quarter of the distance only beyond some twenty metres
    assert delta_125(depth_HW, exact_HW) > 0.85
    near = np.where(depth_HW < 15, depth_HW, np.inf).astype(np.float32)
    assert delta_125(near, exact_HW) > 0.99
    assert delta_125(near, (40 + exact_HW * 0.5).astype(np.uint8)) > 0.97
    assert delta_125(near, np.full_like(exact_HW, 9)) < 0.5
    assert delta_125(near, np.rot90(exact_HW).copy()) < 0.6


def test_regions_are_what_has_a_name() -> None:
    people = things = 0
    for seed in range(30):
        scene = sample(seed, "test")
        found = regions(scene, render(scene))
        colours = [region.name for region in found if region.what == "colour"]
        if scene.figure:
            people += 1
            assert set(colours) == {scene.figure.shirt, scene.figure.pants}
        else:
            things += 1
            assert sorted(colours) == sorted(thing.colour for thing in scene.things)
        assert [(region.what, region.name) for region in found[len(colours) :]] == [("ground", scene.ground), ("sky", scene.time)]
        together = np.sum([region.mask_HW for region in found], axis=0)
        assert together.max() == 1, "regions do not overlap"
        if not scene.figure:
            assert together.min() == 1, "and cover everything that is not skin, hair or shoe"
    assert people
    assert things


def test_the_judge_knows_true_colours(palette: Palette) -> None:
    answers: dict[str, list[float]] = {"colour": [], "ground": [], "sky": []}
    for seed in range(60):
        scene = sample(seed, "test")
        rendered = render(scene)
        for what, right in palette.as_named(rendered.picture_HWC, regions(scene, rendered), scene.time).items():
            answers[what] += right
    assert np.mean(answers["colour"]) == 1
    assert np.mean(answers["ground"]) >= 0.98
    assert np.mean(answers["sky"]) == 1


def test_the_judge_sees_wrong_colours(palette: Palette) -> None:
    scene = sample(2, "test")
    rendered = render(scene)
    turned_HWC = rendered.picture_HWC[..., ::-1].copy()
    turned_HWC[rendered.instance_HW > 0] = (10, 200, 30)
    answers = palette.as_named(turned_HWC, regions(scene, rendered), scene.time)
    assert scene.things[0].colour == "black"
    assert answers["colour"] == [0.0]
    assert answers["sky"] == [0.0], "a blue sky with red and blue exchanged is a sunset"
