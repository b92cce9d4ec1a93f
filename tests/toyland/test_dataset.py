"""A built dataset: what is in it, going on after a stop, the same bytes again."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from core.errors import BadRequest
from core.skeleton import draw_pose
from toyland import arrays, dataset
from toyland.captions import caption
from toyland.render import depth_map, render
from toyland.scene import sample

SIZE, COUNT, SEED = 64, 5, 30


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read(path: Path, flag: int = cv2.IMREAD_COLOR_RGB) -> np.ndarray:
    image = cv2.imread(str(path), flag)
    assert image is not None
    return np.asarray(image)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    dataset.build(folder, COUNT, seed=SEED, size=SIZE, workers=1)
    return folder


def test_every_scene_has_its_picture_maps_and_row(built: Path) -> None:
    rows = dataset.read_rows(built)
    assert len(rows) == COUNT
    assert {path.name for path in built.iterdir()} >= {*dataset.FOLDERS, "dataset.json", "metadata.jsonl"}
    assert not (built / "parts").exists()
    people = 0
    for index, row in enumerate(rows):
        scene = sample(SEED + index)
        drawn = render(scene, SIZE)
        assert row["text"] == caption(scene)
        np.testing.assert_array_equal(read(built / row["file_name"]), drawn.picture_HWC)
        np.testing.assert_array_equal(read(built / row["canny"])[..., 0], cv2.Canny(drawn.picture_HWC, 100, 200))
        depth_HWC, depth_range = depth_map(drawn.depth_HW)
        np.testing.assert_array_equal(read(built / row["depth"]), depth_HWC)
        np.testing.assert_allclose(row["depth_range"], depth_range, atol=1e-4)
        np.testing.assert_array_equal(read(built / row["pose"]), draw_pose(drawn.joints_18x2[None].astype(np.float64), SIZE, SIZE))
        mask_HW = read(built / row["mask"], cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(mask_HW == 255, drawn.ground_HW)
        np.testing.assert_array_equal(np.where(mask_HW == 255, 0, mask_HW), drawn.instance_HW)
        assert (row["ground"], row["time"], row["seed"]) == (scene.ground, scene.time, SEED + index)
        if scene.figure is None:
            assert row["joints"] is None
            assert row["things"] == [[thing.colour, thing.shape] for thing in scene.things]
        else:
            people += 1
            joints = np.array([xy or [np.nan, np.nan] for xy in row["joints"]])
            np.testing.assert_allclose(joints, drawn.joints_18x2, atol=0.006)  # two decimals
            assert row["figure"] == [scene.figure.shirt, scene.figure.pants]
    assert 0 < people < COUNT, "the test sees both kinds of scene"


def test_building_again_changes_nothing(built: Path, tmp_path: Path) -> None:
    before = files(built)
    assert dataset.build(built, COUNT, seed=SEED, size=SIZE, workers=1) == built / "metadata.jsonl"
    assert files(built) == before
    dataset.build(tmp_path, COUNT, seed=SEED, size=SIZE, workers=1)
    assert files(tmp_path) == before


def test_a_stopped_build_goes_on_to_the_same_bytes(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "PART", 2)

    class Stop(Exception):
        pass

    def stop(done: int, count: int) -> None:
        if done >= 2:
            raise Stop

    with pytest.raises(Stop):
        dataset.build(tmp_path, COUNT, seed=SEED, size=SIZE, workers=1, on_progress=stop)
    assert not (tmp_path / "metadata.jsonl").exists(), "half a dataset does not look whole"
    drawn: list[int] = []
    build_part = dataset._build_part

    def note_and_build(out: Path, start: int, **rest: Any) -> int:
        drawn.append(start)
        return build_part(out, start, **rest)

    monkeypatch.setattr(dataset, "_build_part", note_and_build)
    dataset.build(tmp_path, COUNT, seed=SEED, size=SIZE, workers=1)
    assert drawn == [2, 4], "the finished part is not drawn again"
    assert files(tmp_path) == files(built)


def test_processes_make_the_same_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    seen: list[tuple[int, int]] = []
    dataset.build(one, 251, size=16, workers=1)
    dataset.build(two, 251, size=16, workers=2, on_progress=lambda done, count: seen.append((done, count)))
    assert files(one) == files(two)
    assert seen[-1] == (251, 251)
    assert sorted(done for done, _ in seen) == [done for done, _ in seen]


def test_another_dataset_is_not_mixed_in(built: Path) -> None:
    before = files(built)
    for other in ({"seed": SEED + 1}, {"size": 96}, {"split": "test"}):
        with pytest.raises(BadRequest, match=r"built with .*choose another --out"):
            dataset.build(built, COUNT, **({"seed": SEED, "size": SIZE} | other), workers=1)
    assert files(built) == before


def test_no_scenes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="count = 0"):
        dataset.build(tmp_path / "none", 0)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", list(arrays.COLUMNS))
def test_packed_arrays_are_the_files(built: Path, name: str) -> None:
    mapped = arrays.packed(built, name)
    rows = dataset.read_rows(built)
    assert mapped.shape == (COUNT, SIZE, SIZE) if name == "masks" else (COUNT, SIZE, SIZE, 3)
    assert not mapped.flags.writeable
    for index, row in enumerate(rows):
        flag = cv2.IMREAD_GRAYSCALE if name == "masks" else cv2.IMREAD_COLOR_RGB
        np.testing.assert_array_equal(mapped[index], read(built / row[arrays.COLUMNS[name]], flag))
    np.testing.assert_array_equal(arrays.packed(built, name), mapped)


def test_metadata_is_an_imagefolder(built: Path) -> None:
    for line in (built / "metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert {"file_name", "text", "canny", "depth", "pose", "joints", "depth_range"} <= row.keys()
        assert all((built / row[column]).is_file() for column in ("file_name", "canny", "depth", "pose", "mask"))
