"""What the embedded model must reach, and the table that says whether it does: on a terminal, as JSON, as Markdown."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from core.intervals import bootstrap

if TYPE_CHECKING:
    from rich.table import Table

Column = str  # "floor", "value" or "ceiling"
Measured = Mapping[tuple[str, Column], Sequence[float]]  # one scene's numbers by row and column


@dataclass(frozen=True)
class Bar:
    """A condition on a row and its words."""

    text: str
    passes: Callable[[float, float, float], bool]  # value, floor, ceiling


def _at_least(limit: float, text: str) -> Bar:
    return Bar(text, lambda value, floor, ceiling: value >= limit)


def _share(limit: float) -> Bar:
    return _at_least(limit, f"{limit:.0%}")


def _of_floor(factor: float) -> Bar:
    return Bar(f"≤ {factor:g}× floor", lambda value, floor, ceiling: value <= factor * floor)


@dataclass(frozen=True)
class Goal:
    """One row before it is measured; `meaning` says how."""

    key: str
    title: str
    meaning: str
    unit: str
    must: Bar | None = None
    aim: Bar | None = None


_CANNY_MUST = Bar("3× floor, 60% of ceiling", lambda value, floor, ceiling: value >= 3 * floor and value >= 0.6 * ceiling)
_CANNY_AIM = Bar("90% of ceiling", lambda value, floor, ceiling: value >= 0.9 * ceiling)

GOALS = (
    Goal("vae", "VAE PSNR", "over the whole picture", "dB", _at_least(30, "30 dB"), _at_least(34, "34 dB")),
    Goal("vae_inside", "VAE PSNR in objects", "inside objects and figures alone", "dB", _at_least(24, "24 dB"), _at_least(29, "29 dB")),
    Goal("colour", "colours", "median colour in the exact mask is the named one; depth-controlled", "%", _share(0.85), _share(0.97)),
    Goal("place", "ground and sky", "as named; depth-controlled", "%", _share(0.90), _share(0.99)),
    Goal("canny", "canny F1", "edges within 1 px", "", _CANNY_MUST, _CANNY_AIM),
    Goal(
        "depth", "depth RMSE", "levels of 255 after scale and shift, by the embedded estimator", "levels", _of_floor(0.5), _of_floor(0.25)
    ),
    Goal("pose", "pose PCK@0.1", "of the figure's height, ten limb joints, by the embedded estimator", "%", _share(0.70), _share(0.95)),
    Goal("composition", "colours of unseen pairs", "of colour and shape; depth-controlled", "%", _share(0.60), _share(0.90)),
    Goal("estimator_depth", "estimator: depth RMSE", "on true pictures, as above", "levels"),
    Goal("estimator_delta", "estimator: δ < 1.25", "on true pictures, aligned inverse depth, sky left out", "%"),
    Goal("estimator_pose", "estimator: PCK@0.1", "on true pictures, as above", "%"),
    Goal("estimator_person", "estimator: person", "found where there is one and not where there is none, on true pictures", "%"),
)


@dataclass(frozen=True)
class Row:
    """A measured row. value None: not measured. low, high: 95% interval of the value. count: scenes that took part."""

    key: str
    title: str
    meaning: str
    unit: str
    floor: float | None
    value: float | None
    ceiling: float | None
    low: float | None
    high: float | None
    count: int
    must: str
    aim: str
    must_met: bool | None
    aim_met: bool | None

    def shown(self, number: float | None) -> str:
        """A number of this row in its unit, or a dash."""
        if number is None:
            return "–"
        if self.unit == "%":
            return f"{number:.1%}"
        return f"{number:.3f}" if self.unit == "" else f"{number:.2f}"


@dataclass(frozen=True)
class Report:
    """The whole table and how it was made."""

    rows: tuple[Row, ...]
    settings: dict[str, Any]

    @property
    def met(self) -> bool:
        """Whether every row that has a bar is measured and passes it."""
        return all(row.must_met for row in self.rows if row.must)

    def as_json(self) -> str:
        """For machines."""
        return json.dumps({"met": self.met, "settings": self.settings, "rows": [asdict(row) for row in self.rows]}, indent=1) + "\n"

    def as_markdown(self) -> str:
        """For the model card."""
        lines = ["| | floor | value (95%) | ceiling | must | aim |", "|---|---|---|---|---|---|"]
        for row in self.rows:
            interval = "" if row.low is None else f" ({row.shown(row.low)} to {row.shown(row.high)})"
            bars = [f"{text}: {_verdict(met)}" if text else "" for text, met in ((row.must, row.must_met), (row.aim, row.aim_met))]
            cells = [f"{row.title}: {row.meaning}", row.shown(row.floor), row.shown(row.value) + interval, row.shown(row.ceiling), *bars]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def table(self) -> "Table":
        """For people at a terminal."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, caption=_caption(self.settings))
        for name in ("", "floor", "value", "95%", "ceiling", "must", "aim"):
            table.add_column(name, justify="left" if name in ("", "must", "aim") else "right")
        for row in self.rows:
            interval = "" if row.low is None else f"{row.shown(row.low)}…{row.shown(row.high)}"
            bars = [
                Text(f"{text} {_verdict(met)}" if text else "", style={True: "green", False: "red", None: "yellow"}[met])
                for text, met in ((row.must, row.must_met), (row.aim, row.aim_met))
            ]
            table.add_row(Text(row.title), row.shown(row.floor), row.shown(row.value), interval, row.shown(row.ceiling), *bars)
        return table


def build_report(scenes: Sequence[Measured], settings: dict[str, Any]) -> Report:
    """Means over all numbers of each row and column, with intervals over scenes."""
    return Report(tuple(_row(goal, scenes) for goal in GOALS), settings)


def _row(goal: Goal, scenes: Sequence[Measured]) -> Row:
    def groups(column: Column) -> list[Sequence[float]]:
        return [scene[goal.key, column] for scene in scenes if scene.get((goal.key, column))]

    def mean(column: Column) -> float | None:
        found = groups(column)
        return float(np.mean(np.concatenate([np.asarray(group, np.float64) for group in found]))) if found else None

    floor, value, ceiling = (mean(column) for column in ("floor", "value", "ceiling"))
    low, high = bootstrap(groups("value")) if value is not None else (None, None)

    def met(bar: Bar | None) -> bool | None:
        if bar is None or value is None:
            return None
        return bar.passes(value, float("nan") if floor is None else floor, float("nan") if ceiling is None else ceiling)

    return Row(
        key=goal.key,
        title=goal.title,
        meaning=goal.meaning,
        unit=goal.unit,
        floor=floor,
        value=value,
        ceiling=ceiling,
        low=low,
        high=high,
        count=len(groups("value")),
        must=goal.must.text if goal.must else "",
        aim=goal.aim.text if goal.aim else "",
        must_met=met(goal.must),
        aim_met=met(goal.aim),
    )


def _verdict(met: bool | None) -> str:
    return {True: "met", False: "missed", None: "not measured"}[met]


def _caption(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items() if isinstance(value, (int, float, str)))
