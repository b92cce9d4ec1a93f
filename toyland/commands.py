"""`limn toyland …`: its arguments, and one call each into this package."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core import terminal

if TYPE_CHECKING:
    from toyland.judge import Settings

app = typer.Typer(help="The toyland world: its data, the embedded model, and the figures that say how good it is.", no_args_is_help=True)
circles = typer.Typer(help="The first lesson of a ControlNet, from an outline to a disc of the colour that is said.", no_args_is_help=True)
app.add_typer(circles, name="circles")


@app.command()
def build(
    *,
    count: Annotated[int, typer.Option("--count", help="Scenes.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the dataset; an interrupted build goes on where it stopped.")],
    seed: Annotated[int, typer.Option("--seed", help="Scene i is drawn with seed + i.")] = 0,
    size: Annotated[int, typer.Option("--size", help="Pixels on each side.")] = 128,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes; by default one per core.")] = None,
) -> None:
    """Build a toyland dataset: pictures, captions, control maps, masks and joints."""
    from toyland.dataset import build as build_dataset

    with terminal.progress("scenes", count) as done:
        typer.echo(build_dataset(out, count, seed=seed, size=size, workers=workers, on_progress=lambda built, _: done(built)))


@app.command()
def train(
    *,
    run: Annotated[Path, typer.Option("--run", help="Folder for data, checkpoints and logs; started again, it goes on.")] = Path(
        "runs/toyland"
    ),
    recipe: Annotated[str, typer.Option("--recipe", help="How long each stage is trained: cpu or gpu.")] = "cpu",
    only: Annotated[str | None, typer.Option("--only", help="One stage alone.")] = None,
    processes: Annotated[int | None, typer.Option("--processes", help="By default one per core, or one per GPU.")] = None,
) -> None:
    """Rebuild the embedded model from nothing, stage by stage."""
    from toyland.train import rebuild

    rebuild(run, recipe, processes=processes, only=only, say=typer.echo)


@app.command()
def evaluate(
    *,
    count: Annotated[int, typer.Option("--count", help="Held-out scenes, and as many of pairs never seen in training.")] = 200,
    seed: Annotated[int, typer.Option("--seed", help="Of the first picture's noise.")] = 0,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes; by default one per core. The numbers do not change.")] = None,
    sheet: Annotated[bool, typer.Option(help="Also draw the 6 × 6 sheet of prompts without control.")] = True,
    out: Annotated[Path, typer.Option("--out", help="Folder for the table as JSON and Markdown, and the sheet.")] = Path(
        "outputs/evaluation"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Measure the embedded model on held-out scenes: floor, value, ceiling, and whether each goal is met."""
    from toyland.evaluate import SHEET_SIDE, card_sheet
    from toyland.judge import Settings

    settings = Settings(count=count, seed=seed)
    measure(settings, out, workers=workers, as_json=as_json)
    if sheet:
        with terminal.progress("sheet", SHEET_SIDE**2) as done:
            card_sheet(settings, out / "sheet.png", on_progress=lambda drawn, _: done(drawn))


def measure(settings: "Settings", out: Path, *, workers: int | None, as_json: bool) -> None:
    """Measures a model on held-out scenes, publishes the figures in `out` and prints them."""
    from toyland.evaluate import evaluate as evaluate_model
    from toyland.evaluate import save

    with terminal.progress("scenes", 2 * settings.count) as done:
        report = evaluate_model(settings, workers=workers, on_progress=lambda measured, _: done(measured))
    paths = save(report, out)
    if as_json:
        typer.echo(report.as_json().strip())
        return
    terminal.show(report.table())
    typer.echo(f"written: {', '.join(str(path) for path in paths)}")


@circles.command("build")
def build_circles(
    *,
    count: Annotated[int, typer.Option("--count", help="Circles.")] = 800,
    out: Annotated[Path, typer.Option("--out", help="Folder of the dataset, in fill50k's layout.")] = Path("data/circles"),
    seed: Annotated[int, typer.Option("--seed", help="Circle i is drawn with seed + i.")] = 0,
    size: Annotated[int, typer.Option("--size", help="Pixels on each side.")] = 128,
) -> None:
    """Build a dataset of outlines and discs."""
    from toyland.circles import build as build_dataset

    with terminal.progress("circles", count) as done:
        typer.echo(build_dataset(out, count, seed=seed, size=size, on_progress=done))


@circles.command("measure")
def measure_circles(
    net: Annotated[str, typer.Argument(help="A ControlNet that was trained on circles: its folder or file.")],
    *,
    model: Annotated[str, typer.Option("--model", help="The base it was trained for.")] = "toyland",
    count: Annotated[int, typer.Option("--count", help="Circles never seen in training.")] = 64,
    size: Annotated[int, typer.Option("--size", help="Pixels on each side.")] = 128,
    sheet: Annotated[Path, typer.Option("--sheet", help="Where the first circles' pictures go.")] = Path("outputs/circles.png"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Measure how well such a ControlNet obeys: the disc's overlap with the true one and its colour's error, beside floor and ceiling."""
    from core.files import publish
    from core.images import encode_png
    from toyland.lesson import Settings, judge

    with terminal.progress("circles", count) as done:
        lesson = judge(Settings(net, model, count, size), on_progress=done)
    publish(sheet, encode_png(lesson.sheet()))
    if as_json:
        typer.echo(json.dumps({"measures": lesson.rows(), "sheet": str(sheet)}))
        return
    table = terminal.table("measure", "floor", "value (95%)", "ceiling", right=("floor", "value (95%)", "ceiling"))
    for row, name, digits in zip(
        lesson.rows(), ("overlap with the true disc (IoU)", "error of its colour (CIELAB ΔE)"), (3, 1), strict=True
    ):
        low, high = row["interval"]
        value = f"{row['value']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
        table.add_row(name, f"{row['floor']:.{digits}f}", value, f"{row['ceiling']:.{digits}f}")
    terminal.show(table)
    typer.echo(sheet)
