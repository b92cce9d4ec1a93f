"""Fidelity along a comparison's axes of numbers, as a picture: what the weight of a control is worth, and how long it must act."""

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from core.control import Image
from core.images import decode
from core.sheet import PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REPEATED = "seed"  # pictures that differ in nothing else are averaged
MOST_DIAGRAMS, MOST_LINES = 3, 8
DPI, HEIGHT_PX, LEAST_WIDTH_PX = 100, 320, 480  # of one diagram with its legend

# Colours that people with any colour vision tell apart. Source: Okabe and Ito, "Color universal design", 2008.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000", "#999999")
_PAPER = "#{:02x}{:02x}{:02x}".format(*PAPER)


@dataclass(frozen=True)
class Point:
    """One control's fidelity in one picture. at: the picture's value on every axis, by the axis' name; kind: of the control."""

    at: dict[str, str]
    kind: str
    fidelity: float


def diagram_axes(points: Sequence[Point], numbers: Sequence[str]) -> list[str]:
    """Of the axes of numbers those along which anything can be seen, the repeated one left out."""
    varied = [axis for axis in numbers if axis != REPEATED and len({point.at[axis] for point in points}) > 1]
    return varied[:MOST_DIAGRAMS]


def lines(points: Sequence[Point], axis: str) -> dict[str, list[tuple[float, list[float]]]]:
    """For every line of the diagram along `axis`: the values on it, ascending, each with the fidelities found there.

    A line is a control and a value on each of the other axes that are not repeated; of more than eight, the values of all but the first
    other axis are taken together.
    """
    others = [name for name in (points[0].at if points else ()) if name not in (axis, REPEATED) and len({p.at[name] for p in points}) > 1]
    kinds = len({point.kind for point in points}) > 1 and "control kind" not in others
    while True:
        found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        for point in points:
            label = ", ".join([point.kind] * kinds + [f"{name} {point.at[name]}" for name in others])
            found[label][float(point.at[axis])].append(point.fidelity)
        if len(found) <= MOST_LINES or not others:
            return {label: sorted(line.items()) for label, line in found.items()}
        others.pop()


def plot(points: Sequence[Point], numbers: Sequence[str], width_px: int) -> Image | None:
    """The diagrams side by side, RGB uint8 HWC, `width_px` wide or more; None where no number is varied or nothing was measured."""
    axes = diagram_axes(points, numbers)
    if not axes:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = max(width_px, LEAST_WIDTH_PX * len(axes)) / DPI, HEIGHT_PX / DPI
    figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor=_PAPER)
    FigureCanvasAgg(figure)
    places = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for place, axis in zip(places, axes, strict=True):
        _draw(place, lines(points, axis))
        place.set_xlabel(axis)
    places[0].set_ylabel("fidelity (0 to 1)")
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return decode(out.getvalue())


def below(sheet_HWC: Image, plot_HWC: Image | None) -> Image:
    """The sheet with the plot below it, the narrower of both filled up with paper: RGB uint8 HWC."""
    if plot_HWC is None:
        return sheet_HWC
    width = max(sheet_HWC.shape[1], plot_HWC.shape[1])
    padded = []
    for part_HWC in (sheet_HWC, plot_HWC):
        whole_HWC = np.full((part_HWC.shape[0], width, 3), PAPER, np.uint8)
        whole_HWC[:, : part_HWC.shape[1]] = part_HWC
        padded.append(whole_HWC)
    return np.concatenate(padded)


def _draw(place: "Axes", found: dict[str, list[tuple[float, list[float]]]]) -> None:
    """A line through the means, and a dot for every picture where there are several."""
    for (label, line), colour in zip(found.items(), COLOURS, strict=False):
        at = [value for value, _ in line]
        place.plot(at, [float(np.mean(scores)) for _, scores in line], color=colour, marker="o", markersize=3.5, linewidth=1.5, label=label)
        if any(len(scores) > 1 for _, scores in line):
            dots = [(value, score) for value, scores in line for score in scores]
            place.scatter([value for value, _ in dots], [score for _, score in dots], color=colour, s=9, alpha=0.4, linewidths=0)
    place.set_ylim(0, 1)
    place.set_facecolor("white")
    place.grid(alpha=0.3, linewidth=0.5)
    for side in ("top", "right"):
        place.spines[side].set_visible(False)
    if len(found) > 1 or all(found):
        place.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
