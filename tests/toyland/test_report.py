"""The table's verdicts, and that nothing unmeasured passes."""

import io
import json
from collections.abc import Mapping

import numpy as np
import pytest
from rich.console import Console

from toyland.report import GOALS, Report, Row, build_report

FULL = {
    "vae": (None, 35, None),
    "vae_inside": (None, 26, None),
    "colour": (0.2, 0.98, 1.0),
    "place": (0.3, 0.95, 1.0),
    "canny": (0.1, 0.5, 0.8),
    "depth": (30, 12, 5),
    "pose": (0.1, 0.69, 0.99),
    "composition": (0.3, 0.6, 1.0),
}
COLUMNS = ("floor", "value", "ceiling")


def scene(values: Mapping[str, tuple[float | None, ...]]) -> dict[tuple[str, str], list[float]]:
    return {
        (key, column): [number]
        for key, numbers in values.items()
        for column, number in zip(COLUMNS, numbers, strict=True)
        if number is not None
    }


def rows(report: Report) -> dict[str, Row]:
    return {row.key: row for row in report.rows}


def test_verdicts_follow_the_goals() -> None:
    found = rows(build_report([scene(FULL)], {}))
    verdicts = {key: (row.must_met, row.aim_met) for key, row in found.items()}
    assert verdicts == {
        "vae": (True, True),
        "vae_inside": (True, False),
        "colour": (True, True),
        "place": (True, False),
        "canny": (True, False),  # 5 times the floor, 62% of the ceiling
        "depth": (True, False),  # 0.4 of the floor
        "pose": (False, False),
        "composition": (True, False),
        **{goal.key: (None, None) for goal in GOALS if goal.key.startswith("estimator")},
    }


@pytest.mark.parametrize(
    ("numbers", "must"), [((0.2, 0.5, 0.6), False), ((0.1, 0.47, 0.8), False), ((0.1, 0.49, 0.8), True), ((None, 0.9, 0.9), False)]
)
def test_canny_needs_both_halves_of_its_goal(numbers: tuple[float | None, ...], must: bool) -> None:
    assert rows(build_report([scene({"canny": numbers})], {}))["canny"].must_met is must


def test_all_is_met_only_if_everything_is_measured() -> None:
    good = FULL | {"pose": (0.1, 0.7, 0.99)}
    assert build_report([scene(good)], {}).met
    assert not build_report([scene(FULL)], {}).met
    assert not build_report([scene({key: value for key, value in good.items() if key != "depth"})], {}).met


def test_numbers_are_pooled_over_scenes() -> None:
    scenes = [{("colour", "value"): [1.0, 1.0, 0.0]}, {("colour", "value"): [0.0]}, {}]
    row = rows(build_report(scenes, {}))["colour"]
    assert row.value == 0.5
    assert row.count == 2
    assert row.low is not None
    assert row.high is not None
    assert row.low <= row.value <= row.high
    assert row.floor is None


def test_it_is_written_for_machines_for_cards_and_for_terminals() -> None:
    report = build_report([scene(FULL)] * 3, {"model": "toyland", "count": 3})
    read = json.loads(report.as_json())
    assert read["settings"]["model"] == "toyland"
    assert read["rows"][0]["value"] == 35
    lines = report.as_markdown().splitlines()
    assert len(lines) == len(GOALS) + 2
    assert {line.count("|") for line in lines} == {7}
    assert "| 10.0% | 69.0% (69.0% to 69.0%) | 99.0% | 70%: missed | 95%: missed |" in lines[8]
    console = Console(width=110, file=io.StringIO())
    console.print(report.table())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "pose PCK@0.1" in shown
    assert "not measured" not in shown.split("estimator")[0]
    assert np.isfinite(read["rows"][4]["low"])
