"""What a request accepts, how it refuses, and when two are equal."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from core.errors import BadRequest
from core.request import RenderRequest, build_request

CONTROL = {"kind": "canny", "image": "photo.jpg"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 100}, "width = 100: input should be a multiple of 8, for example 96"),
        ({"width": 1, "height": 4999}, "width = 1: input should be a multiple of 8, for example 64; height = 4999: "),
        ({"height": 4999}, "height = 4999: input should be a multiple of 8, for example 4096"),
        ({"height": 32}, "height = 32: input should be greater than or equal to 64"),
        ({"width": 8192}, "width = 8192: input should be less than or equal to 4096"),
        ({"steps": 0}, "steps = 0: input should be greater than or equal to 1"),
        ({"steps": 2.5}, "steps = 2.5: input should be a valid integer, got a number with a fractional part"),
        ({"steps": True}, "steps = True: expected a number, not true or false"),
        ({"guidance_scale": True}, "guidance_scale = True: expected a number, not true or false"),
        ({"guidance_scale": float("nan")}, "guidance_scale = nan: input should be a finite number"),
        ({"seed": 2**63}, "seed = 9223372036854775808: input should be less than 9223372036854775808"),
        ({"seed": -1}, "seed = -1: input should be greater than or equal to 0"),
        ({"prompt": "a\ud800"}, "prompt = 'a\\ud800': input should be a valid string"),
        ({"controls": [{**CONTROL, "weight": 3}]}, "controls.0.weight = 3: input should be less than or equal to 2"),
        ({"controls": [{**CONTROL, "start": 0.8, "end": 0.2}]}, "controls.0: start 0.8 is after end 0.2: give start <= end"),
        (
            {"controls": [{**CONTROL, "mode": "loud"}]},
            "controls.0.mode = 'loud': input should be 'balanced', 'prompt', 'control' or 'guess'",
        ),
        ({"controls": [{**CONTROL, "wieght": 1}]}, "controls.0: unknown key 'wieght': did you mean 'weight'? known are end, image,"),
        ({"controls": [CONTROL] * 9}, "controls: tuple should have at most 8 items"),
        ({"promt": "a dog"}, "unknown key 'promt': did you mean 'prompt'? known are "),
        ({"width": 100, "steps": 0}, "width = 100: input should be a multiple of 8, for example 96; steps = 0: "),
    ],
)
def test_a_bad_value_is_one_line_with_value_and_limit(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        build_request(values)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_values_at_their_bounds_are_accepted() -> None:
    unit = {**CONTROL, "weight": 2, "start": 0.5, "end": 0.5}
    request = build_request({"width": 64, "height": 4096, "steps": 1000, "seed": 2**63 - 1, "guidance_scale": 0, "controls": [unit] * 8})
    assert request.controls[7].weight == 2.0


def test_requests_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        build_request({}).steps = 5


def test_equal_requests_have_equal_text_and_hash_and_others_have_not() -> None:
    one = build_request({"prompt": "a dög", "steps": 5, "controls": [CONTROL]})
    other = build_request({"controls": [dict(reversed(CONTROL.items()))], "steps": "5", "prompt": "a dög"})
    assert one.canonical_json() == other.canonical_json()
    assert one.sha256() == other.sha256()
    assert one.sha256() != build_request({"prompt": "a dög", "steps": 6, "controls": [CONTROL]}).sha256()
    assert " " not in one.canonical_json().replace("a dög", "")


def test_what_was_added_later_changes_no_key_where_it_is_not_asked_for() -> None:
    """A batch that was begun with an older Limn goes on."""
    assert RenderRequest().sha256() == "c04a55c4394fb17a37123a5fa8fa4fe87e6473ecc70ee59346cd3dbb512d405a"
    assert build_request({"skip_layers": None}).canonical_json() == RenderRequest().canonical_json()
    assert build_request({"skip_layers": {}}).sha256() != RenderRequest().sha256()


@pytest.mark.parametrize("blocks", [[], [-1], [100], ["x"], "7, 8", [1.5]])
def test_blocks_that_there_cannot_be_are_refused(blocks: Any) -> None:
    with pytest.raises(BadRequest, match=r"skip_layers\.blocks"):
        build_request({"skip_layers": {"blocks": blocks}})
    with pytest.raises(BadRequest, match=r"start 0\.5 is after end 0\.2"):
        build_request({"skip_layers": {"start": 0.5}})


def test_canonical_json_is_the_request() -> None:
    request = build_request({"prompt": "a dog", "controls": [{**CONTROL, "params": {"low": 50}, "mask": "m.png"}]})
    assert RenderRequest.model_validate(json.loads(request.canonical_json())) == request
