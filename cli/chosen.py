"""`limn render --best-of` and `--min-fidelity` for one request: everything that was tried, and where it lies."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from core import terminal
from core.errors import BadRequest
from core.request import RenderRequest

if TYPE_CHECKING:
    from batch.choice import Tried
    from batch.job import Gate
    from renderer import Renderer

REFUSED = 3  # exit code of a batch in which jobs failed


def render_chosen(renderer: "Renderer", request: RenderRequest, gate: "Gate", out: Path, *, tries: int, as_json: bool) -> int | None:
    """Draws, chooses, reports; the exit code.

    Raises:
        BadRequest: the options make no sense together, or there is no control to measure by.
    """
    from batch.choice import draw_chosen

    if tries and not gate.min_fidelity:
        raise BadRequest(f"--tries {tries}: say with --min-fidelity when a picture is faithful enough to stop")
    started, rounds = time.perf_counter(), []
    most = max(gate.best_of, tries)
    with terminal.progress("pictures", request.count * most) as done:
        for tried in draw_chosen(renderer, request, gate, out, tries=tries):
            rounds.append(tried)
            done(len(rounds) * most)
    kept = [(one.path, one.picture.record) for tried in rounds for one in tried if one.kept]
    more: dict[str, Any] = {"seconds": round(time.perf_counter() - started, 3)}
    if as_json:
        terminal.report(kept, more | {"tried": [_values(one) for tried in rounds for one in tried]}, as_json)
    else:
        _show(rounds)
        if kept:
            terminal.report(kept, more, as_json)
    refused = [tried for tried in rounds if not any(one.kept for one in tried)]
    for tried in refused:
        complaint = f"the best of {len(tried)} pictures has fidelity {tried[-1].score:.3f}, below {gate.min_fidelity:g}: it lies at"
        typer.echo(f"limn: {complaint} {tried[-1].path}", err=True)
    return REFUSED if refused else None


def _values(one: "Tried") -> dict[str, Any]:
    seed, variation = one.picture.record.request.seeds(one.picture.record.index)
    values = {"path": str(one.path), "kept": one.kept, "seed": seed, "score": one.score, "seconds": round(one.seconds, 3)}
    return values if variation is None else values | {"variation_seed": variation}


def _show(rounds: "list[list[Tried]]") -> None:
    filled = terminal.table("tried", "seed", "fidelity", "seconds", "", right=("seed", "fidelity", "seconds"))
    for tried in rounds:
        for one in sorted(tried, key=lambda one: one.picture.record.request.seeds(one.picture.record.index)):
            values = _values(one)
            score = "not measured" if one.score is None else f"{one.score:.3f}"
            seed = values.get("variation_seed", values["seed"])
            filled.add_row(one.path.name, str(seed), score, f"{one.seconds:.2f}", "kept" if one.kept else f"in {one.path.parent}")
    terminal.show(filled)
