"""The extractors that need no network, against direct OpenCV calls, closed forms and pictures whose answer is known."""

import cv2
import numpy as np
import pytest

from controls import blur, colour_grid, inpaint, invert, lineart, lines, mask, normal, recolour, regions, scribble, shuffle, softedge, tile
from controls import threshold as threshold_kind
from core.control import Image
from core.errors import BadImage, BadRequest

RNG = np.random.default_rng(7)
NOISE = RNG.integers(0, 256, (64, 96, 3), np.uint8)


def drawing() -> Image:
    """Dark strokes and a filled box on light paper."""
    paper = np.full((128, 128, 3), 230, np.uint8)
    cv2.line(paper, (20, 20), (100, 40), (40, 30, 60), 2)
    cv2.rectangle(paper, (40, 60), (90, 110), (60, 90, 160), -1)
    return paper


def test_invert_and_blur_are_what_they_say() -> None:
    np.testing.assert_array_equal(invert.extract(NOISE, invert.Params()), 255 - NOISE)
    np.testing.assert_array_equal(blur.extract(NOISE, blur.Params(sigma=4)), cv2.GaussianBlur(NOISE, (0, 0), 4))


def test_thresholds() -> None:
    bright = (NOISE > 100).all(axis=2)
    np.testing.assert_array_equal(threshold_kind.extract(NOISE, threshold_kind.Params(level=100))[..., 0], bright * 255)
    _, otsu = cv2.threshold(cv2.cvtColor(drawing(), cv2.COLOR_RGB2GRAY), 0, 255, cv2.THRESH_OTSU)
    np.testing.assert_array_equal(threshold_kind.extract(drawing(), threshold_kind.Params(automatic=True))[..., 1], otsu)


def test_scribbles_are_xdogs() -> None:
    """The published formula on floats, but for pixels whose difference lies within a rounding of the threshold."""
    fine, broad = (cv2.GaussianBlur(drawing().astype(np.float32), (0, 0), sigma) for sigma in (0.5, 5.0))
    difference = 2 * (broad - fine).min(axis=2).clip(0, 255)
    ours = scribble.extract(drawing(), scribble.Params())[..., 0] > 0
    clear = np.abs(difference - 32) > 4
    np.testing.assert_array_equal(ours[clear], (difference > 32)[clear])
    assert ours.any()
    assert clear.mean() > 0.9


def test_line_art_is_the_standard_annotators() -> None:
    """The published formula, cut to whole grey levels as there."""
    difference = (cv2.GaussianBlur(drawing().astype(np.float32), (0, 0), 6.0) - drawing()).min(axis=2).clip(0, 255)
    scale = 127 / max(16, np.median(difference[difference > 8]))
    ours = lineart.extract(drawing(), lineart.Params())[..., 0]
    np.testing.assert_array_equal(ours, (difference * scale).clip(0, 255).astype(np.uint8))
    assert ours.max() > 200


def test_soft_edges_of_a_step_peak_on_it_and_grow_with_it() -> None:
    def step(height: int) -> Image:
        picture = np.full((64, 64, 3), 20, np.uint8)
        picture[:, 32:] = 20 + height
        return picture

    profiles = [softedge.extract(step(height), softedge.Params(scales=1))[32, :, 0].astype(int) for height in (60, 120, 235)]
    for profile, height in zip(profiles, (60, 120, 235), strict=True):
        assert set(np.flatnonzero(profile == profile.max())) == {31, 32}
        assert profile.max() == pytest.approx(height, rel=0.08)  # a full step is white, and the scale is linear
        assert profile[:24].max() == profile[40:].max() == 0
    wide = softedge.extract(step(120), softedge.Params(scales=4))[32, :, 0]
    assert (wide > 20).sum() > (profiles[1] > 20).sum()
    assert len(np.unique(softedge.extract(NOISE, softedge.Params(levels=4)))) <= 4


def test_segments_are_where_they_were_drawn() -> None:
    found = lines.segments(drawing(), lines.Params())
    for wanted in [(20, 20, 100, 40), (40, 60, 90, 60), (90, 60, 90, 110), (40, 110, 90, 110), (40, 60, 40, 110)]:
        ends = np.array([wanted, wanted[2:] + wanted[:2]])
        assert np.abs(found[:, None] - ends).max(axis=2).min() < 4
    assert len(lines.segments(drawing(), lines.Params(length=0.6))) < len(found)
    assert lines.segments(np.full((64, 64, 3), 9, np.uint8), lines.Params()).shape == (0, 4)


def test_tiles_lose_detail_and_keep_means() -> None:
    np.testing.assert_array_equal(tile.extract(NOISE, tile.Params()), NOISE)
    small = tile.extract(NOISE, tile.Params(shrink=4))
    direct = cv2.resize(cv2.resize(NOISE, (24, 16), interpolation=cv2.INTER_AREA), (96, 64), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(small, direct)
    assert abs(float(small.mean()) - float(NOISE.mean())) < 1


def test_fixed_colours_are_the_sources_and_detail_the_pictures() -> None:
    source = np.full((64, 64, 3), (90, 140, 60), np.uint8)
    picture = np.full((64, 64, 3), (120, 100, 80), np.uint8)
    picture[::2] += 20
    fixed = tile.fix_colours(picture, source).astype(int)
    assert np.abs(fixed.mean(axis=(0, 1)) - (90, 140, 60)).max() < 0.5
    assert (fixed[10] - fixed[11]).tolist() == [[20, 20, 20]] * 64


def test_a_colour_grid_holds_every_cells_mean() -> None:
    grid = colour_grid.extract(NOISE, colour_grid.Params(cell=32))
    for top in (0, 32):
        for left in (0, 32, 64):
            cell = grid[top : top + 32, left : left + 32]
            assert (cell == cell[0, 0]).all()
            assert np.abs(cell[0, 0] - NOISE[top : top + 32, left : left + 32].mean(axis=(0, 1))).max() <= 1
    assert len(np.unique(colour_grid.extract(NOISE[:50, :70], colour_grid.Params(cell=16)).reshape(-1, 3), axis=0)) == 3 * 4


def test_shuffling_keeps_colours_and_follows_its_seed() -> None:
    picture = np.repeat(np.repeat(RNG.integers(0, 256, (4, 4, 3), np.uint8), 32, axis=0), 32, axis=1)
    one, same, other = (shuffle.extract(picture, shuffle.Params(seed=seed, wave=64)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).mean() > 0.3
    known = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
    assert np.mean([tuple(colour) in known for colour in one.reshape(-1, 3).tolist()]) > 0.7  # but for the blended borders


def test_a_picture_too_long_to_be_shuffled_is_refused() -> None:
    with pytest.raises(BadImage, match="40000x2 cannot be shuffled: make its sides 32766 pixels at most"):
        shuffle.extract(np.zeros((2, 40_000, 3), np.uint8), shuffle.Params())
    assert shuffle.extract(np.zeros((1, 32_766, 3), np.uint8), shuffle.Params()).shape == (1, 32_766, 3)


def test_recolouring_takes_luminance_or_intensity_and_a_gamma() -> None:
    lab = cv2.cvtColor(NOISE, cv2.COLOR_RGB2LAB)[..., 0]
    np.testing.assert_array_equal(recolour.extract(NOISE, recolour.Params())[..., 2], lab)
    intensity = recolour.extract(NOISE, recolour.Params(channel="intensity", gamma=2))[..., 0]
    np.testing.assert_array_equal(intensity, np.rint(255 * (NOISE.max(axis=2) / 255) ** 2).astype(np.uint8))


def test_a_hole_is_black_and_nothing_else_is() -> None:
    picture = NOISE.copy()
    picture[10:20, 30:50] = 255
    picture[40:44, 40:44] = 0  # black, but no hole
    map_HWC = inpaint.extract(picture, inpaint.Params(grow=0))
    marked = (picture >= 250).all(axis=2)
    np.testing.assert_array_equal(inpaint.hole(map_HWC), marked)
    assert np.abs(map_HWC.astype(int) - picture)[~marked].max() <= 1
    grown = inpaint.hole(inpaint.extract(picture, inpaint.Params(grow=3)))
    np.testing.assert_array_equal(grown, cv2.dilate(marked.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0)


def test_inpainting_is_measured_outside_the_hole_alone() -> None:
    picture = NOISE.copy()
    picture[10:20, 30:50] = 255
    wanted = inpaint.extract(picture, inpaint.Params(grow=0))
    drawn = picture.copy()
    drawn[10:20, 30:50] = 77
    assert inpaint.compare(wanted, drawn).value == 1.0
    assert inpaint.compare(wanted, 255 - drawn).value < 0.2


@pytest.mark.parametrize(("colour", "marked"), [((255, 0, 255), "magenta"), ((0, 255, 0), "green"), ((0, 0, 0), "black")])
def test_other_marks(colour: tuple[int, int, int], marked: str) -> None:
    picture = (NOISE // 2 + 60).astype(np.uint8)
    picture[5:9, 5:9] = colour
    found = inpaint.hole(inpaint.extract(picture, inpaint.Params(marked=marked, grow=0)))
    assert found.sum() == 16
    assert found[5:9, 5:9].all()


def test_the_normals_of_a_sphere_and_of_a_plane() -> None:
    """Red is left, green is up, blue faces the camera."""
    rows, columns = np.mgrid[:201, :201]
    x, y = (columns - 100) / 80, (rows - 100) / 80
    height = np.sqrt(np.maximum(1 - x * x - y * y, 0))
    params = normal.Params(source="depth", strength=80 / 201, smooth=0.0)  # the ball's radius is 80 of 201 pixels
    map_HWC = normal.extract(np.rint(height * 255)[..., None].repeat(3, 2).astype(np.uint8), params)
    inside = x * x + y * y < 0.7**2
    wanted = np.stack([-x, -y, height], axis=2)
    got = map_HWC / 127.5 - 1
    angle = np.degrees(np.arccos((wanted * got).sum(axis=2).clip(-1, 1)))
    assert np.median(angle[inside]) < 4  # a level of 255 is a third of a pixel here
    assert (map_HWC[100, 50] > map_HWC[100, 150]).tolist()[0]  # the left flank is red
    assert map_HWC[50, 100, 1] > 160 > map_HWC[150, 100, 1]  # the top is green
    assert map_HWC[100, 100].tolist() == [128, 128, 255]
    ground = np.linspace(0, 255, 200).astype(np.uint8)[:, None, None].repeat(200, 1).repeat(3, 2)
    plane = normal.extract(ground, normal.Params(source="depth"))[100, 100] / 127.5 - 1
    assert plane == pytest.approx([0, 0.7071, 0.7071], abs=0.02)  # rises by its own length: it faces up at 45°
    for smooth in (0.0, 3.0, 20.0):  # up to its border
        whole = normal.extract(ground, normal.Params(source="depth", smooth=smooth)) / 127.5 - 1
        assert np.abs(whole[:, 0] - (0, 0.7071, 0.7071)).max() < (0.2 if smooth == 0 else 0.05)  # unsmoothed, a level is a step


def test_regions_are_the_pictures_flat_parts() -> None:
    picture = np.full((120, 160, 3), (200, 180, 90), np.uint8)
    cv2.circle(picture, (50, 60), 30, (20, 60, 200), -1)
    cv2.rectangle(picture, (90, 30), (140, 100), (60, 160, 70), -1)
    found = regions.extract(picture, regions.Params(count=3))
    assert len(np.unique(found.reshape(-1, 3), axis=0)) == 3
    assert (np.abs(found.astype(int) - picture).max(axis=2) > 3).mean() < 0.002  # corners, which lose a pixel to the cleaning
    assert len(np.unique(regions.extract(NOISE, regions.Params(count=5, clean=0)).reshape(-1, 3), axis=0)) == 5
    recoloured = found[..., ::-1]
    assert regions.compare_maps(found, recoloured).value == 1.0  # colours do not count
    assert regions.compare_maps(found, found[::-1]).value < 0.9


def test_a_thing_is_cut_out_along_its_edge() -> None:
    rng = np.random.default_rng(1)
    picture = np.full((300, 400, 3), (70, 110, 60), np.uint8)
    inside = np.zeros((300, 400), np.uint8)
    cv2.circle(inside, (190, 160), 70, 1, -1)
    picture[inside > 0] = (200, 60, 50)
    picture = (picture + rng.normal(0, 6, picture.shape)).clip(0, 255).astype(np.uint8)
    params = mask.Params(left=0.2, top=0.2, right=0.8, bottom=0.9)
    found = mask.extract(picture, params)[..., 0] > 0
    assert (found & (inside > 0)).sum() / (found | (inside > 0)).sum() > 0.97
    assert not mask.extract(picture, mask.Params(left=0, top=0, right=0.1, bottom=0.1)).any()
    pointed = mask.extract(picture, mask.Params(left=0, top=0.01, right=1, bottom=1, x=0.475, y=0.53))[..., 0] > 0
    assert pointed[160, 190]


def test_boxes_and_points_that_make_no_sense_are_refused() -> None:
    with pytest.raises(BadRequest, match="give left < right"):
        mask.CONTROL.parse_params({"left": 0.9, "right": 0.2})
    with pytest.raises(BadRequest, match="both x and y"):
        mask.CONTROL.parse_params({"x": 0.5})
