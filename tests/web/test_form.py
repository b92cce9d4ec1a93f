"""Values from a browser become requests, or one sentence; the control picture outlives the upload."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from controls.prepare import load_map
from core.errors import BadImage, BadRequest
from core.images import decode
from core.request import ControlUnit, RenderRequest
from tests import tinymodels
from web import form


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodels.build_pictures(tmp_path_factory.mktemp("web-pictures"))


def values(**changed: Any) -> dict[str, Any]:
    """What the page holds when it opens, apart from what is `changed` (`control__weight` for `control.weight`)."""
    opened: dict[str, Any] = {
        name: field.default for name, field in RenderRequest.model_fields.items() if name not in ("model", "controls")
    }
    opened |= {"control.kind": "canny", "control.image": None, "control.ready": False, "control.weight": 1, "control.start": 0}
    opened |= {"control.end": 1, "control.model": "", "control.resize": "crop", "control.mode": "balanced"}
    opened |= {"canny.low": 100, "canny.high": 200}
    return opened | {name.replace("__", "."): value for name, value in changed.items()}


def test_the_page_as_it_opens_is_the_default_request(tmp_path: Path) -> None:
    request = form.read_request(values(), tmp_path)
    assert request == RenderRequest()
    assert "model" not in request.model_fields_set, "the renderer's own model draws it"
    assert form.read_map(values()) is None


def test_a_control_is_read_and_its_picture_kept(pictures: Path, tmp_path: Path) -> None:
    upload = tmp_path / "holiday.jpg"
    camera = PIL.Image.Exif()
    camera[0x010F] = "a camera's maker"
    PIL.Image.open(pictures / "photo.png").save(upload, exif=camera)
    request = form.read_request(values(control__image=str(upload), control__weight=0.5, canny__low=60), tmp_path / "out")
    (unit,) = request.controls
    assert (unit.kind, unit.weight, unit.params, unit.model) == ("canny", 0.5, {"low": 60, "high": 200}, None)
    assert unit.image.parent == tmp_path / "out" / "controls"
    assert "holiday" not in unit.image.name
    assert np.array_equal(decode(unit.image), decode(upload))
    assert b"maker" not in unit.image.read_bytes()
    again = form.read_request(values(control__image=str(upload)), tmp_path / "out")
    assert again.controls[0].image == unit.image


def test_the_map_is_what_the_renderer_will_use(pictures: Path) -> None:
    prepared = form.read_map(values(control__image=str(pictures / "photo.png"), width=96, height=64))
    assert prepared is not None
    assert np.array_equal(prepared.map_HWC, load_map(ControlUnit(kind="canny", image=pictures / "photo.png"), 96, 64).map_HWC)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"width": 100}, "width = 100: input should be a multiple of 8"),
        ({"seed": None}, "seed: input should be a valid integer"),
        ({"seed": 1.5}, "seed = 1.5: input should be a valid integer"),
        ({"prompt": 7}, "prompt = 7: input should be a valid string"),
        ({"control__start": 0.8, "control__end": 0.2}, "start 0.8 is after end 0.2"),
        ({"control__weight": 3}, "weight = 3: input should be less than or equal to 2"),
        ({"control__kind": "cany"}, "unknown control 'cany': did you mean 'canny'?"),
        ({"control__mode": "loud"}, "mode = 'loud': input should be"),
        ({"canny__low": 220}, "low 220 is above high 200"),
    ],
)
def test_forged_values_are_refused_and_nothing_is_kept(changed: dict[str, Any], message: str, pictures: Path, tmp_path: Path) -> None:
    asked = values(**({"control__image": str(pictures / "photo.png")} | changed))
    with pytest.raises(BadRequest, match=message.replace("?", r"\?")):
        form.read_request(asked, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_picture_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"GIF89a")
    with pytest.raises(BadImage, match=r"photo\.png"):
        form.read_request(values(control__image=str(tmp_path / "photo.png")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_finished_maps_are_told_from_pictures(pictures: Path, tmp_path: Path) -> None:
    edges = form.read_map(values(control__image=str(pictures / "photo.png")))
    assert edges is not None
    PIL.Image.fromarray(edges.map_HWC).save(tmp_path / "edges.png")
    assert form.looks_finished("canny", tmp_path / "edges.png") is True
    assert form.looks_finished("canny", pictures / "photo.png") is False
    assert form.looks_finished("depth", pictures / "photo.png") is None
