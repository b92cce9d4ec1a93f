"""What a browser keeps of the settings: everything comes back, nothing that was forged or belongs to another version does."""

from typing import Any

import pytest

from core.request import MAX_CONTROLS, Hires
from tests.web.test_form import values
from web import remembered


def opened(**changed: Any) -> dict[str, Any]:
    """The page's values as a browser would have stored them."""
    everything = values(**changed) | {f"hires.{name}": field.default for name, field in Hires.model_fields.items()} | {"hires.on": False}
    return {
        name: everything[name] for name in remembered.kept(list(everything)) if name not in ("hires", "loras", "inversion", "skip_layers")
    }


SKIPPED = {"skip_layers.on": True, "skip_layers.blocks": "1 2", "skip_layers.scale": 2.0, "skip_layers.start": 0.5, "skip_layers.end": 0.9}


def stored(found: dict[str, Any]) -> dict[str, Any]:
    return {"version": remembered.version(), "values": found}


def test_settings_come_back_and_pictures_stay_away() -> None:
    page = opened(prompt="a cone", steps=7, control__weight=0.4, canny__low=33) | {"hires.on": True, "hires.scale": 1.5} | SKIPPED
    back = remembered.read(stored(page))
    wanted = {name: value for name, value in page.items() if not name.startswith("control.") or name.startswith("control.0.")}
    wanted |= {f"control.{i}.on": False for i in range(1, MAX_CONTROLS)}
    assert back == wanted
    assert not [name for name in back if name.endswith(("image", "painting", "mask"))]
    forged = remembered.read(stored(page | {"init_image": "/etc/passwd", "control.0.image": "/etc/passwd", "mask": "x"}))
    assert "init_image" not in forged
    assert "mask" not in forged


@pytest.mark.parametrize(
    "found",
    [None, 7, "x", [], {}, {"version": 0, "values": {"steps": 3}}, {"version": "older", "values": {"steps": 3}}, {"values": {"steps": 3}}],
)
def test_what_another_version_stored_is_ignored(found: Any) -> None:
    assert remembered.read(found) == {}


@pytest.mark.parametrize("found", [None, [], "x"])
def test_what_is_no_settings_is_ignored(found: Any) -> None:
    assert remembered.read({"version": remembered.version(), "values": found}) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", "many"),
        ("width", 100),
        ("negative_prompt", {"a": 1}),
        ("seed", -1),
        ("no such field", 1),
        ("hires.scale", 99),
        ("hires.on", "x"),
        ("hires.nothing", 1),
        ("inversion.iterations", 0),
        ("skip_layers.blocks", "seven"),
        ("loras", "bold=much"),
        ("loras", ["bold"]),
        ("controls", []),
    ],
)
def test_a_value_that_is_wrong_is_left_out_alone(name: str, value: Any) -> None:
    page = opened(prompt="a cone")
    back = remembered.read(stored(page | {name: value}))
    assert name not in back
    assert back["prompt"] == "a cone"


@pytest.mark.parametrize(
    ("name", "value"), [("kind", "nothing"), ("window", [2, 3]), ("weight", None), ("mode", 7), ("slider 0", "x"), ("kind", ["canny"])]
)
def test_a_unit_that_is_wrong_is_left_out_whole(name: str, value: Any) -> None:
    back = remembered.read(stored(opened() | {f"control.0.{name}": value}))
    assert not [own for own in back if own.startswith("control.0.")]
    without = opened()
    without.pop("control.0.mode")
    assert "control.0.on" not in remembered.read(stored(without))
