"""The table of a bench: for each kind floor, value and ceiling with intervals, the curves, and what the best of several seeds gains."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from core.intervals import bootstrap
from evaluation.bench import Reading

if TYPE_CHECKING:
    from rich.table import Table

ABOUT = (
    "Floor: the same prompt and noise without the control. Ceiling: the true picture through the autoencoder. In brackets 95% intervals by "
    "bootstrap over pictures."
)


@dataclass(frozen=True)
class Mean:
    """A mean over cases: of the scores from 0 to 1, with a 95% interval, and of the metric in its own unit, with one too."""

    score: float
    low: float
    high: float
    raw: float
    raw_low: float
    raw_high: float
    count: int

    @classmethod
    def of(cls, readings: Sequence[Reading]) -> "Mean | None":
        """The mean of these readings; None of none."""
        if not readings:
            return None
        scores, raws = [reading.values for reading in readings], [reading.raws for reading in readings]
        score, raw = (float(np.mean(np.concatenate(values))) for values in (scores, raws))
        return cls(score, *bootstrap(scores), raw, *bootstrap(raws), len(readings))


@dataclass(frozen=True)
class Best:
    """What choosing gains: the mean score of each case's best of `of` pictures, and the mean gain over one picture, paired by case."""

    of: int
    score: float
    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One kind. weights, ends: (at, mean) from the sweep alone, in rising order, floor and value of the same cases among them."""

    kind: str
    metric: str
    unit: str
    count: int
    floor: Mean | None
    value: Mean | None
    ceiling: Mean | None
    best: Best | None
    weights: tuple[tuple[float, Mean], ...]
    ends: tuple[tuple[float, Mean], ...]

    @property
    def share(self) -> float | None:
        """How much of the way from floor to ceiling the value has gone."""
        if not (self.floor and self.value and self.ceiling) or self.ceiling.score == self.floor.score:
            return None
        return (self.value.score - self.floor.score) / (self.ceiling.score - self.floor.score)


@dataclass(frozen=True)
class Report:
    """All kinds, and how they were measured."""

    rows: tuple[Row, ...]
    settings: Mapping[str, Any]

    @property
    def swept(self) -> bool:
        """Whether there are curves over weight and window."""
        return any(row.weights or row.ends for row in self.rows)

    def as_json(self) -> str:
        """For machines, and for `evaluation.known`."""
        return json.dumps({"settings": self.settings, "rows": [asdict(row) for row in self.rows]}, indent=1) + "\n"

    def as_markdown(self) -> str:
        """For documentation."""
        lines = ["| control | pictures | floor | value | ceiling | of the way | in its own unit: floor, value, ceiling |"]
        lines.append("|---|---|---|---|---|---|---|")
        for row in self.rows:
            raws = ", ".join(_raw(mean) for mean in (row.floor, row.value, row.ceiling))
            means = [_score(row.floor), _score(row.value, interval=True), _score(row.ceiling)]
            lines.append(f"| {row.kind} | {row.count} | {' | '.join(means)} | {_percent(row.share)} | {row.metric}{_in(row)}: {raws} |")
        lines += ["", ABOUT]
        return "\n".join([*lines, ""])

    def best_as_markdown(self) -> str:
        """What the best of several gains, for documentation."""
        lines = ["| control | prompts | one picture | best of several | gain |", "|---|---|---|---|---|"]
        lines += [
            f"| {row.kind} | {row.count} | {_score(row.value)} | {_best(row.best)} | {_gain(row.best)} |" for row in self.rows if row.best
        ]
        return "\n".join([*lines, ""])

    def table(self) -> "Table":
        """For people at a terminal."""
        from core import terminal

        columns = ["control", "pictures", "floor", "value", "95%", "ceiling", "of the way"]
        filled = terminal.table(*columns, right=columns[1:])
        for row in self.rows:
            interval = f"{row.value.low:.3f}…{row.value.high:.3f}" if row.value else ""
            means = [_score(row.floor), _score(row.value), interval, _score(row.ceiling)]
            filled.add_row(row.kind, str(row.count), *means, _percent(row.share))
        return filled

    def sentences(self) -> list[str]:
        """What stands below the table: each metric in its own unit, and what choosing the best gains."""
        found = []
        for row in self.rows:
            means = zip(("floor", "value", "ceiling"), (row.floor, row.value, row.ceiling), strict=True)
            found.append(f"{row.kind}: {row.metric}{_in(row)}: {', '.join(f'{name} {_raw(mean)}' for name, mean in means)}")
        found += [f"{row.kind}: best of several {_best(row.best)}, gain over one {_gain(row.best)}" for row in self.rows if row.best]
        return found


def build_report(readings: Sequence[Reading], kinds: Sequence[str], settings: Mapping[str, Any]) -> Report:
    """The table of all readings; a kind of which nothing was measured has a row without numbers."""
    return Report(tuple(_row(kind, [reading for reading in readings if reading.kind == kind]) for kind in kinds), settings)


def _row(kind: str, readings: Sequence[Reading]) -> Row:
    def those(what: str) -> list[Reading]:
        return [reading for reading in readings if reading.what == what]

    def curve(what: str) -> tuple[tuple[float, Mean], ...]:
        swept = {reading.case for reading in those(what)}
        ends = [
            replace(reading, at=at) for edge, at in (("floor", 0.0), ("value", 1.0)) for reading in those(edge) if reading.case in swept
        ]
        points = [*those(what), *ends]
        means = ((at, Mean.of([point for point in points if point.at == at])) for at in sorted({point.at for point in points}))
        return tuple((at, mean) for at, mean in means if mean is not None)

    value = those("value")
    return Row(
        kind=kind,
        metric=value[0].metric if value else "not measured",
        unit=value[0].unit if value else "",
        count=len(value),
        floor=Mean.of(those("floor")),
        value=Mean.of(value),
        ceiling=Mean.of(those("ceiling")),
        best=best_of(value),
        weights=curve("weight"),
        ends=curve("end"),
    )


def best_of(readings: Sequence[Reading]) -> Best | None:
    """What the best of each case's pictures gains over one of them, taken at random; None where there is one alone.

    The gain is paired: in each case the best minus the mean, with an interval over cases.
    """
    if not readings or min(len(reading.values) for reading in readings) < 2:
        return None
    gains = [[max(reading.values) - float(np.mean(reading.values))] for reading in readings]
    best = float(np.mean([max(reading.values) for reading in readings]))
    return Best(len(readings[0].values), best, float(np.mean(gains)), *bootstrap(gains))


def _score(mean: Mean | None, *, interval: bool = False) -> str:
    if mean is None:
        return "–"
    return f"{mean.score:.3f}" + (f" ({mean.low:.3f} to {mean.high:.3f})" if interval else "")


def _raw(mean: Mean | None) -> str:
    return "–" if mean is None else f"{mean.raw:.3g}"


def _in(row: Row) -> str:
    return f" ({row.unit})" if row.unit else ""


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def _best(best: Best | None) -> str:
    return "–" if best is None else f"{best.score:.3f} (of {best.of})"


def _gain(best: Best | None) -> str:
    return "–" if best is None else f"+{best.gain:.3f} ({best.low:.3f} to {best.high:.3f})"
