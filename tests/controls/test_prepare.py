"""From files to maps at generation size: exactness against direct calls, masks, digests, warnings and refusals."""

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest

import controls
from controls import canny, estimators
from controls.geometry import place
from controls.prepare import Prepared, load_map, settled, takes_own_file
from core.control import Image
from core.errors import BadImage, BadRequest
from core.images import encode_png, sha256_pixels
from core.request import ControlUnit
from core.skeleton import draw_pose


def picture(width: int = 256, height: int = 192) -> Image:
    canvas = np.full((height, width, 3), (60, 90, 60), np.uint8)
    cv2.circle(canvas, (width // 2, height // 2), height // 4, (220, 40, 40), -1)
    return canvas


@pytest.fixture
def save(tmp_path: Path) -> Any:
    def save(image_HWC: Image, name: str = "picture.png") -> Path:
        (tmp_path / name).write_bytes(encode_png(image_HWC))
        return tmp_path / name

    return save


def load(path: Path, kind: str = "canny", width: int = 128, height: int = 96, **fields: Any) -> Prepared:
    return load_map(ControlUnit(kind=kind, image=path, **fields), width, height)


def test_a_picture_is_resized_and_then_extracted(save: Any) -> None:
    prepared = load(save(picture()), params={"low": 40, "high": 90})
    direct = cv2.Canny(cv2.resize(picture(), (128, 96), interpolation=cv2.INTER_AREA), 40, 90)
    np.testing.assert_array_equal(prepared.map_HWC, direct[..., None].repeat(3, axis=2))
    assert prepared.mask_HW is None
    assert prepared.warnings == ()


def test_a_finished_map_of_the_right_size_is_passed_on_untouched(save: Any) -> None:
    wanted = canny.extract(picture(), canny.Params())
    np.testing.assert_array_equal(load(save(wanted), width=256, height=192, ready=True).map_HWC, wanted)
    depth = np.random.default_rng(0).integers(0, 256, (192, 256, 3), np.uint8)
    np.testing.assert_array_equal(load(save(depth), "depth", 256, 192, ready=True).map_HWC, depth)


@pytest.mark.parametrize("size_px", [64, 256])
def test_finished_edges_stay_black_and_white_at_any_size(save: Any, size_px: int) -> None:
    small = load(save(canny.extract(picture(), canny.Params())), width=size_px, height=size_px, ready=True).map_HWC
    assert set(np.unique(small)) == {0, 255}


def test_fill_adds_no_edges_where_the_picture_ends(save: Any) -> None:
    filled = load(save(picture()), width=128, height=128, resize="fill").map_HWC
    assert filled.shape == (128, 128, 3)
    assert not filled[:17].any()
    assert not filled[111:].any()
    assert filled[17:111].any()


def test_digests_name_the_file_and_the_map(save: Any) -> None:
    path = save(picture())
    prepared = load(path, mask=save(picture(), "mask.png"))
    assert prepared.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert prepared.mask_sha256 == prepared.source_sha256  # equal bytes
    assert prepared.map_sha256 == sha256_pixels(prepared.map_HWC)
    assert load(path, width=64).map_sha256 != prepared.map_sha256


@pytest.mark.parametrize("resize", ["just", "crop", "fill"])
def test_a_mask_stays_on_its_map(save: Any, resize: str) -> None:
    edges = np.zeros((200, 300, 3), np.uint8)
    edges[60:140, 110:190] = 255  # a block, so that its centre survives every way of resampling
    prepared = load(save(edges), "depth", 128, 128, ready=True, mask=save(edges, "mask.png"), resize=resize)
    assert prepared.mask_HW is not None
    assert prepared.mask_HW.shape == (128, 128)
    np.testing.assert_array_equal(prepared.mask_HW, prepared.map_HWC[..., 0])


def test_an_openpose_file_is_drawn_at_the_size_asked_for(tmp_path: Path) -> None:
    joints = np.array([[64 + 3 * i, 20 + 5 * i, 1] for i in range(18)], float)
    path = tmp_path / "pose.json"
    path.write_text(json.dumps({"people": [{"pose_keypoints_2d": joints.ravel().tolist()}], "canvas_width": 128, "canvas_height": 128}))
    xy = joints[None, :, :2]
    np.testing.assert_array_equal(load(path, "pose", 256, 256, ready=True).map_HWC, draw_pose(xy * 2, 256, 256))


def test_warnings(save: Any) -> None:
    edges = save(canny.extract(picture(), canny.Params()), "edges.png")
    assert "edges.png looks like a finished canny map: add 'ready'" in load(edges).warnings[0]
    assert load(edges, ready=True).warnings == ()
    blank = save(np.full((64, 64, 3), 128, np.uint8), "blank.png")
    assert "canny map of blank.png is empty (all black)" in load(blank).warnings[0]


def test_a_region_that_is_nowhere_is_noticed(save: Any) -> None:
    mask = save(np.zeros((96, 128, 3), np.uint8), "mask.png")
    (said,) = load(save(picture()), mask=mask).warnings
    assert said.startswith("the mask mask.png of picture.png is all black: canny acts nowhere")
    painted = np.zeros((96, 128, 4), np.uint8)
    painted[30:60, 30:60] = 255  # white on nothing, as paint programs save a selection
    PIL.Image.fromarray(painted).save(mask)
    (said,) = load(save(picture()), mask=mask).warnings
    assert said.startswith("the mask mask.png of picture.png is all white, as its transparent parts are: canny acts everywhere")


def test_refusals(save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimators, "LOADERS", {})
    with pytest.raises(BadRequest, match=r"unknown control 'cany': did you mean 'canny'\?"):
        load(save(picture()), "cany")
    with pytest.raises(BadRequest, match="low 250 is above high 200"):
        load(save(picture()), params={"low": 250})
    with pytest.raises(BadRequest, match="no depth estimator"):
        load(save(picture()), "depth")
    with pytest.raises(BadImage, match=r"absent\.png"):
        load(tmp_path / "absent.png")
    with pytest.raises(BadImage, match=r"absent\.json"):
        load(tmp_path / "absent.json", "pose")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(BadImage, match=r"text\.png"):
        load(tmp_path / "text.png")
    with pytest.raises(BadImage, match=r"text\.png"):
        load(save(picture()), mask=tmp_path / "text.png")
    (tmp_path / "text.json").write_text("[")
    with pytest.raises(BadRequest, match="not an OpenPose file"):
        load(tmp_path / "text.json", "pose")


@pytest.mark.parametrize("kind", ["threshold", "blur"])
@pytest.mark.parametrize("processor_px", [None, 96, 300])
@pytest.mark.parametrize("resize", ["just", "crop", "fill"])
def test_a_640_by_480_picture_stays_aligned_through_every_door(save: Any, kind: str, processor_px: int | None, resize: str) -> None:
    """A disc's map has its centre where the disc's centre comes to lie, whatever the resolution at which it was extracted."""
    x, y = 297.5, 221.5
    source = np.full((480, 640, 3), 40, np.uint8)
    rows, columns = np.mgrid[:480, :640] + 0.5
    source[(columns - x) ** 2 + (rows - y) ** 2 < 120**2] = 230
    params = {"sigma": 2.0} if kind == "blur" else {}
    light = load(save(source), kind, 256, 256, resize=resize, processor_px=processor_px, params=params).map_HWC[..., 0].astype(float)
    inside = place(640, 480, 256, 256, resize)  # type: ignore[arg-type]
    weight = (light > 135).astype(float)
    grid_y, grid_x = np.mgrid[:256, :256] + 0.5
    centre = np.array([(grid_x * weight).sum(), (grid_y * weight).sum()]) / weight.sum()
    assert np.abs(centre - inside.points(np.array([x, y]))).max() < 0.5


def test_a_processor_resolution_is_the_shorter_side_at_which_edges_are_found(save: Any) -> None:
    coarse = load(save(picture()), width=256, height=192, processor_px=96).map_HWC
    small = canny.extract(cv2.resize(picture(), (128, 96), interpolation=cv2.INTER_AREA), canny.Params())
    np.testing.assert_array_equal(coarse[::2, ::2], small)  # enlarged by two, every pixel twice
    assert set(np.unique(coarse)) == {0, 255}
    with pytest.raises(ValueError, match="greater than or equal to 64"):
        ControlUnit(kind="canny", image=Path("a.png"), processor_px=8)


def test_the_default_estimator_follows_the_model_and_is_recorded(save: Any) -> None:
    unit = ControlUnit(kind="depth", image=save(picture()), ready=True)
    assert load_map(unit, 128, 96).params == {}  # a finished map has no settings
    control = controls.get("depth")
    plain, named = control.parse_params({}), control.parse_params({"estimator": "owner/mine"})
    assert settled(control, plain, "toyland") == plain
    assert settled(control, plain, "owner/real-model").model_dump()["estimator"] == estimators.PUBLISHED["depth"]
    assert settled(control, named, "owner/real-model") == named
    normals = controls.get("normal")
    assert settled(normals, normals.parse_params({}), "a/b").model_dump()["estimator"] == estimators.PUBLISHED["depth"]
    edges = controls.get("canny")
    assert settled(edges, edges.parse_params({}), "a/b") == edges.parse_params({})
    assert load(save(picture())).params == {"low": 100, "high": 200, "automatic": False, "scales": 1}


def test_an_estimator_that_is_not_asked_is_not_recorded(save: Any) -> None:
    cut = load_map(ControlUnit(kind="mask", image=save(picture())), 128, 96, model="owner/real-model")
    assert (cut.params["method"], cut.params["estimator"]) == ("colour", "")
    thing = controls.get("mask")
    named = settled(thing, thing.parse_params({"method": "network"}), "owner/real-model")
    assert named.model_dump()["estimator"] == estimators.PUBLISHED["mask"]


def test_a_processor_resolution_of_a_narrow_picture_is_limited(save: Any) -> None:
    """Its longer side would have had a million pixels."""
    strip = save(np.zeros((1, 8000, 3), np.uint8))
    with pytest.raises(BadRequest, match=r"processor_px = 2048: .* in 1048576x2048, over the limit of 16.8 Mpx"):
        load(strip, width=512, height=512, resize="fill", processor_px=2048)
    assert load(strip, width=512, height=512, resize="fill", processor_px=64).map_HWC.shape == (512, 512, 3)


def test_a_kinds_own_file_is_known_by_its_content(tmp_path: Path) -> None:
    pose_file = tmp_path / "no-suffix"
    pose_file.write_text('\ufeff {"people": []}', encoding="utf-8")
    assert takes_own_file(controls.get("pose"), pose_file)
    assert not takes_own_file(controls.get("canny"), pose_file)
    (tmp_path / "picture.json").write_bytes(encode_png(picture()))
    assert not takes_own_file(controls.get("pose"), tmp_path / "picture.json")
