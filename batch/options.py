"""The command line's words for batches: `limn render`'s options that go with a SOURCE, and the commands `status`, `report` and `verify`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from batch.devices import AUTO
from core.errors import BadRequest
from pipelines.opening import OPENING, Opening, taking

SOURCE_HELP = "A manifest (.jsonl, .csv, .parquet), a row a request, or a folder of control pictures; without it one request is drawn."
WORKERS_HELP = "Processes that draw; auto: one for each GPU, or core; 0: this one."
MOST_WORKERS = 256
_SHARED, _REDRAW, _CHOOSE = "Batches (with a SOURCE)", "Batches: trying again", "Choosing by fidelity"
TRIES_HELP = "Without a SOURCE: draw so many at most, until one has --min-fidelity."


def _option(name: str, text: str, group: str = _SHARED, **more: Any) -> Any:
    return typer.Option(name, help=text, rich_help_panel=group, **more)


def _workers(text: str) -> str:
    if text != AUTO and not (text.isascii() and text.isdigit() and len(text) < 9 and int(text) <= MOST_WORKERS):
        raise BadRequest(f"--workers {text[:20]!r}: give {AUTO}, or a number of processes up to {MOST_WORKERS}")
    return text


Source = Annotated[Path | None, typer.Argument(help=SOURCE_HELP)]
# name: (type with its option, default)
OPTIONS: dict[str, tuple[Any, Any]] = {
    "defaults": (Annotated[Path | None, _option("--defaults", "YAML file: what rows leave out.", metavar="FILE.yaml")], None),
    "grid": (Annotated[list[str] | None, _option("--grid", "Repeatable: every row once for each value.", metavar="KEY=1..8|A,B")], None),
    "prompt_from": (Annotated[str | None, _option("--prompt-from", "For folders: txt (the file beside each picture) or name.")], None),
    "skip_bad": (Annotated[bool, _option("--skip-bad", "Go on without bad rows.")], False),
    "dry_run": (Annotated[bool, _option("--dry-run", "Check everything, estimate time and disk, draw nothing.")], False),
    "workers": (
        Annotated[str, _option("--workers", WORKERS_HELP, metavar="N|auto", callback=_workers)],
        AUTO,
    ),
    "exact": (Annotated[bool, _option("--exact", "Draw every picture by itself: every bit as if it were the only one.")], False),
    "ray": (Annotated[str | None, _option("--ray", "Draw on a Ray cluster: its address, auto, or local.")], None),
    "extractors": (
        Annotated[int | None, _option("--extractors", "Processes that extract maps; by default by the cores.", min=0, max=256)],
        None,
    ),
    "max_hours": (Annotated[float | None, _option("--max-hours", "Stop in order after so long.", min=0.0)], None),
    "min_free_gb": (Annotated[float, _option("--min-free-gb", "Stop in order when the disk has less room.", min=0.0)], 0.0),
    "best_of": (Annotated[int, _option("--best-of", "Draw so many of each, keep the most faithful.", _CHOOSE, min=1, max=1000)], 1),
    "min_fidelity": (
        Annotated[float, _option("--min-fidelity", "Less faithful pictures count as failed.", _CHOOSE, min=0.0, max=1.0)],
        0.0,
    ),
    "tries": (Annotated[int, _option("--tries", TRIES_HELP, _CHOOSE, min=0, max=1000)], 0),
    "retries": (Annotated[int, _option("--retries", "Of a job that failed by no fault of its row.", _REDRAW, min=0, max=100)], 1),
    "retry_failed": (Annotated[bool, _option("--retry-failed", "Draw again what failed in earlier runs.", _REDRAW)], False),
}
NAMES = frozenset(OPTIONS)
_ALSO_SINGLE, _ONLY_SINGLE = {"best_of", "min_fidelity", "tries"}, {"tries"}

_Batch = Annotated[str, typer.Argument(metavar="DIR", help="Output folder or address of a batch.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of words.")]


def refuse_misplaced(context: typer.Context, *, batch: bool) -> None:
    """Raises a `BadRequest` where an option of a batch was typed and there is none, or the other way round."""
    if not batch and "://" in (out := str(context.params["out"])):
        raise BadRequest(f"--out {out[:80]!r}: an address goes with a manifest or a folder; give a folder of this machine's")
    for name in sorted(_ONLY_SINGLE if batch else NAMES - _ALSO_SINGLE):
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE":
            goes = "a single request: leave out SOURCE" if batch else "a manifest or a folder: write limn render SOURCE …"
            raise BadRequest(f"--{name.replace('_', '-')} goes with {goes}")


def status(folder: _Batch, *, as_json: _Json = False) -> None:
    """Say how far a batch is, who is drawing it, and what failed."""
    from batch.status import status as show

    show(folder, as_json=as_json)


def report(
    folder: _Batch, *, rebuild: Annotated[bool, typer.Option("--rebuild", help="Make journal.jsonl anew from the files first.")] = False
) -> None:
    """Write report.html anew: pictures, failures, fidelity, throughput."""
    from batch.status import report as write

    typer.echo(write(folder, rebuild=rebuild))


@taking(OPENING)
def verify(
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE|DIR...", help="Pictures that Limn made.")],
    *,
    model: Annotated[str | None, typer.Option("--model", help="Draw with this model instead of the one that the record names.")] = None,
    as_json: _Json = False,
    **options: Any,
) -> int:
    """Draw pictures again from their records and compare: every bit, or what differs and by how much."""
    from batch.verify import verify as compare

    return compare(pictures, as_json=as_json, model=model, opening=Opening.asked(options))
