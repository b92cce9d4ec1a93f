"""The protocol on tiny untrained models: what is drawn, what is compared with what, and that it goes on where it stopped."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controls import canny
from core.errors import BadModel, BadRequest
from core.images import encode_png
from core.request import ControlUnit, RenderRequest
from evaluation import run
from evaluation.bench import ENDS, WEIGHTS, Bench, Reading, Settings
from evaluation.cases import Pictures, Scenes
from evaluation.run import NOTES, evaluate
from pipelines.opening import Opening
from renderer import Renderer
from tests import tinymodels
from toyland.captions import caption
from toyland.render import depth_map, render
from toyland.scene import sample

FIELDS = {"width": 64, "height": 64, "steps": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base with a ControlNet for canny."""
    home = tmp_path_factory.mktemp("models")
    base = tinymodels.build_base(home / "base")
    tinymodels.build_controlnet(home / "controlnet-canny", base, seed=1)
    return str(base)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        picture = np.full((48, 80, 3), (70, 110, 60), np.uint8)
        picture[10:30, 20 + 8 * number : 50] = (210, 40, 30)
        (folder / f"{number}.png").write_bytes(encode_png(picture))
        (folder / f"{number}.txt").write_text(f"a box, number {number}\n")
    return folder


def test_every_setting_is_drawn_by_the_renderer_and_held_against_the_same_map(model: str, tmp_path: Path) -> None:
    settings = Settings(model=model, kinds=("canny",), seeds=2, seed=40, sweep=1, fields=FIELDS, opening=Opening("cpu"))
    bench = Bench(settings, Scenes(2), tmp_path)
    first, second = bench([0, 1]).values()
    assert [(reading.what, reading.at) for reading in first] == [
        ("floor", 0.0),
        ("ceiling", 1.0),
        ("value", 1.0),
        *(("weight", weight) for weight in WEIGHTS),
        *(("end", end) for end in ENDS),
    ]
    assert [reading.what for reading in second] == ["floor", "ceiling", "value"]
    truth_HWC = render(sample(1, "test"), 64).picture_HWC
    map_HWC = canny.extract(truth_HWC, canny.Params())
    (tmp_path / "map.png").write_bytes(encode_png(map_HWC))
    unit = ControlUnit(kind="canny", image=tmp_path / "map.png", ready=True)
    renderer = Renderer.open(model, "cpu")
    (alone,) = bench([1]).values()
    for reading, controls in ((alone[0], ()), (alone[2], (unit,))):
        common = {"prompt": caption(sample(1, "test")), "model": model, "controls": controls, **FIELDS}
        pictures = renderer.render_many([RenderRequest(seed=seed, **common) for seed in (42, 43)])
        wanted = [canny.compare(map_HWC, np.asarray(picture.image)) for (picture,) in pictures]
        assert reading.values == tuple(score.value for score in wanted if score is not None)
    assert list(bench([0, 1]).values()) == [first, second]


def test_toylands_maps_are_exact_and_nobody_has_no_pose() -> None:
    nobody = next(seed for seed in range(20) if sample(seed, "test").figure is None)
    somebody = next(seed for seed in range(20) if sample(seed, "test").figure is not None)
    cases = Scenes(20)
    found = cases.case(somebody, ("canny", "depth", "pose"), (64, 64), "toyland")
    assert set(found.maps) == {"canny", "depth", "pose"}
    np.testing.assert_array_equal(found.maps["depth"], depth_map(render(sample(somebody, "test"), 64).depth_HW)[0])
    assert set(cases.case(nobody, ("canny", "depth", "pose"), (64, 64), "toyland").maps) == {"canny", "depth"}
    with pytest.raises(BadRequest, match="scenes are square"):
        cases.case(0, ("canny",), (64, 96), "toyland")


def test_a_folder_of_pictures_is_cut_as_the_renderer_cuts_controls(photos: Path) -> None:
    cases = Pictures.read(photos, 2)
    assert len(cases) == 2
    case = cases.case(1, ("canny",), (64, 64), "toyland")
    assert case.prompt == "a box, number 1"
    assert case.picture_HWC.shape == case.maps["canny"].shape == (64, 64, 3)
    np.testing.assert_array_equal(case.maps["canny"], canny.extract(case.picture_HWC, canny.Params()))
    assert Pictures.read(photos, 9, "a box").prompts == ("a box",) * 3
    (photos / "2.txt").unlink()
    with pytest.raises(BadRequest, match=r"'2.png' has no caption: write it as UTF-8 in '2.txt'"):
        Pictures.read(photos, 9)
    with pytest.raises(BadRequest, match="is no folder"):
        Pictures.read(photos / "0.png", 1)
    with pytest.raises(BadRequest, match="has no pictures"):
        Pictures.read(photos.parent, 1)


def test_a_run_that_was_stopped_goes_on_and_another_does_not(
    model: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(model=model, kinds=("canny",), sweep=0, fields=FIELDS, opening=Opening("cpu"))
    monkeypatch.setattr(run, "TOGETHER", 1)
    seen: list[int] = []

    def stop(done: int, _: int) -> None:
        seen.append(done)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(settings, Pictures.read(photos, 3), tmp_path / "out", workers=1, on_progress=stop)
    notes = tmp_path / "out" / NOTES
    with notes.open("a") as file:
        file.write('{"case": 2, "readi')  # a torn line
    resumed = evaluate(settings, Pictures.read(photos, 3), tmp_path / "out", workers=1, on_progress=lambda done, _: seen.append(done))
    assert seen == [1, 2, 3]
    whole = evaluate(settings, Pictures.read(photos, 3), tmp_path / "whole", workers=1)
    assert resumed == whole
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {"evaluation.json", "table.md", NOTES}, "no sweep, no curves"
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["rows"][0]["count"] == 3
    asked: list[list[range]] = []

    def nothing(*arguments: Any) -> list[dict[int, list[Reading]]]:
        asked.append(arguments[3])
        return [{index: [] for index in batch} for batch in arguments[3]]

    monkeypatch.setattr(run, "_measured", nothing)
    evaluate(settings, Pictures.read(photos, 3), tmp_path / "out")
    evaluate(replace(settings, seed=1), Pictures.read(photos, 3), tmp_path / "out")
    monkeypatch.setattr(run, "TOGETHER", 2)
    evaluate(settings, Scenes(3), tmp_path / "scenes")
    evaluate(settings, Scenes(4), tmp_path / "scenes")
    assert asked == [
        [],  # what is done is not drawn again,
        [range(1), range(1, 2), range(2, 3)],  # but other settings begin anew;
        [range(2), range(2, 3)],
        [range(2, 4)],  # more cases are added, and a batch that was not full is drawn again
    ]


def test_a_kind_that_is_named_twice_is_measured_once(model: str, photos: Path, tmp_path: Path) -> None:
    """Its pictures counted twice, which made the interval narrower than it is."""
    settings = Settings(model=model, kinds=("canny", "canny"), sweep=0, fields=FIELDS, opening=Opening("cpu"))
    (row,) = evaluate(settings, Pictures.read(photos, 2), tmp_path / "out", workers=1).rows
    assert (row.kind, row.count) == ("canny", 2)


def test_mistakes_are_told_before_anything_is_drawn(model: str, photos: Path, tmp_path: Path) -> None:
    for count in (0, -1):
        with pytest.raises(BadRequest, match="count = 0"):
            evaluate(Settings(), Scenes(count), tmp_path)
        with pytest.raises(BadRequest, match=f"count = {count}: give 1 at least"):
            Pictures.read(photos, count)  # -1 left out the last one
    with pytest.raises(BadRequest, match="seeds = 0"):
        evaluate(Settings(seeds=0), Scenes(1), tmp_path)
    with pytest.raises(BadRequest, match="did you mean 'canny'"):
        evaluate(Settings(kinds=("cany",)), Scenes(1), tmp_path)
    with pytest.raises(BadModel, match="no model"):
        evaluate(Settings(model=str(tmp_path / "missing" / "model")), Scenes(1), tmp_path)
    with pytest.raises(BadRequest, match="segmentation: no estimator is installed"):
        evaluate(Settings(kinds=("segmentation",)), Scenes(1), tmp_path, workers=1)
