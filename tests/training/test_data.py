"""Reading an imagefolder: what is right goes through rendering's placement, what is wrong is named."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from controls.geometry import place
from core.errors import BadImage, BadRequest, Mismatch
from training.data import DataConfig, Loader, read_pairs


def write(folder: Path, rows: list[dict[str, Any]], sizes: dict[str, tuple[int, int]] | None = None) -> Path:
    """An imagefolder with these rows and random pictures of (width, height) at their paths."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for path, (width, height) in (sizes or {"a.png": (80, 80), "a_hint.png": (80, 80)}).items():
        (folder / path).parent.mkdir(exist_ok=True)
        assert cv2.imwrite(str(folder / path), rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


ROW = {"file_name": "a.png", "text": "a red sphere", "hint": "a_hint.png"}


def config(folder: Path, **changes: Any) -> DataConfig:
    return DataConfig.model_validate({"folder": folder, "condition": "hint", "width": 64, "height": 64, **changes})


def test_rows_become_pairs(tmp_path: Path) -> None:
    folder = write(tmp_path, [ROW, {**ROW, "text": "größer"}])
    first, second = read_pairs(config(folder))
    assert (first.picture, first.conditions, first.caption) == (folder / "a.png", (folder / "a_hint.png",), "a red sphere")
    assert second.caption == "größer"
    renamed = write(tmp_path / "named", [{"img": "a.png", "words": "x", "hint": "a_hint.png"}])
    assert read_pairs(config(renamed, picture="img", caption="words"))[0].caption == "x"


@pytest.mark.parametrize("resample", ["area", "nearest", "lines"])
def test_pictures_and_conditions_are_placed_as_rendering_places_them(tmp_path: Path, resample: str) -> None:
    folder = write(tmp_path, [ROW], {"a.png": (130, 90), "a_hint.png": (130, 90)})
    (pair,) = read_pairs(config(folder))
    loader = Loader(config(folder, resample=resample))
    placement = place(130, 90, 64, 64, "crop")
    for found, name, how in ((loader.picture(pair), "a.png", "area"), (loader.condition(pair), "a_hint.png", resample)):
        source_HWC = cv2.imread(str(folder / name))[..., ::-1]
        assert found.shape == (64, 64, 3)
        assert found.dtype == np.uint8
        assert np.array_equal(found, placement.resize(np.ascontiguousarray(source_HWC), how))  # type: ignore[arg-type]


def test_a_condition_named_as_a_control_is_resized_as_its_maps_are() -> None:
    def resample(condition: str, **changes: Any) -> str:
        return Loader(config(Path(), condition=condition, **changes)).resample

    assert resample("canny") == "lines"
    assert resample("depth") == "area"
    assert resample("my_condition") == "area"
    assert resample("canny", resample="nearest") == "nearest"


def test_pictures_of_the_right_size_pass_unchanged(tmp_path: Path) -> None:
    folder = write(tmp_path, [ROW], {"a.png": (64, 64), "a_hint.png": (64, 64)})
    (pair,) = read_pairs(config(folder))
    assert np.array_equal(Loader(config(folder)).condition(pair), cv2.imread(str(folder / "a_hint.png"))[..., ::-1])


def test_mirrored_pairs_follow_the_others(tmp_path: Path) -> None:
    folder = write(tmp_path, [ROW, ROW])
    pairs = read_pairs(config(folder, flip=True))
    assert [pair.mirrored for pair in pairs] == [False, False, True, True]
    loader = Loader(config(folder))
    assert np.array_equal(loader.picture(pairs[2]), loader.picture(pairs[0])[:, ::-1])
    assert np.array_equal(loader.condition(pairs[2]), loader.condition(pairs[0])[:, ::-1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("\n\n", "has no rows"),
        ("{", r"metadata\.jsonl:1: not JSON"),
        ("[" * 100_000, r"metadata\.jsonl:1: not JSON"),
        ("[1]", r"metadata\.jsonl:1: a row is an object with the columns file_name, text and hint"),
        (json.dumps({**ROW, "hint": 3}), "column 'hint' holds 3, expected text"),
        (json.dumps({"file_name": "a.png", "text": "x", "hints": "a_hint.png"}), "unknown column 'hint': did you mean 'hints'"),
        (json.dumps(ROW) + "\n" + json.dumps({**ROW, "hint": "b.png"}), "1 of the 4 files .* are missing, the first is .*b.png"),
    ],
)
def test_bad_metadata_is_named(tmp_path: Path, text: str, message: str) -> None:
    folder = write(tmp_path, [ROW])
    (folder / "metadata.jsonl").write_text(text)
    with pytest.raises(BadRequest, match=message):
        read_pairs(config(folder))


def test_metadata_in_another_encoding_or_nowhere_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, [ROW])
    (folder / "metadata.jsonl").write_bytes('{"text": "größer"}'.encode("latin-1"))
    with pytest.raises(BadRequest, match="is not UTF-8"):
        read_pairs(config(folder))
    with pytest.raises(BadRequest, match="cannot be read"):
        read_pairs(config(tmp_path / "nowhere"))


def test_a_condition_of_other_proportions_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, [ROW], {"a.png": (80, 80), "a_hint.png": (80, 64)})
    with pytest.raises(Mismatch, match=r"is 80x80 and its condition .* 80x64"):
        Loader(config(folder)).check(read_pairs(config(folder)))
    same = write(tmp_path / "same", [ROW], {"a.png": (160, 120), "a_hint.png": (80, 60)})
    Loader(config(same)).check(read_pairs(config(same)))


def test_a_truncated_picture_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, [ROW])
    data = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadImage, match=r"a\.png"):
        Loader(config(folder)).picture(read_pairs(config(folder))[0])
