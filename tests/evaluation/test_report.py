"""The table against means counted by hand, the curve's ends, the paired gain, and the plot."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from evaluation.bench import Reading
from evaluation.plot import plot
from evaluation.report import Report, best_of, build_report


def reading(case: int, what: str, at: float, *values: float) -> Reading:
    return Reading(case, "canny", what, at, "edge F1 within 1 px", "", values, tuple(100 * value for value in values))


READINGS = [
    reading(0, "floor", 0.0, 0.1, 0.3),
    reading(0, "value", 1.0, 0.5, 0.9),
    reading(0, "ceiling", 1.0, 1.0),
    reading(0, "weight", 0.5, 0.4, 0.4),
    reading(0, "end", 0.2, 0.3, 0.3),
    reading(1, "floor", 0.0, 0.0, 0.0),
    reading(1, "value", 1.0, 0.6, 0.6),
    reading(1, "ceiling", 1.0, 0.8),
]


def report() -> Report:
    return build_report(READINGS, ("canny", "pose"), {"model": "tiny"})


def test_means_are_over_all_pictures_and_the_way_is_from_floor_to_ceiling() -> None:
    row, nothing = report().rows
    assert row.floor is not None
    assert row.value is not None
    assert row.ceiling is not None
    assert (row.floor.score, row.value.score, row.ceiling.score) == pytest.approx((0.1, 0.65, 0.9))
    assert row.value.raw == pytest.approx(65)
    assert row.value.low == pytest.approx(0.6)  # two cases: the interval reaches from one's mean to the other's
    assert row.value.high == pytest.approx(0.7)
    assert row.share == pytest.approx(0.55 / 0.8)
    assert row.count == 2
    assert (nothing.count, nothing.value, nothing.share, nothing.best) == (0, None, None, None)


def test_a_curve_begins_at_the_floor_and_ends_at_the_value_of_the_swept_cases_alone() -> None:
    row = report().rows[0]
    assert {at: mean.score for at, mean in row.weights} == pytest.approx({0.0: 0.2, 0.5: 0.4, 1.0: 0.7})
    assert {at: mean.score for at, mean in row.ends} == pytest.approx({0.0: 0.2, 0.2: 0.3, 1.0: 0.7})


def test_the_best_gains_what_it_is_above_its_own_cases_mean() -> None:
    best = report().rows[0].best
    assert best is not None
    assert (best.of, best.score, best.gain) == pytest.approx((2, 0.75, 0.1))
    assert (best.low, best.high) == pytest.approx((0.0, 0.2))
    assert best_of([reading(0, "value", 1.0, 0.5)]) is None
    rng = np.random.default_rng(0)
    normal = best_of([reading(case, "value", 1.0, *rng.normal(0.5, 0.1, 4)) for case in range(400)])
    assert normal is not None
    # the expected largest of four standard normal numbers is 1.0294 (Harter, "Expected values of normal order statistics", 1961)
    assert normal.gain == pytest.approx(0.10294, abs=4 * 0.1 / np.sqrt(400))
    assert normal.low < normal.gain < normal.high


def test_for_machines_for_documents_and_for_people() -> None:
    found = report()
    values = json.loads(found.as_json())
    assert values["settings"] == {"model": "tiny"}
    assert values["rows"][0]["value"]["score"] == pytest.approx(0.65)
    text = found.as_markdown()
    assert "| canny | 2 | 0.100 | 0.650 (0.600 to 0.700) | 0.900 | 69% | edge F1 within 1 px: 10, 65, 90 |" in text
    assert "| pose | 0 | – | – | – | – | not measured: –, –, – |" in text
    assert found.best_as_markdown().splitlines()[2:] == ["| canny | 2 | 0.650 | 0.750 (of 2) | +0.100 (0.000 to 0.200) |"]
    assert found.table().row_count == 2
    assert found.sentences()[0] == "canny: edge F1 within 1 px: floor 10, value 65, ceiling 90"


def test_the_plot_is_a_picture_and_the_same_every_time() -> None:
    data = plot(report())
    assert data == plot(report())
    picture_HWC = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert picture_HWC.shape == (340, 900, 3)
    blue = np.abs(picture_HWC.astype(int) - (0, 114, 178)).max(axis=2) < 30
    assert blue[:, :450].any()
    assert blue[:, 450:].any()
    assert len(data) < 60_000
