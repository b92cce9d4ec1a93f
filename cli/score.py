"""`limn score`: how well a picture obeys its controls, measured again."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Json
from core import terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from evaluation.score import Scored

CONTROL_HELP = "Repeatable; without it the controls that the picture's own record names. `ready` marks a finished map."
MODEL_HELP = (
    "Whose estimators, floor and ceiling to take; by default of the model that the record names, without a record toyland's estimators."
)


def score(
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="Any picture; one that Limn drew knows its controls.")],
    *,
    control: Annotated[list[str] | None, typer.Option("--control", "-c", metavar="KIND=FILE,KEY=VALUE,…", help=CONTROL_HELP)] = None,
    model: Annotated[str | None, typer.Option("--model", help=MODEL_HELP)] = None,
    overlay: Annotated[Path | None, typer.Option("--overlay", metavar="OUT.png", help="Also draw wanted, got and agreement.")] = None,
    as_json: Json = False,
) -> None:
    """Measure how well a picture obeys its controls: score, metric in its own unit, floor and ceiling where they are known."""
    from controls.grammar import parse_control
    from core.files import publish
    from core.images import encode_png
    from evaluation.score import agreement, score_picture

    scored = score_picture(picture, [parse_control(text) for text in control or ()], model=model)
    if overlay is not None:
        publish(overlay, encode_png(agreement(scored)))
    if as_json:
        values = {"picture": str(picture), "scores": [one.values() for one in scored], "overlay": overlay and str(overlay)}
        typer.echo(json.dumps(values))
        return
    terminal.show(_table(scored))
    terminal.warn(sorted({warning for one in scored for warning in one.warnings}))
    if overlay is not None:
        typer.echo(overlay)


def _table(scored: "Sequence[Scored]") -> "Table":
    filled = terminal.table("control", "score", "metric", "floor", "ceiling", "also", right=("score", "floor", "ceiling"))
    for one in scored:
        if one.score is None:
            filled.add_row(one.unit.kind, "–", f"not measured: {one.why_not}", "", "", "")
            continue
        bounds = ("", "") if one.known is None else (f"{one.known.floor:.3f}", f"{one.known.ceiling:.3f}")
        unit = f" {one.score.unit}" if one.score.unit else ""
        also = ", ".join(f"{name} {value:.3g}" for name, value in one.score.parts.items())
        filled.add_row(one.unit.kind, f"{one.score.value:.3f}", f"{one.score.metric} {one.score.raw:.3g}{unit}", *bounds, also)
    return filled
