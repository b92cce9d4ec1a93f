"""Fidelity against the control's weight and against the end of its window, as a picture."""

import io
from typing import TYPE_CHECKING, Any

from evaluation.report import Report, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that people with any colour vision tell apart. Source: Okabe and Ito, "Color universal design", 2008.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000", "#f0e442")
SIZE_INCHES, DPI = (9.0, 3.4), 100


def plot(report: Report) -> bytes:
    """Two diagrams side by side as the bytes of a PNG file: a line a kind with its 95% band, the kind's ceiling dotted."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for number, row in enumerate(report.rows):
        colour = COLOURS[number % len(COLOURS)]
        _line(left, row, row.weights, colour)
        _line(right, row, row.ends, colour)
    _labelled(left, "weight, over the whole time")
    _labelled(right, "end of the window, at weight 1")
    left.set_ylabel("mean score (0 to 1)")
    left.legend(frameon=False, loc="lower right")
    out = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(out, format="png", metadata={"Software": None})  # equal reports give equal bytes
    return out.getvalue()


def _line(axes: "Axes", row: Row, points: Any, colour: str) -> None:
    if row.ceiling is not None:
        axes.axhline(row.ceiling.score, color=colour, linestyle=":", linewidth=1)
    at = [place for place, _ in points]
    axes.plot(at, [mean.score for _, mean in points], color=colour, marker="o", markersize=3, label=row.kind)
    axes.fill_between(at, [mean.low for _, mean in points], [mean.high for _, mean in points], color=colour, alpha=0.15, linewidth=0)


def _labelled(axes: "Axes", text: str) -> None:
    axes.set_xlabel(text)
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3, linewidth=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
