"""Values from a browser become requests, or one sentence; the control picture outlives the upload."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

import controls
from controls.prepare import load_map
from core.errors import BadImage, BadRequest
from core.images import decode, encode_png
from core.provenance import ControlRecord, Record, WeightFile
from core.request import MAX_CONTROLS, ControlUnit, Inversion, RenderRequest, SkipLayers
from tests import tinymodels
from web import form
from web.settings import slots

# A sheet of strokes one pixel high, where two of equal height are wanted.
ODD = "data:image/png;drawn=picture;base64," + base64.b64encode(encode_png(np.zeros((1, 4, 3), np.uint8))).decode()
CANNY = {"low": 100, "high": 200, "automatic": False, "scales": 1}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodels.build_pictures(tmp_path_factory.mktemp("web-pictures"))


def values(**changed: Any) -> dict[str, Any]:
    """What the page holds when it opens, apart from what is `changed` (`control__weight` for `control.weight`)."""
    opened: dict[str, Any] = {
        name: field.default for name, field in RenderRequest.model_fields.items() if name not in ("model", "controls", "inversion")
    }
    for i in range(MAX_CONTROLS):
        unit = {"on": i == 0, "kind": "canny", "image": None, "ready": False, "weight": 1, "window": [0, 1], "model": ""}
        unit |= {"resize": "crop", "mode": "balanced", "painting": ""}
        unit |= {slots(controls.get("canny").params)[name]: value for name, value in CANNY.items()}
        opened |= {f"control.{i}.{name}": value for name, value in unit.items()}
    return opened | {renamed(name): value for name, value in changed.items()}


def renamed(name: str) -> str:
    """`control__weight` and `canny__low` are those of the first unit."""
    owner, _, own = name.partition("__")
    if not own:
        return name
    return f"control.0.{own}" if owner == "control" else f"control.0.{slots(controls.get(owner).params)[own]}"


def read(opened: dict[str, Any], out: Path) -> RenderRequest:
    return form.read_request(opened, out, "toyland")


def test_the_page_as_it_opens_is_the_default_request(tmp_path: Path) -> None:
    request = read(values(), tmp_path)
    assert request == RenderRequest()
    assert "model" not in request.model_fields_set, "the renderer's own model draws it"
    assert form.read_map(values(), 0) is None


def test_a_control_is_read_and_its_picture_kept(pictures: Path, tmp_path: Path) -> None:
    upload = tmp_path / "holiday.jpg"
    camera = PIL.Image.Exif()
    camera[0x010F] = "a camera's maker"
    PIL.Image.open(pictures / "photo.png").save(upload, exif=camera)
    request = read(values(control__image=str(upload), control__weight=0.5, canny__low=60), tmp_path / "out")
    (unit,) = request.controls
    assert (unit.kind, unit.weight, unit.params, unit.model) == ("canny", 0.5, CANNY | {"low": 60}, None)
    assert unit.image.parent == tmp_path / "out" / "controls"
    assert "holiday" not in unit.image.name
    assert np.array_equal(decode(unit.image), decode(upload))
    assert b"maker" not in unit.image.read_bytes()
    again = read(values(control__image=str(upload)), tmp_path / "out")
    assert again.controls[0].image == unit.image


def test_the_map_is_what_the_renderer_will_use(pictures: Path) -> None:
    prepared = form.read_map(values(control__image=str(pictures / "photo.png"), width=96, height=64), 0)
    assert prepared is not None
    assert np.array_equal(prepared.map_HWC, load_map(ControlUnit(kind="canny", image=pictures / "photo.png"), 96, 64).map_HWC)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"width": 100}, "width = 100: input should be a multiple of 8"),
        ({"seed": None}, "seed: input should be a valid integer"),
        ({"seed": 1.5}, "seed = 1.5: input should be a valid integer"),
        ({"prompt": 7}, "prompt = 7: input should be a valid string"),
        ({"control__window": [0.8, 0.2]}, "start 0.8 is after end 0.2"),
        ({"control__window": "all"}, "window: give start and end"),
        ({"control__window": [0, "late"]}, "end = 'late': input should be a valid number"),
        ({"control__painting": "data:text/html;base64,PGI+"}, "did not arrive as a PNG"),
        ({"control__painting": "/etc/passwd"}, "did not arrive as a PNG"),
        ({"control__painting": "data:image/png;drawn=picture;base64,"}, "did not arrive as a PNG"),
        ({"control__painting": "data:image/png;drawn=map;base64,%%"}, "did not arrive as a PNG"),
        ({"control__painting": ODD}, "did not arrive as a PNG"),
        ({"control__weight": 3}, "weight = 3: input should be less than or equal to 2"),
        ({"control__kind": "cany"}, "unknown control 'cany': did you mean 'canny'?"),
        ({"control__mode": "loud"}, "mode = 'loud': input should be"),
        ({"canny__low": 220}, "low 220 is above high 200"),
    ],
)
def test_forged_values_are_refused_and_nothing_is_kept(changed: dict[str, Any], message: str, pictures: Path, tmp_path: Path) -> None:
    asked = values(**({"control__image": str(pictures / "photo.png")} | changed))
    with pytest.raises((BadRequest, BadImage), match=message.replace("?", r"\?")):
        read(asked, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.png"))


def test_what_is_no_picture_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"GIF89a")
    with pytest.raises(BadImage, match=r"photo\.png"):
        read(values(control__image=str(tmp_path / "photo.png")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_finished_maps_are_told_from_pictures(pictures: Path, tmp_path: Path) -> None:
    edges = form.read_map(values(control__image=str(pictures / "photo.png")), 0)
    assert edges is not None
    PIL.Image.fromarray(edges.map_HWC).save(tmp_path / "edges.png")
    assert form.looks_finished("canny", tmp_path / "edges.png") is True
    assert form.looks_finished("canny", pictures / "photo.png") is False
    assert form.looks_finished("blur", pictures / "photo.png") is None


def painted(mask_HW: Any) -> str:
    """A mask as the browser sends it: a PNG with alpha, as `data:` address."""
    file = io.BytesIO()
    PIL.Image.fromarray(np.dstack([mask_HW] * 3 + [np.full_like(mask_HW, 255)])).save(file, "png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_paint_is_a_region_on_a_picture_and_a_map_without_one(pictures: Path, tmp_path: Path) -> None:
    mask_HW = np.zeros((64, 64), np.uint8)
    mask_HW[:, :32] = 255
    (unit,) = read(values(control__image=str(pictures / "photo.png"), control__painting=painted(mask_HW)), tmp_path).controls
    assert unit.mask is not None
    assert not unit.ready
    assert np.array_equal(decode(unit.mask)[..., 0], mask_HW)
    (alone,) = read(values(control__painting=painted(mask_HW)), tmp_path).controls
    assert (alone.image, alone.ready, alone.mask) == (unit.mask, True, None)


def sheets(colour_HWC: NDArray[np.uint8], cover_HW: NDArray[np.uint8]) -> str:
    """Strokes on a picture as the browser sends them."""
    file = io.BytesIO()
    PIL.Image.fromarray(np.concatenate([colour_HWC, np.repeat(cover_HW[..., None], 3, axis=2)])).save(file, "png")
    return "data:image/png;drawn=picture;base64," + base64.b64encode(file.getvalue()).decode()


def test_strokes_are_drawn_on_a_picture_or_are_the_map(pictures: Path, tmp_path: Path) -> None:
    photo, original_HWC = str(pictures / "photo.png"), decode(pictures / "photo.png")
    cover_HW = np.zeros(original_HWC.shape[:2], np.uint8)
    cover_HW[10:20], cover_HW[20:30] = 255, 128
    green_HWC = (cover_HW[..., None] * (np.array([0, 1, 0], np.uint8))).astype(np.uint8)  # as a canvas lays half a stroke on black
    (unit,) = read(values(control__image=photo, control__painting=sheets(green_HWC, cover_HW)), tmp_path).controls
    drawn_HWC = decode(unit.image)
    assert (unit.ready, unit.mask) == (False, None)
    assert (drawn_HWC[10:20] == (0, 255, 0)).all()
    assert np.array_equal(drawn_HWC[:10], original_HWC[:10])
    assert np.array_equal(drawn_HWC[30:], original_HWC[30:])
    half_HWC = original_HWC[20:30] * (127 / 255) + np.array([0, 128, 0])
    assert np.abs(drawn_HWC[20:30] - half_HWC).max() <= 0.5  # rounded

    asked = values(control__image=photo, control__painting=painted(cover_HW).replace(";", ";drawn=map;", 1))
    (traced,) = read(asked, tmp_path).controls
    assert (traced.ready, traced.mask) == (True, None)
    assert np.array_equal(decode(traced.image)[..., 0], cover_HW)
    assert form.sketch_request(asked, "toyland").controls[0].ready
    height, width, _ = original_HWC.shape
    shown_map = form.read_map(asked | {"width": width, "height": height}, 0)
    assert shown_map is not None
    assert np.array_equal(shown_map.map_HWC[..., 0], cover_HW)
    alone = form.read_map(asked | {"width": width, "height": height, "control.0.image": None}, 0)
    assert alone is not None
    assert np.array_equal(alone.map_HWC, shown_map.map_HWC)


def test_strokes_of_another_size_are_brought_to_the_pictures(pictures: Path, tmp_path: Path) -> None:
    cover_HW = np.full((8, 6), 255, np.uint8)
    asked = values(
        control__image=str(pictures / "photo.png"), control__painting=sheets(np.repeat(cover_HW[..., None], 3, axis=2), cover_HW)
    )
    (unit,) = read(asked, tmp_path).controls
    assert np.array_equal(decode(unit.image), np.full_like(decode(pictures / "photo.png"), 255))


def test_units_that_were_removed_and_second_passes_that_are_off_do_not_count(pictures: Path, tmp_path: Path) -> None:
    asked = values(control__image=str(pictures / "photo.png"), control__on=False)
    assert read(asked, tmp_path).controls == ()
    more = {"hires.scale": 1.5, "hires.upscaler": "lanczos", "hires.steps": None, "hires.strength": 0.5, "hires.with_control": True}
    assert read(values() | more | {"hires.on": False}, tmp_path).hires is None
    hires = read(values() | more | {"hires.on": True}, tmp_path).hires
    assert hires is not None
    assert (hires.scale, hires.upscaler) == (1.5, "lanczos")
    skip = {"skip_layers.blocks": "2 1", "skip_layers.scale": 2, "skip_layers.start": 0.3, "skip_layers.end": 0.9}
    assert read(values() | skip | {"skip_layers.on": False}, tmp_path).skip_layers is None
    request = read(values() | skip | {"skip_layers.on": True}, tmp_path)
    assert request.skip_layers == SkipLayers(blocks=(1, 2), scale=2.0, start=0.3, end=0.9)
    assert form.shown(request, tmp_path)[0]["skip_layers.blocks"] == "1 2"
    assert read(values() | form.shown(request, tmp_path)[0], tmp_path) == request


def test_loras_another_autoencoder_and_inversion_are_typed(pictures: Path, tmp_path: Path) -> None:
    asked = values(loras="bold=0.8:0.5, other", vae=" some/vae ", init_image=str(pictures / "photo.png"))
    asked |= {"inversion.on": True, "inversion.prompt": "a photo", "inversion.iterations": 3}
    asked |= {"control.0.image": asked["init_image"], "control.0.processor_px": 96, "control.0.layer_weights": "1 0.5"}
    request = read(asked, tmp_path)
    assert [(one.name, one.weight, one.text_weight) for one in request.loras] == [("bold", 0.8, 0.5), ("other", 1.0, None)]
    assert (request.vae, request.inversion) == ("some/vae", Inversion(prompt="a photo", iterations=3))
    assert (request.controls[0].processor_px, request.controls[0].layer_weights) == (96, (1.0, 0.5))
    assert read(values() | form.shown(request, tmp_path)[0], tmp_path) == request
    assert read(asked | {"inversion.on": False}, tmp_path).inversion is None
    with pytest.raises(BadRequest, match=r"loras\.0\.weight"):
        read(asked | {"loras": "bold=much"}, tmp_path)


def test_what_the_page_shows_of_a_request_reads_as_that_request(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    mask_HW = np.zeros((64, 64), np.uint8)
    mask_HW[10:20] = 255
    photo = str(pictures / "photo.png")
    asked = values(
        control__image=photo, control__painting=painted(mask_HW), control__window=[0.1, 0.6], canny__low=33, steps=7, prompt="a cone"
    )
    asked |= {"control.3.on": True, "control.3.image": photo, "control.3.ready": True, "control.3.weight": 0.4}
    request = read(asked | {"init_image": photo, "mask": painted(mask_HW), "strength": 0.3}, out)
    assert [unit.weight for unit in request.controls] == [1, 0.4]
    shown, lost = form.shown(request, out)
    assert lost == []
    assert read(values() | shown, out) == request


def test_no_file_from_elsewhere_is_shown(pictures: Path, tmp_path: Path) -> None:
    """A picture's settings may name any file of this machine; only what lies in the output folder comes back, if it is still the same."""
    request = RenderRequest(
        controls=(ControlUnit(kind="canny", image=pictures / "photo.png"),), init_image=tmp_path / "out" / ".." / "secret.png"
    )
    (tmp_path / "secret.png").write_bytes((pictures / "photo.png").read_bytes())
    (tmp_path / "out").mkdir()
    shown, lost = form.shown(request, tmp_path / "out")
    assert shown["control.0.image"] is None
    assert shown["init_image"] is None
    assert lost == ["the picture it began from", "the picture of control 1 (canny)"]

    changed = tmp_path / "out" / "map.png"
    changed.write_bytes((pictures / "photo.png").read_bytes())
    one = RenderRequest(controls=(ControlUnit(kind="canny", image=changed),))
    record = Record(
        request=one,
        index=0,
        seed=0,
        weights=(WeightFile(part="base", file="unet", sha256="0" * 64),),
        controls=(ControlRecord(source_sha256="1" * 64, map_sha256="2" * 64),),
    )
    assert form.shown(one, tmp_path / "out")[0]["control.0.image"] == str(changed.resolve())
    assert form.shown(one, tmp_path / "out", record)[1] == ["the picture of control 1 (canny)"]


def test_a_request_is_sketched_without_keeping_anything(pictures: Path, tmp_path: Path) -> None:
    photo, dot = str(pictures / "photo.png"), painted(np.full((64, 64), 255, np.uint8))
    asked = values(control__painting=dot, steps=7) | {"control.1.on": True, "control.1.image": photo, "init_image": photo, "mask": dot}
    request = form.sketch_request(asked, "toyland")
    kept = read(asked, tmp_path / "out")
    assert [unit.model_copy(update={"image": None, "mask": None}) for unit in request.controls] == [
        unit.model_copy(update={"image": None, "mask": None}) for unit in kept.controls
    ]
    assert (request.controls[0].ready, request.controls[1].image) == (True, Path(photo))
    assert request.init_image == Path(photo)
    assert all(path is not None and path.is_file() for path in (request.mask, request.controls[0].image))
    with pytest.raises(BadRequest, match="width = 100"):
        form.sketch_request(asked | {"width": 100}, "toyland")
