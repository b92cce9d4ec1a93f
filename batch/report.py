"""`report.html`: what a batch came to, on one page without scripts or anything from elsewhere: pictures, failures, fidelity, throughput."""

import html
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from batch.journal import mean, read_journal
from batch.store import REPORT, Store, pictures, read_failures
from batch.times import duration

MOST_PICTURES, MOST_FAILURES, BINS, SPANS = 400, 500, 20, 60
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1200px;padding:0 1rem;color:#28282c;background:#fafaf8}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .9rem .25rem 0;text-align:left;vertical-align:top}
td.number{text-align:right;font-variant-numeric:tabular-nums}.error{color:#a02020;overflow-wrap:anywhere}
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:12px}
figure{margin:0}img{width:100%;border:1px solid #d6d6d2;background:#fff}figcaption{font-size:12px;color:#60606a;overflow-wrap:anywhere}
svg{background:#fff;border:1px solid #d6d6d2}h2{margin-top:2.5rem}
"""


@dataclass
class Summary:
    """What the journal and the files tell. done: the last event of each picture that is there, in the order they were made."""

    total: int = 0
    done: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    flying: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    orphans: int = 0

    @property
    def left(self) -> int:
        return max(0, self.total - len(self.done) + self.orphans - len(self.failed))

    @property
    def rate(self) -> float | None:
        """Pictures a second of the last run, from its events' times."""
        start = float(self.runs[-1]["time"]) if self.runs else 0.0
        times = [float(event["time"]) for event in self.done if event.get("seconds") is not None and float(event["time"]) >= start]
        return len(times) / (max(times) - start) if times and max(times) > start else None


def summarise(store: Store) -> Summary:
    """Looks at a store: the files decide what is done, the journal knows how it went."""
    names = store.names()
    there, found = pictures(names), Summary()
    done: dict[str, dict[str, Any]] = {}
    started: dict[str, dict[str, Any]] = {}
    for event in read_journal(store):
        name = str(event.get("name", ""))
        match event["event"]:
            case "run":
                found.runs.append(event)
                started.clear()
            case "started":
                started[name] = event
            case "done" | "failed":
                started.pop(name, None)
                if event["event"] == "done" and (name not in done or event.get("seconds") is not None):
                    done[name] = event
            case "end":
                started.clear()
    found.done = sorted((done.get(name, {"name": name, "time": 0.0}) for name in there), key=lambda event: float(event["time"]))
    last = found.runs[-1] if found.runs else {}
    found.failed = list(read_failures(store, names - set(last.get("old_failures", ()))).values())
    found.flying = list(started.values())
    found.orphans = len(there & set(last.get("orphans", ())))
    found.total = int(last["total"]) if last else len(there) + len(found.failed)
    return found


def write_report(store: Store) -> Summary:
    """Makes the report anew from what is there.

    Raises:
        DiskFull, BadRequest: the store cannot be written to.
    """
    summary = summarise(store)
    store.publish(REPORT, page(summary).encode())
    return summary


def page(summary: Summary) -> str:
    """The report as HTML; every text from outside is escaped."""
    known = [value for event in summary.done if (value := score(event)) is not None]
    seconds = [float(event["seconds"]) for event in summary.done if event.get("seconds") is not None]
    rows = [
        ("jobs", f"{summary.total}"),
        ("done", f"{len(summary.done) - summary.orphans}"),
        ("failed", f"{len(summary.failed)}"),
        ("left", f"{summary.left}"),
        ("pictures no job asks for any more", f"{summary.orphans}"),
        ("fidelity, mean", "not measured" if not known else f"{sum(known) / len(known):.3f}"),
        ("seconds a picture, median", "unknown" if not seconds else f"{sorted(seconds)[len(seconds) // 2]:.2f}"),
        ("pictures a second, last run", "unknown" if summary.rate is None else f"{summary.rate:.2f}"),
    ]
    table = "".join(f"<tr><th>{name}</th><td class=number>{value}</td></tr>" for name, value in rows)
    parts = [f"<h1>Limn: batch</h1><p>{time.strftime('%Y-%m-%d %H:%M:%S')}</p><table>{table}</table>"]
    if known:
        parts.append("<h2>Fidelity</h2>" + _bars(_histogram(known), [f"{i / BINS:.2f}" for i in range(BINS + 1)], "pictures"))
    if len(summary.done) > 1:
        parts.append("<h2>Throughput</h2>" + _throughput(summary.done))
    if summary.failed:
        parts.append(_failures(summary.failed))
    parts.append(_sheet(summary.done))
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Limn: batch</title><style>{_STYLE}</style>{"".join(parts)}</html>'


def score(event: dict[str, Any]) -> float | None:
    """A picture's fidelity, the mean over its controls."""
    return mean((event.get("fidelity") or {}).values())


def _histogram(values: Sequence[float]) -> list[int]:
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, int(value * BINS))] += 1
    return counts


def _throughput(done: Sequence[dict[str, Any]]) -> str:
    """Pictures in each of at most sixty equal spans of a second or more; times without pictures are left out where they are long."""
    times = [float(event["time"]) for event in done if float(event["time"]) > 0]
    if not times:
        return ""
    gaps = [min(after - before, 600.0) for before, after in itertools.pairwise(times)]
    at, places = 0.0, [0.0]
    for gap in gaps:
        at += gap
        places.append(at)
    span = max(at / SPANS, 1.0)
    counts = [0] * max(1, math.ceil(at / span))
    for place in places:
        counts[min(len(counts) - 1, int(place / span))] += 1
    return _bars(counts, [duration(i * span) for i in range(len(counts) + 1)], f"pictures in {duration(span)}")


def _bars(counts: Sequence[int], labels: Sequence[str], unit: str) -> str:
    """labels: where each bar begins, and where the last ends."""
    width, height, most = 900, 160, max(1, *counts)
    step = width / len(counts)
    drawn = ""
    for i, count in enumerate(counts):
        tall = count / most * height
        box = f'x="{i * step + 1:.1f}" y="{height - tall:.1f}" width="{step - 2:.1f}" height="{tall:.1f}"'
        drawn += f'<rect {box} fill="#4a6fa5"><title>{labels[i]}: {_counted(count, unit)}</title></rect>'
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">{drawn}</svg>'
        f"<p>from {labels[0]} to {labels[-1]}; the highest bar is {_counted(most, unit)}</p>"
    )


def _counted(count: int, unit: str) -> str:
    return f"{count} {unit.replace('pictures', 'picture', 1) if count == 1 else unit}"


def _failures(failed: Sequence[dict[str, Any]]) -> str:
    rows = ""
    for event in sorted(failed, key=lambda event: int(event.get("line", 0)))[:MOST_FAILURES]:
        line, error = html.escape(str(event.get("line", ""))), html.escape(str(event.get("error", "")))
        rows += f"<tr><td class=number>{line}</td><td class=error>{error}</td></tr>"
    more = f"<p>and {len(failed) - MOST_FAILURES} more</p>" if len(failed) > MOST_FAILURES else ""
    return f"<h2>Failures</h2><table><tr><th>line</th><th>why</th></tr>{rows}</table>{more}"


def _sheet(done: Sequence[dict[str, Any]]) -> str:
    """Pictures, spread evenly over the run where they are too many."""
    step = max(1, -(-len(done) // MOST_PICTURES))
    shown = done[::step]
    cells = "".join(
        f'<figure><a href="{quote(event["name"])}"><img loading="lazy" src="{quote(event["name"])}" alt=""></a>'
        f"<figcaption>{_caption(event)}</figcaption></figure>"
        for event in shown
    )
    which = "" if step == 1 else f" (every {step}th of {len(done)})"
    return f"<h2>Pictures{which}</h2><div class=sheet>{cells}</div>"


def _caption(event: dict[str, Any]) -> str:
    line = f"line {event['line']} " if "line" in event else ""
    kinds = ", ".join(f"{kind} {value:.2f}" for kind, value in (event.get("fidelity") or {}).items() if value is not None)
    return html.escape(f"{line}{kinds}")
