"""Axes as they are typed become requests, each cell labelled with what distinguishes it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import BadRequest
from core.request import ControlUnit, RenderRequest
from web import grid

BASE = RenderRequest(prompt="a red cube", seed=5, count=4, controls=(ControlUnit(kind="canny", image=Path("a.png"), params={"low": 10}),))


def test_two_axes_are_every_combination_the_first_fastest() -> None:
    found = grid.cells(BASE, [grid.read_axis("seed", "1-2, 7"), grid.read_axis("guidance", "1\n2.5")])
    assert [(cell.request.seed, cell.request.guidance_scale) for cell in found] == [(s, g) for g in (1, 2.5) for s in (1, 2, 7)]
    assert found[0].labels == ("seed 1", "guidance 1")
    assert found[0].at == {"seed": "1", "guidance": "1"}
    assert all(cell.request.count == 1 and cell.request.prompt == "a red cube" for cell in found)
    assert all("model" not in cell.request.model_fields_set for cell in found)


def test_words_controls_and_kinds() -> None:
    words = grid.cells(BASE, [grid.read_axis("prompt words", "red, light blue")])
    assert [cell.request.prompt for cell in words] == ["a red cube", "a light blue cube"]
    weights = grid.cells(BASE, [grid.read_axis("control weight", "0.5,1"), grid.read_axis("control end", "0.4")])
    assert [(unit.weight, unit.end, unit.params) for cell in weights for unit in cell.request.controls] == [
        (0.5, 0.4, {"low": 10}),
        (1.0, 0.4, {"low": 10}),
    ]
    (kinds,) = grid.cells(BASE, [grid.read_axis("control kind", "softedge")])
    assert (kinds.request.controls[0].kind, kinds.request.controls[0].params) == ("softedge", {})
    loras = [cell.request.loras for cell in grid.cells(BASE, [grid.read_axis("lora", "none, bold, bold:0.5, a:b")])]
    assert [[(one.name, one.weight) for one in each] for each in loras] == [[], [("bold", 1.0)], [("bold", 0.5)], [("a:b", 1.0)]]


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("prompt words", "red, blue", lambda request: request.prompt),
        ("seed", "3-4", lambda request: request.seed),
        ("steps", "2, 5", lambda request: request.steps),
        ("guidance", "1, 4", lambda request: request.guidance_scale),
        ("sampler", "ddim, euler", lambda request: request.sampler),
        ("schedule", "uniform, karras", lambda request: request.schedule),
        ("model", "toyland, other/base", lambda request: request.model),
        ("lora", "none, bold", lambda request: request.loras),
        ("control weight", "0, 1", lambda request: request.controls[0].weight),
        ("control start", "0, 0.5", lambda request: request.controls[0].start),
        ("control end", "0.5, 1", lambda request: request.controls[0].end),
        ("control mode", "balanced, control", lambda request: request.controls[0].mode),
        ("control kind", "canny, depth", lambda request: request.controls[0].kind),
    ],
)
def test_every_axis_varies_its_own(name: str, text: str, found: Callable[[RenderRequest], object]) -> None:
    first, second = (cell.request for cell in grid.cells(BASE, [grid.read_axis(name, text)]))
    assert found(first) != found(second)
    alike = {"prompt", "seed", "steps", "guidance_scale", "sampler", "schedule", "model", "loras", "controls"}
    varied = {field for field in alike if getattr(first, field) != getattr(second, field)}
    assert len(varied) == 1


def test_every_axis_is_tried_above() -> None:
    (mark,) = (mark for mark in test_every_axis_varies_its_own.pytestmark if mark.name == "parametrize")  # type: ignore[attr-defined]
    assert {case[0] for case in mark.args[1]} == grid.AXES.keys()


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ([("sead", "1")], "unknown axis 'sead': did you mean 'seed'"),
        ([("seed", " , ")], "seed: no values are given"),
        ([("seed", "1"), ("seed", "2")], "each only once"),
        ([], "at least one axis"),
        ([("guidance", "much")], "guidance 'much' is not a number"),
        ([("guidance", "99")], "guidance_scale = 99"),
        ([("prompt words", "green, blue")], "'green', does not stand in the prompt"),
        ([("sampler", "ddim, eular")], "unknown sampler 'eular': did you mean 'euler'"),
        ([("schedule", "karas")], "unknown schedule 'karas': did you mean 'karras'"),
        ([("control kind", "canni")], "unknown control 'canni': did you mean 'canny'"),
        ([("seed", "1-50"), ("steps", "1-3")], "150 pictures in one comparison: the limit is 100"),
    ],
)
def test_mistakes_are_named(axes: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        grid.cells(BASE, [grid.read_axis(*axis) for axis in axes])


def test_an_axis_of_controls_needs_one() -> None:
    with pytest.raises(BadRequest, match="there is no control in Create to vary"):
        grid.cells(RenderRequest(), [grid.read_axis("control end", "0.5")])
