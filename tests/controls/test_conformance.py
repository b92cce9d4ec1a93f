"""What every registered kind of control has to keep to."""

import json

import numpy as np
import pytest

import controls
from controls.geometry import place
from core.control import Control
from core.errors import BadRequest

KINDS = controls.names()


@pytest.fixture(params=KINDS)
def control(request: pytest.FixtureRequest) -> Control:
    return controls.get(request.param)


def test_the_first_three_are_there() -> None:
    assert {"canny", "depth", "pose"} <= set(KINDS)


def test_unknown_kinds_name_the_nearest() -> None:
    with pytest.raises(BadRequest, match=r"unknown control 'dept': did you mean 'depth'\?"):
        controls.get("dept")


def test_it_is_named_like_its_module(control: Control) -> None:
    assert controls.get(control.name) is control
    assert control.extract.__module__ == f"controls.{control.name}"


def test_settings_are_bounded_described_and_survive_json(control: Control) -> None:
    defaults = control.parse_params({})
    for name, field in control.params.model_fields.items():
        assert field.description, name
        assert field.metadata or field.annotation in (bool, str), f"{name} has no bounds"
    assert control.parse_params(json.loads(json.dumps(defaults.model_dump(mode="json")))) == defaults
    with pytest.raises(BadRequest, match="unknown"):
        control.parse_params({"no_such_setting": 1})


def test_extraction_keeps_size_and_type_or_says_what_is_missing(control: Control) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
    if not control.available():
        with pytest.raises(BadRequest, match="'ready'"):
            control.extract(picture, control.parse_params({}))
        assert control.compare(picture, picture) is None
        return
    before = picture.copy()
    map_HWC = control.extract(picture, control.parse_params({}))
    assert map_HWC.shape == picture.shape
    assert map_HWC.dtype == np.uint8
    np.testing.assert_array_equal(picture, before)
    score = control.compare(map_HWC, picture, control.parse_params({}))
    assert score is None or score.value == pytest.approx(1.0)  # a picture obeys the map made from it


def test_a_map_equals_itself(control: Control) -> None:
    blob = np.zeros((64, 64, 3), np.uint8)
    blob[20:40, 30:31] = 255
    score = control.compare_maps(blob, blob)
    assert score is None or (score.value == 1.0 and 0 <= score.value <= 1)


def test_resizing_obeys_its_kind(control: Control) -> None:
    black_and_white = np.zeros((90, 70, 3), np.uint8)
    black_and_white[::7] = 255
    values = set(np.unique(place(70, 90, 64, 64, "just").resize(black_and_white, control.resample)))
    assert control.resample == "area" or values == {0, 255}
