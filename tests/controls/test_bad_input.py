"""Pictures nobody would send on purpose, through the door that all controls share."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import controls
from controls import pose
from controls.prepare import load_map
from core.errors import BadImage, BadRequest
from core.images import encode_png
from core.openpose import People, draw_people, openpose_from_people
from core.request import ControlUnit
from core.skeleton import detect_joints

RNG = np.random.default_rng(5)
RGB = RNG.integers(0, 256, (40, 60, 3), np.uint8)
KINDS = controls.names()


def saved(image: PIL.Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


FILES = {
    "grey": saved(PIL.Image.fromarray(RGB[..., 0])),
    "palette": saved(PIL.Image.fromarray(RGB).convert("P")),
    "cmyk": saved(PIL.Image.fromarray(RGB).convert("CMYK"), "JPEG"),
    "sixteen bits": saved(PIL.Image.fromarray(RGB[..., 0].astype(np.uint16) * 257)),
    "alpha": saved(PIL.Image.fromarray(np.dstack([RGB, RGB[..., 0]]))),
    "one pixel": saved(PIL.Image.fromarray(RGB[:1, :1])),
    "a line": saved(PIL.Image.fromarray(RNG.integers(0, 256, (1, 8000, 3), np.uint8))),
    "a pole": saved(PIL.Image.fromarray(RNG.integers(0, 256, (8000, 1, 3), np.uint8))),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("ready", [False, True])
def test_every_kind_takes_every_sort_of_picture(tmp_path: Path, kind: str, file: str, ready: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(FILES[file])
    params = {"source": "depth"} if kind == "normal" else {}
    if not ready and not controls.get(kind).available(controls.get(kind).parse_params(params)):
        return
    for resize in ("just", "crop", "fill"):
        unit = ControlUnit(kind=kind, image=path, ready=ready, resize=resize, params=params)
        prepared = load_map(unit, 64, 72)
        assert prepared.map_HWC.shape == (72, 64, 3)
        assert all("\n" not in warning for warning in prepared.warnings)


def test_nobody_and_twenty_people(tmp_path: Path) -> None:
    empty = tmp_path / "nobody.json"
    empty.write_text('{"people": []}')
    prepared = load_map(ControlUnit(kind="pose", image=empty), 256, 256)
    assert not prepared.map_HWC.any()
    assert "empty (all black)" in prepared.warnings[0]
    body = np.array([(8, 3), (8, 5), (6, 5), (5, 7), (4, 9), (10, 5), (11, 7), (12, 9), (7, 9), (6, 12), (6, 15)], float)
    body = np.concatenate([body, [(9, 9), (10, 12), (10, 15), (7.5, 2), (8.5, 2), (6.6, 3), (9.4, 3)]]) * 8
    crowd = np.stack([np.add(body, (128 * (i % 5), 128 * (i // 5))) for i in range(20)])
    path = tmp_path / "crowd.json"
    path.write_text(openpose_from_people(People.of(crowd), 640, 512))
    drawn = load_map(ControlUnit(kind="pose", image=path), 640, 512).map_HWC
    np.testing.assert_array_equal(drawn, draw_people(People.of(np.round(crowd, 3)), 640, 512))
    found = detect_joints(drawn)
    assert len(found) == 20
    score = pose.compare_maps(drawn, drawn)
    assert score is not None
    assert score.value == 1.0
    assert score.parts["people found"] == 20


def test_a_json_of_another_layout_and_a_picture_that_is_none(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"annotations": [{"keypoints": [1, 2, 3]}]}))
    with pytest.raises(BadRequest, match=r"not an OpenPose file \(KeyError\): expected people\[\]\.pose_keypoints_2d"):
        load_map(ControlUnit(kind="pose", image=other), 64, 64)
    with pytest.raises(BadImage, match="is not a PNG, JPEG or WebP picture"):
        load_map(ControlUnit(kind="canny", image=other), 64, 64)
    folder = tmp_path / "folder"
    folder.mkdir()
    for kind in ("canny", "pose", "depth"):
        with pytest.raises(BadImage, match="folder"):
            load_map(ControlUnit(kind=kind, image=folder), 64, 64)


def test_thresholds_out_of_order_are_said_before_anything_is_read() -> None:
    with pytest.raises(BadRequest, match="low 200 is above high 100: give low <= high"):
        load_map(ControlUnit(kind="canny", image=Path("absent.png"), params={"low": 200, "high": 100}), 64, 64)


def test_a_map_that_is_almost_nothing_is_not_called_a_picture(tmp_path: Path) -> None:
    dot = np.zeros((128, 128, 3), np.uint8)
    dot[60, 60] = 255
    (tmp_path / "dot.png").write_bytes(encode_png(dot))
    for kind in ("canny", "lines", "scribble", "softedge", "lineart"):
        assert load_map(ControlUnit(kind=kind, image=tmp_path / "dot.png", ready=True), 128, 128).warnings == ()
