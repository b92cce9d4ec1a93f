"""What of a pair is shown: stacked conditions, masks, random crops of everything alike, and sizes by proportions and resolution."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from controls.prepare import load_map
from core.errors import BadImage, BadRequest, Mismatch
from core.request import ControlUnit
from training import encode
from training.buckets import bucket_levels, fitting
from training.data import DataConfig, Loader, read_pairs
from training.texts import SizesTold

WIDTH, HEIGHT = 120, 90


def ramps() -> NDArray[np.uint8]:
    """A picture whose red says the column and whose green says the row."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([2 * x, 2 * y, np.full_like(x, 77)], axis=2).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pairs whose depth is the picture itself at half the size, with edges and a mask of the left half."""
    rows = []
    for name in ("a", "b"):
        picture_HWC = ramps()
        half_HWC = cv2.resize(picture_HWC, (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA)
        mask_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask_HW[:, : WIDTH // 2] = 255
        images = {"image": picture_HWC[..., ::-1], "depth": half_HWC[..., ::-1], "canny": cv2.Canny(picture_HWC, 10, 20), "where": mask_HW}
        for column, image in images.items():
            assert cv2.imwrite(str(tmp_path / f"{name}-{column}.png"), image)
        rows.append({"file_name": f"{name}-image.png", "text": name, **{column: f"{name}-{column}.png" for column in images}})
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def config(folder: Path, **changes: Any) -> DataConfig:
    return DataConfig.model_validate({"folder": folder, "condition": "depth", "width": 64, "height": 64, **changes})


def test_stacked_conditions_are_each_as_rendering_places_them(folder: Path) -> None:
    given = config(folder, condition=["canny", "depth"])
    pair = read_pairs(given)[0]
    loader = Loader(given)
    stack_HWC = loader.condition(pair)
    assert stack_HWC.shape == (64, 64, 6)
    for number, kind in enumerate(("canny", "depth")):
        unit = ControlUnit(kind=kind, image=folder / f"a-{kind}.png", ready=True)
        wanted_HWC = load_map(unit, 64, 64).map_HWC
        assert np.array_equal(stack_HWC[..., 3 * number : 3 * number + 3], wanted_HWC)
        assert np.array_equal(loader.maps(pair)[number], wanted_HWC)
    mirrored_HWC = loader.condition(replace(pair, mirrored=True))
    assert np.array_equal(mirrored_HWC, stack_HWC[:, ::-1])


def test_a_grey_condition_is_one_channel(folder: Path) -> None:
    given = config(folder, condition=["canny", "depth"], grey=["depth"])
    pair = read_pairs(given)[0]
    stack_HWC = Loader(given).condition(pair)
    assert stack_HWC.shape == (64, 64, 4)
    assert np.array_equal(stack_HWC[..., 3], np.rint(Loader(given).maps(pair)[1].mean(axis=2)).astype(np.uint8))


def test_stacked_conditions_can_be_extracted(folder: Path) -> None:
    given = config(folder, condition=["canny", "softedge"], extract=True)
    loader, pair = Loader(given), read_pairs(given)[0]
    alone = [Loader(config(folder, condition=kind, extract=True)).condition(pair) for kind in ("canny", "softedge")]
    assert np.array_equal(loader.condition(pair), np.concatenate(alone, axis=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"condition": ["canny", "depht"]}, "unknown control 'depht': did you mean 'depth'"),
        ({"condition": ["canny", "canny"]}, "the same one twice"),
        ({"condition": ["canny", "depth"], "kind": "canny"}, "kind names 1 kinds for 2 conditions"),
        ({"condition": ["canny", "depth"], "grey": ["pose"]}, "grey names 'pose'"),
        ({"condition": ["canny", "depth"], "extract": True, "params": {"low": 1}}, "one extractor's settings"),
        ({"zoom": 2.0}, "set crops to 1 or more"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((BadRequest, ValueError), match=message):
        Loader(config(folder, **changes))


@pytest.mark.parametrize("zoom", [1.0, 2.5])
def test_random_crops_show_the_same_of_picture_condition_and_mask(folder: Path, zoom: float) -> None:
    given = config(folder, crops=6, zoom=zoom, mask="where", flip=True)
    pairs = read_pairs(given)
    assert len(pairs) == 2 * 6 * 2
    loader, lefts, shares = Loader(given), set(), set()
    for pair in pairs:
        picture_HWC, map_HWC, mask_HWC = loader.picture(pair), loader.condition(pair), loader.mask(pair)
        left, top, right, bottom = loader.placement(pair, WIDTH, HEIGHT).box
        assert left >= 0
        assert top >= 0
        assert right <= WIDTH
        assert bottom <= HEIGHT
        assert (right - left) == pytest.approx(bottom - top)  # square, as what is trained on
        lefts.add((round(left, 3), round(top, 3)))
        shares.add(round((bottom - top) / HEIGHT, 3))
        # the ramps say which column and row is seen: within what two ways of averaging and enlarging differ by
        assert float(np.abs(picture_HWC.astype(int) - map_HWC).mean()) < 3
        columns_W = picture_HWC[..., 0].mean(axis=0) / 2
        middle_W = left + (np.arange(64) + 0.5) * (right - left) / 64 - 0.5
        wanted_W = middle_W[::-1] if pair.mirrored else middle_W
        assert float(np.abs(columns_W - wanted_W).max()) < 1.0
        inside_W = mask_HWC[0, :, 0] > 127
        clear_W = np.abs(wanted_W - (WIDTH // 2 - 0.5)) > 2
        assert np.array_equal(inside_W[clear_W], (wanted_W < WIDTH // 2 - 0.5)[clear_W])
    assert len(lefts) == 12  # mirrored pairs show what the others do
    assert (len(shares) == 1) == (zoom == 1.0)
    assert min(shares) >= round(1 / zoom, 3)
    assert [loader.view(pair) for pair in pairs] == [Loader(given).view(pair) for pair in read_pairs(given)]
    assert len({loader.view(pair) for pair in pairs}) == 24


def test_sdxl_is_told_where_a_crop_lies_in_the_picture_that_is_shown(folder: Path) -> None:
    given = config(folder, crops=6, zoom=2.0, flip=True)
    pairs = read_pairs(given)
    loader = Loader(given)
    told = SizesTold({pair.picture: (WIDTH, HEIGHT) for pair in pairs}, pairs, loader)(range(len(pairs)))["time_ids"]
    for pair, (high, wide, top, left, height, width) in zip(pairs, told.tolist(), strict=True):
        assert (high, wide, height, width) == (HEIGHT, WIDTH, 64, 64)
        picture_HWC = loader.picture(pair)  # whose ramps say which column and row is seen
        columns_W = picture_HWC[..., 0].mean(axis=0) / 2
        first = WIDTH - 1 - columns_W[0] if pair.mirrored else columns_W[0]
        box = loader.placement(pair, WIDTH, HEIGHT).box
        scale = 64 / (box[2] - box[0])
        # the middle of the first pixel, and of one in the file; the ramp is flattened at its ends by half a pixel
        assert left == pytest.approx((first + 0.5) * scale - 0.5, abs=2)
        assert top == pytest.approx((picture_HWC[0, :, 1].mean() / 2 + 0.5) * scale - 0.5, abs=2)


def test_a_mask_that_hides_all_is_refused(folder: Path) -> None:
    given = config(folder, mask="where")
    pair = read_pairs(given)[0]
    assert cv2.imwrite(str(folder / "a-where.png"), np.zeros((HEIGHT, WIDTH), np.uint8))
    with pytest.raises(BadImage, match=r"a-where\.png' is all black"):
        Loader(given).check_pair(pair)
    assert cv2.imwrite(str(folder / "a-where.png"), np.full((HEIGHT, HEIGHT), 255, np.uint8))
    with pytest.raises(Mismatch, match=r"its mask .* 90x90: both need the same proportions"):
        Loader(given).check_pair(pair)


def test_pictures_train_at_the_largest_resolution_they_fill(folder: Path, tmp_path: Path) -> None:
    levels = bucket_levels((64, 64), 3, (2.0, 1.0))
    assert levels[0][1] == (64, 64)
    assert levels[1][1] == (128, 128)
    assert all(
        width * height == pytest.approx(64 * 64 * (1 + 3 * number), rel=0.1) for number in (0, 1) for width, height in levels[number]
    )
    assert fitting(levels, 300, 300) == (128, 128)
    assert fitting(levels, 80, 170) == levels[0][0]  # tall, and too narrow for the larger one
    assert fitting(levels, 20, 20) == (64, 64)  # enlarged, where nothing else is left
    assert fitting(bucket_levels((512, 768), 0, (0.5, 1.0)), 1000, 700) == (256, 384)
    given = config(folder, scales=(0.5, 1.0), width=96, height=96)
    pairs = read_pairs(given)
    sizes = encode.sizes_of(given, pairs, tmp_path / "contents.json")
    assert {Loader(given, sizes).size(pair) for pair in pairs} == {(48, 48)}  # 90 rows are fewer than 96
    assert encode.sizes_of(config(folder), pairs, tmp_path / "contents.json") == {}
