"""Fidelity along axes: which lines there are, and where they are drawn."""

import itertools

import numpy as np

from core.sheet import PAPER
from web import compare_plot
from web.compare_plot import Point

WEIGHTS, ENDS, SEEDS = ("0", "0.5", "1"), ("0.5", "1"), ("1", "2")


def measured(weight: str, end: str, seed: str) -> float:
    """Made up, and different for every picture."""
    return 0.6 * float(weight) + 0.2 * float(end) + 0.1 * (int(seed) - 1)


POINTS = [
    Point({"control weight": weight, "control end": end, "seed": seed}, "canny", measured(weight, end, seed))
    for weight, end, seed in itertools.product(WEIGHTS, ENDS, SEEDS)
]


def test_a_line_for_every_value_of_the_other_axis_seeds_taken_together() -> None:
    found = compare_plot.lines(POINTS, "control weight")
    assert list(found) == ["control end 0.5", "control end 1"]
    expected = [(float(weight), [measured(weight, "0.5", seed) for seed in SEEDS]) for weight in WEIGHTS]
    assert found["control end 0.5"] == expected
    assert list(compare_plot.lines(POINTS, "control end")) == [f"control weight {weight}" for weight in WEIGHTS]


def test_several_controls_are_told_apart() -> None:
    both = POINTS + [Point(point.at, "depth", 0.5) for point in POINTS]
    assert list(compare_plot.lines(both, "control end"))[0] == "canny, control weight 0"  # noqa: RUF015
    assert len(compare_plot.lines(both, "control weight")) == 4


def test_too_many_lines_are_taken_together() -> None:
    many = [Point({"steps": "4", "guidance": str(g), "control end": str(e)}, "canny", 0.5) for g in range(5) for e in (0.5, 1)]
    many += [Point(point.at | {"steps": "8"}, point.kind, 0.7) for point in many]
    assert list(compare_plot.lines(many, "steps")) == [f"guidance {g}" for g in range(5)]


def test_diagrams_are_of_what_is_varied() -> None:
    assert compare_plot.diagram_axes(POINTS, ["seed", "control weight", "control end"]) == ["control weight", "control end"]
    alone = [point for point in POINTS if point.at["control weight"] == "1"]
    assert compare_plot.diagram_axes(alone, ["control weight", "control end"]) == ["control end"]
    assert compare_plot.plot([], ["control weight"], 640) is None
    assert compare_plot.plot(POINTS, [], 640) is None


def test_a_line_lies_where_its_values_are() -> None:
    """With one line the mark of the largest fidelity is the highest in its colour, and it is found where the axes put it."""
    line = [Point({"control weight": weight}, "canny", value) for weight, value in (("0", 0.0), ("1", 1.0), ("2", 0.0))]
    plot_HWC = compare_plot.plot(line, ["control weight"], 640)
    assert plot_HWC is not None
    colour = np.array([int(compare_plot.COLOURS[0][i : i + 2], 16) for i in (1, 3, 5)])
    rows, columns = np.nonzero((np.abs(plot_HWC.astype(int) - colour) < 8).all(axis=2))
    inside = columns < 0.7 * plot_HWC.shape[1]  # the legend is not the line
    top = columns[rows == rows[inside].min()].mean()
    middle = (columns[inside].min() + columns.max()) / 2
    assert abs(top - middle) < 8  # pixels: half a mark, and the margin of the axes
    assert (plot_HWC.shape[0], plot_HWC.shape[1]) == (compare_plot.HEIGHT_PX, 640)
    assert tuple(plot_HWC[0, 0]) == PAPER


def test_sheet_and_plot_become_one_picture() -> None:
    sheet_HWC, plot_HWC = np.zeros((10, 20, 3), np.uint8), np.full((5, 30, 3), 9, np.uint8)
    whole_HWC = compare_plot.below(sheet_HWC, plot_HWC)
    assert whole_HWC.shape == (15, 30, 3)
    assert not whole_HWC[:10, :20].any()
    assert (whole_HWC[:10, 20:] == PAPER).all()
    assert (whole_HWC[10:] == 9).all()
    assert compare_plot.below(sheet_HWC, None) is sheet_HWC
