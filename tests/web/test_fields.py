"""Components made from model fields; every registered kind of control can be shown."""

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

import controls
from core.request import Frozen, RenderRequest
from training.config import TrainConfig
from web import settings


class Example(Frozen):
    """One field of every sort."""

    few: int = Field(3, ge=1, le=9, description="a few of them")
    many: int = Field(20, ge=1, le=1000)
    coarse: int = Field(512, ge=64, le=2048, multiple_of=8)
    part: float = Field(0.5, ge=0.0, le=1.0)
    amount: float = Field(1.0, ge=0.0)
    either: bool = True
    which: Literal["left", "right"] = "right"
    note: str = "text"
    where: Path | None = None
    maybe: int | None = Field(None, ge=0, le=5)
    strange: tuple[int, ...] = ()


def test_the_page_offers_every_sampler_and_schedule() -> None:
    from pipelines.samplers import SAMPLERS
    from pipelines.schedules import SCHEDULES
    from web import create

    assert list(SAMPLERS) == create.SAMPLERS
    assert list(SCHEDULES) == create.SCHEDULES


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("few", "Slider", {"minimum": 1, "maximum": 9, "step": 1, "value": 3, "label": "Few", "info": "A few of them"}),
        ("many", "Number", {"step": 1, "value": 20, "minimum": None, "maximum": None}),
        ("coarse", "Slider", {"minimum": 64, "maximum": 2048, "step": 8, "value": 512}),
        ("part", "Slider", {"minimum": 0.0, "maximum": 1.0, "step": 0.01, "value": 0.5}),
        ("amount", "Number", {"value": 1.0}),
        ("either", "Checkbox", {"value": True}),
        ("which", "Dropdown", {"choices": [("left", "left"), ("right", "right")], "value": "right"}),
        ("note", "Textbox", {"value": "text"}),
        ("where", "Textbox", {"value": ""}),
        ("maybe", "Number", {"value": ""}),
    ],
)
def test_a_field_has_its_component(name: str, kind: str, expected: dict[str, Any]) -> None:
    from web.fields import component

    made = component(Example, name)
    assert type(made).__name__ == kind
    assert {key: getattr(made, key) for key in expected} == expected


def test_an_empty_component_is_nothing_where_a_field_may_be_nothing() -> None:
    held = {"maybe": "", "where": " ", "note": "", "few": ""}
    assert settings.typed(Example, held) == {"maybe": None, "where": None, "note": "", "few": ""}
    assert settings.typed(Example, {"maybe": 3, "where": "x"}) == {"maybe": 3, "where": "x"}


def test_overrides_win_and_strange_types_are_our_mistake() -> None:
    from web.fields import component

    assert component(Example, "few", label="So many", info=None).label == "So many"
    with pytest.raises(TypeError, match=r"Example\.strange"):
        component(Example, "strange")


@pytest.mark.parametrize(("span", "step"), [(1.0, 0.01), (2.0, 0.02), (50.0, 0.5), (3.0, 0.02), (255.0, 2.0), (0.1, 0.001)])
def test_steps_are_round(span: float, step: float) -> None:
    from web.fields import _round_step

    assert _round_step(span) == step


@pytest.mark.parametrize("kind", controls.names())
def test_every_setting_has_a_slot_of_its_own(kind: str) -> None:
    from web.fields import settings_of

    params = controls.get(kind).params
    shown = dict(zip(settings.pool(), settings_of(kind), strict=True))
    used = settings.slots(params)
    assert {slot for slot, one in shown.items() if one["visible"]} == set(used.values())
    assert len(set(used.values())) == len(params.model_fields)
    values = {name: shown[slot]["value"] for name, slot in used.items()}
    assert params.model_validate(settings.typed(params, values)) == params.model_validate({})


@pytest.mark.parametrize("kind", controls.names())
def test_every_kind_of_control_can_be_shown(kind: str) -> None:
    from web.fields import components

    params = controls.get(kind).params
    made = components(params, kind)
    assert list(made) == [f"{kind}.{name}" for name in params.model_fields]
    shown = {name.partition(".")[2]: component.value for name, component in made.items()}
    assert params.model_validate(settings.typed(params, shown)) == params.model_validate({})


def test_abbreviations_are_spelled_as_such() -> None:
    from web.fields import properties

    fields = ((RenderRequest, "pag_scale"), (RenderRequest, "tile_vae"), (TrainConfig, "ema_on_cpu"), (TrainConfig, "clip"))
    assert [properties(model, name)["label"] for model, name in fields] == ["PAG scale", "Tile VAE", "EMA on CPU", "Clip"]
