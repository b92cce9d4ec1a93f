"""`limn status` and `limn report`: how far a batch is, from its files and its journal, while it runs or afterwards."""

import json
from pathlib import Path
from typing import Any

from batch.journal import write_rebuilt
from batch.lock import holder, locked
from batch.report import Summary, score, summarise, write_report
from batch.store import JOURNAL, REPORT, Folder, Store, open_store, pictures
from batch.times import counted, duration
from core.errors import BadRequest

MOST_SHOWN = 10


def status(out: str, *, as_json: bool) -> None:
    """Prints how far the batch in a folder (or at an address) is.

    Raises:
        BadRequest: there is no batch.
    """
    store = existing(out)
    summary, owner = summarise(store), holder(store)
    values = _values(summary, owner)
    if as_json:
        print(json.dumps(values))
        return
    print(f"{values['done']} of {values['total']} done, {values['failed']} failed, {values['left']} left")
    if owner is not None:
        left = "" if values["seconds_left"] is None else f", {duration(values['seconds_left'])} left"
        rate = "" if values["rate"] is None else f": {values['rate']:.2f}/s{left}"
        print(f"running since {owner.get('since', '?')} as process {owner.get('process', '?')} on {owner.get('host', '?')}{rate}")
        for event in summary.flying[:MOST_SHOWN]:
            print(f"  drawing line {event.get('line', '?')}: {event.get('name', '?')}")
    else:
        print("not running" if values["left"] else "finished")
    if values["fidelity"] is not None:
        print(f"fidelity {values['fidelity']:.3f} on average")
    if summary.orphans:
        print(f"{counted(summary.orphans, 'picture')} that no row asks for any more")
    for event in summary.failed[:MOST_SHOWN]:
        print(f"  line {event.get('line', '?')} failed: {event.get('error', '')}")


def report(out: str, *, rebuild: bool) -> str:
    """Writes the report anew, and first the journal where that is asked for; where it lies.

    Raises:
        BadRequest: there is no batch, or another process is writing there.
    """
    store = existing(out)
    with locked(store):
        if rebuild:
            if not isinstance(store, Folder):
                raise BadRequest(f"{out!r}: a journal can be made anew in a folder only; copy the pictures into one")
            write_rebuilt(store.path)
        write_report(store)
    return f"{store.shown}/{REPORT}"


def existing(out: str) -> Store:
    """The store of a batch that is there.

    Raises:
        BadRequest: there is none.
    """
    if "://" not in out and not Path(out).is_dir():
        raise BadRequest(f"{out!r} is not a folder: give the --out of a batch")
    store = open_store(out)
    names = store.names()
    if not pictures(names) and not any(name == JOURNAL or name.startswith(f"{JOURNAL}.d/") for name in names):
        raise BadRequest(f"{out!r} holds no batch: it has no {JOURNAL}, and no picture")
    return store


def _values(summary: Summary, owner: dict[str, Any] | None) -> dict[str, Any]:
    known = [value for event in summary.done if (value := score(event)) is not None]
    rate = summary.rate
    return {
        "total": summary.total,
        "done": len(summary.done) - summary.orphans,
        "failed": len(summary.failed),
        "left": summary.left,
        "drawing": [event.get("name") for event in summary.flying] if owner else [],
        "orphans": summary.orphans,
        "running": owner,
        "rate": None if rate is None else round(rate, 4),
        "seconds_left": round(summary.left / rate, 1) if rate else None,
        "fidelity": round(sum(known) / len(known), 4) if known else None,
    }
