"""What every registered kind of control has to keep to."""

import json
from typing import Any, get_args

import numpy as np
import pytest

import controls
from controls.geometry import place
from controls.overlay import overlay
from core.control import Control, Image
from core.errors import BadRequest
from core.provenance import ControlRecord, Fidelity
from core.request import Frozen

KINDS = controls.names()


@pytest.fixture(params=KINDS)
def control(request: pytest.FixtureRequest) -> Control:
    return controls.get(request.param)


def settings(control: Control) -> Frozen:
    """The default settings, or such as need no estimator where there is a choice."""
    return control.parse_params({"source": "depth"} if control.name == "normal" else {})


def noise(height: int, width: int) -> Image:
    return np.random.default_rng(height * 10_007 + width).integers(0, 256, (height, width, 3), np.uint8)


def scene(size_px: int = 96) -> Image:
    """A disc and a box on a gradient, with some grain."""
    rows, columns = np.mgrid[:size_px, :size_px]
    canvas = np.stack([140 + rows, 160 + columns // 2, 190 + 0 * rows], axis=2).astype(np.uint8)
    canvas[(rows - 40) ** 2 + (columns - 30) ** 2 < 18**2] = (220, 30, 30)
    canvas[50:85, 55:85] = (20, 40, 60)
    return canvas + np.random.default_rng(0).integers(0, 4, canvas.shape, np.uint8)


def test_the_first_kinds_are_there() -> None:
    opencv = {"blur", "canny", "colour_grid", "inpaint", "invert", "lineart", "lines", "mask", "recolour", "regions", "scribble", "shuffle"}
    assert opencv | {"depth", "normal", "pose", "segmentation", "softedge", "threshold", "tile"} <= set(KINDS)


def test_unknown_kinds_name_the_nearest() -> None:
    with pytest.raises(BadRequest, match=r"unknown control 'dept': did you mean 'depth'\?"):
        controls.get("dept")


def test_it_is_named_like_its_module_and_says_what_it_is(control: Control) -> None:
    assert controls.get(control.name) is control
    assert control.extract.__module__ == f"controls.{control.name}"
    assert 20 < len(control.summary) < 200
    assert "\n" not in control.summary
    assert all(weights.repo.count("/") == 1 for weights in control.weights.values())


def test_settings_are_bounded_described_and_survive_json(control: Control) -> None:
    defaults = control.parse_params({})
    for name, field in control.params.model_fields.items():
        assert field.description, name
        assert field.metadata or field.annotation is bool or get_args(field.annotation), f"{name} has no bounds"
    assert control.parse_params(json.loads(json.dumps(defaults.model_dump(mode="json")))) == defaults
    with pytest.raises(BadRequest, match="unknown"):
        control.parse_params({"no_such_setting": 1})


def test_numbers_out_of_bounds_are_refused(control: Control) -> None:
    for name, field in control.params.model_fields.items():
        low, high = bound(field.metadata, "ge"), bound(field.metadata, "le")
        beyond = [limit + step for limit, step in ((low, -1), (high, 1)) if limit is not None]
        for value in [*beyond, float("nan")] if beyond else []:
            with pytest.raises(BadRequest, match=name):
                control.parse_params({name: value})


def bound(metadata: list[Any], name: str) -> Any:
    return next((getattr(constraint, name) for constraint in metadata if hasattr(constraint, name)), None)


def test_extremes_of_every_setting_work(control: Control) -> None:
    if not control.available(settings(control)):
        return
    picture = scene(48)
    for name, field in control.params.model_fields.items():
        choices: list[Any] = [value for value in (bound(field.metadata, "ge"), bound(field.metadata, "le")) if value is not None]
        choices += [True, False] if field.annotation is bool else []
        choices += [value for value in get_args(field.annotation) if isinstance(value, str)]
        for value in choices:
            try:
                params = control.parse_params(settings(control).model_dump() | {name: value})
            except BadRequest:
                continue  # alone it makes no sense, as low above high
            if control.available(params):
                assert control.extract(picture, params).shape == picture.shape, (name, value)


SHAPES = [(1, 1), (1, 7), (7, 1), (2, 3), (15, 16), (33, 47), (48, 80), (1, 2000), (2000, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_extraction_keeps_size_type_and_picture_and_repeats_itself(control: Control, shape: tuple[int, int]) -> None:
    params = settings(control)
    if not control.available(params):
        with pytest.raises(BadRequest, match="'ready'"):
            control.extract(noise(*shape), params)
        assert control.compare(noise(*shape), noise(*shape)) is None
        return
    picture = noise(*shape)
    before = picture.copy()
    map_HWC = control.extract(picture, params)
    assert map_HWC.shape == picture.shape
    assert map_HWC.dtype == np.uint8
    np.testing.assert_array_equal(picture, before)
    np.testing.assert_array_equal(control.extract(np.asfortranarray(picture), params), map_HWC)  # any layout in memory, any time


@pytest.mark.parametrize("level", [0, 1, 127, 255])
def test_flat_and_grey_pictures_are_pictures(control: Control, level: int) -> None:
    params = settings(control)
    if control.available(params):
        flat = np.full((40, 56, 3), level, np.uint8)
        assert control.extract(flat, params).shape == flat.shape
        grey = noise(40, 56)[..., :1].repeat(3, axis=2)
        assert control.extract(grey, params).shape == grey.shape


def test_a_picture_obeys_the_map_made_from_it(control: Control) -> None:
    params = control.parse_params({})
    if not control.available(params):
        return
    score = control.compare(control.extract(scene(), params), scene(), params)
    if score is not None:
        assert score.value == pytest.approx(1.0, abs=1e-6)
        assert np.isfinite(score.raw)


def test_another_picture_obeys_it_less(control: Control) -> None:
    params = settings(control)
    if not control.available(params):
        return
    wanted = control.extract(scene(), params)
    score = control.compare(wanted, 255 - scene()[::-1].transpose(1, 0, 2), params)
    assert score is None or 0 <= score.value < 0.9


def test_scores_are_kept_in_records(control: Control) -> None:
    wanted, got = scene(), noise(96, 96)
    score = control.compare_maps(wanted, got)
    if score is not None:
        params = settings(control).model_dump(mode="json")
        record = ControlRecord(source_sha256="0" * 64, map_sha256="0" * 64, params=params, fidelity=Fidelity.of(score))
        assert ControlRecord.model_validate_json(record.model_dump_json()) == record
        assert 0 <= score.value <= 1
        assert all(np.isfinite(value) for value in score.parts.values())


def test_a_map_equals_itself(control: Control) -> None:
    blob = np.zeros((64, 64, 3), np.uint8)
    blob[20:40, 30:31] = 255
    for map_HWC in (blob, np.zeros_like(blob), np.full_like(blob, 255), scene()):
        score = control.compare_maps(map_HWC, map_HWC)
        assert score is None or score.value == pytest.approx(1.0, abs=1e-6)


def test_resizing_obeys_its_kind(control: Control) -> None:
    black_and_white = np.zeros((90, 70, 3), np.uint8)
    black_and_white[::7] = 255
    values = set(np.unique(place(70, 90, 64, 64, "just").resize(black_and_white, control.resample)))
    assert control.resample == "area" or values == {0, 255}


def test_looking_for_mistakes_never_fails(control: Control) -> None:
    for shape in SHAPES:
        for image_HWC in (noise(*shape), np.zeros((*shape, 3), np.uint8), np.full((*shape, 3), 255, np.uint8)):
            for look in filter(None, (control.looks_finished, control.mistake)):
                assert isinstance(look(image_HWC), bool | str | None)


def test_wanted_and_got_are_shown_in_one_picture(control: Control) -> None:
    shown = overlay(control, scene(), noise(96, 96))
    assert shown.shape == (96, 96, 3)
    assert shown.dtype == np.uint8
