"""A picture's fidelity where a control acts, and at the resolution that its map was made at."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import controls
from controls import estimators
from controls.fidelity import compare, seen
from controls.prepare import Prepared, load_map
from core.control import Control, Image
from core.images import encode_png
from core.request import ControlUnit, RenderRequest
from evaluation.score import score_picture
from renderer import Renderer
from toyland.render import render
from toyland.scene import sample

KINDS = [kind for kind in controls.names() if kind != "segmentation"]  # whose network is not here
WHOLE = ("shuffle", "mask", "regions", "colour_grid", "depth", "normal", "pose")  # of these, one part of a picture changes all of the map
SIZE = 128


def picture(seed: int = 0) -> Image:
    """A scene with a person."""
    return render(sample(seed, "test"), SIZE).picture_HWC


def right_half() -> Image:
    half = np.zeros((SIZE, SIZE, 3), np.uint8)
    half[:, SIZE // 2 :] = 255
    return half


@pytest.fixture
def prepared(tmp_path: Path) -> Any:
    def prepare(kind: str, **fields: Any) -> Prepared:
        for name, image_HWC in (("picture.png", picture()), ("half.png", right_half())):
            (tmp_path / name).write_bytes(encode_png(image_HWC))
        return load_map(ControlUnit(kind=kind, image=tmp_path / "picture.png", **fields), SIZE, SIZE)

    return prepare


def value(control: Control, wanted: Prepared, picture_HWC: Image) -> float | None:
    params = control.parse_params({})
    score = compare(control, wanted.map_HWC, picture_HWC, params, where_HW=wanted.mask_HW, scale=wanted.scale)
    return None if score is None else score.value


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "inpaint"])  # nothing of it is extracted from what is drawn
@pytest.mark.parametrize("processor_px", [64, 256])
def test_a_picture_obeys_its_own_map_at_any_processor_resolution(prepared: Any, kind: str, processor_px: int) -> None:
    """The wanted map was extracted at another resolution than the one it was held against: line art of a perfect picture scored 0.5."""
    wanted, control = prepared(kind, processor_px=processor_px), controls.get(kind)
    found = value(control, wanted, picture())
    assert found is not None
    assert found > 0.99


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in WHOLE])
def test_only_the_region_counts(prepared: Any, kind: str) -> None:
    wanted, control = prepared(kind, mask=None), controls.get(kind)
    masked = Prepared(wanted.map_HWC, right_half()[..., 0], "", "")
    spoilt = picture()
    spoilt[:, : SIZE // 2 - 32] = cv2.rotate(picture(), cv2.ROTATE_180)[:, : SIZE // 2 - 32]
    everywhere, inside = value(control, wanted, spoilt), value(control, masked, spoilt)
    assert everywhere is not None
    assert inside is not None
    assert everywhere < 0.95
    assert inside > 0.99
    turned = value(control, masked, 255 - picture()[:, ::-1])
    assert turned is not None
    assert turned < 0.9


@pytest.mark.parametrize("kind", ["depth", "normal", "pose"])
def test_networks_see_the_whole_picture_and_are_held_against_the_region(prepared: Any, kind: str) -> None:
    wanted, control = prepared(kind), controls.get(kind)
    blank = wanted.map_HWC.copy()
    blank[:, : SIZE // 2] = 0 if kind == "pose" else 90
    for map_HWC in (wanted.map_HWC, blank):  # what is asked for outside the region is not asked for
        assert value(control, Prepared(map_HWC, right_half()[..., 0], "", ""), picture()) == pytest.approx(1.0, abs=1e-6)


def test_a_region_that_is_nowhere_has_no_score(prepared: Any) -> None:
    wanted = prepared("canny")
    assert value(controls.get("canny"), Prepared(wanted.map_HWC, np.zeros((SIZE, SIZE), np.uint8), "", ""), picture()) is None


def test_measuring_loads_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segment Anything was loaded, or fetched, to score a finished mask."""
    monkeypatch.setattr(estimators, "_published", lambda kind, name: pytest.fail(f"{name} is loaded"))
    thing = controls.get("mask")
    assert compare(thing, picture(), picture(), thing.parse_params({"method": "network", "estimator": "facebook/sam-vit-base"})) is None


def test_normals_of_a_drawn_picture_come_from_its_estimated_depth() -> None:
    """Though the wanted ones were made from a finished depth map."""
    normals = controls.get("normal")
    found = seen(normals, picture(), normals.parse_params({"source": "depth"}))
    np.testing.assert_array_equal(found, normals.extract(picture(), normals.parse_params({})))


def test_the_renderer_and_score_measure_it_so(prepared: Any, tmp_path: Path) -> None:
    prepared("canny")  # writes the files
    unit = ControlUnit(kind="canny", image=tmp_path / "picture.png", mask=tmp_path / "half.png", processor_px=256)
    request = RenderRequest(prompt="a person", steps=2, width=SIZE, height=SIZE, controls=(unit,))
    (drawn,) = Renderer.open("toyland").render(request)
    wanted = prepared("canny", mask=tmp_path / "half.png", processor_px=256)
    (score,) = drawn.fidelity
    assert score is not None
    assert score.value == value(controls.get("canny"), wanted, np.asarray(drawn.image))
    assert score.value != controls.get("canny").compare(wanted.map_HWC, np.asarray(drawn.image)).value  # type: ignore[union-attr]
    (tmp_path / "drawn.png").write_bytes(encode_png(np.asarray(drawn.image)))
    (again,) = score_picture(tmp_path / "drawn.png", [unit])
    assert again.score == score
