"""`limn evaluate`: how well a model obeys prompt and control on toyland; `limn evaluate control`: any model, kind and pictures."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.options import DEFAULT, Json, help_of, pairs
from core import terminal
from core.errors import BadRequest
from pipelines.opening import OPENING, Opening, taking
from toyland import commands as toyland_commands

app = typer.Typer(invoke_without_command=True, subcommand_metavar="[control ...]")
NETS = typer.Option("--controlnet", metavar="KIND=FOLDER", help="Repeatable; by default those beside the model.")
PICTURES_HELP = "A folder of pictures with their captions beside them as .txt, instead of toyland's scenes."
WORKERS = typer.Option("--workers", help="Processes; by default one per core.")


@app.callback()
def evaluate(
    context: typer.Context,
    *,
    model: Annotated[str, typer.Option("--model", help=help_of("model"))] = DEFAULT.model,
    controlnets: Annotated[list[str] | None, NETS] = None,
    count: Annotated[int, typer.Option("--count", help="Held-out toyland scenes.")] = 200,
    steps: Annotated[int, typer.Option("--steps", help=help_of("steps"))] = DEFAULT.steps,
    guidance: Annotated[float, typer.Option("--guidance", help=help_of("guidance_scale"))] = DEFAULT.guidance_scale,
    seed: Annotated[int, typer.Option("--seed", help=help_of("seed"))] = DEFAULT.seed,
    workers: Annotated[int | None, WORKERS] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the table as JSON and Markdown.")] = Path("outputs/evaluation"),
    as_json: Json = False,
) -> None:
    """Measure how well a model and its ControlNets obey prompt and control, beside floor and ceiling."""
    if context.invoked_subcommand is not None:
        return
    import controls
    from toyland.judge import Settings

    nets = pairs(controlnets or [])
    for kind in nets:
        controls.get(kind)
    settings = Settings(model=model, controlnets=nets, count=count, steps=steps, guidance_scale=guidance, seed=seed)
    toyland_commands.measure(settings, out, workers=workers, as_json=as_json)


@app.command("control")
@taking(OPENING)
def evaluate_control(
    *,
    model: Annotated[str, typer.Option("--model", help=help_of("model"))] = DEFAULT.model,
    kinds: Annotated[str, typer.Option("--controls", metavar="KIND,KIND,…", help="What is measured.")] = "canny,depth,pose",
    controlnets: Annotated[list[str] | None, NETS] = None,
    count: Annotated[int, typer.Option("--count", help="Held-out toyland scenes, or pictures of the folder.")] = 200,
    pictures: Annotated[Path | None, typer.Option("--pictures", metavar="FOLDER", help=PICTURES_HELP)] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="With --pictures: one for all instead.")] = None,
    size: Annotated[str | None, typer.Option("--size", metavar="WxH", help="Pixels; by default the model's own.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Pictures of each; with several also what the best of them gains.")] = 1,
    sweep: Annotated[int, typer.Option("--sweep", min=0, help="Of so many the curves over weight and window are drawn.")] = 20,
    steps: Annotated[int | None, typer.Option("--steps", help=help_of("steps"))] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help=help_of("guidance_scale"))] = None,
    seed: Annotated[int, typer.Option("--seed", help=help_of("seed"))] = DEFAULT.seed,
    workers: Annotated[int | None, WORKERS] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for table, JSON and plot; an interrupted run goes on.")] = Path(
        "outputs/control"
    ),
    as_json: Json = False,
    **options: Any,
) -> None:
    """Measure how well pictures obey their controls: floor, value and ceiling with intervals, and curves over weight and window."""
    from batch.rows import parse_size
    from evaluation.bench import Settings
    from evaluation.cases import Pictures, Scenes
    from evaluation.run import CURVES
    from evaluation.run import evaluate as measure

    fields = {"steps": steps, "guidance_scale": guidance}
    if size is not None:
        fields["width"], fields["height"] = parse_size(size)
    settings = Settings(
        model=model,
        kinds=tuple(kind.strip() for kind in kinds.split(",") if kind.strip()),
        controlnets=pairs(controlnets or []),
        seeds=seeds,
        seed=seed,
        sweep=sweep,
        fields={name: value for name, value in fields.items() if value is not None},
        opening=Opening.asked(options),
    )
    if prompt is not None and pictures is None:
        raise BadRequest("--prompt goes with --pictures FOLDER: toyland's scenes have captions of their own")
    cases = Scenes(count) if pictures is None else Pictures.read(pictures, count, prompt)
    with terminal.progress("pictures" if pictures else "scenes", len(cases)) as done:
        report = measure(settings, cases, out, workers=workers, on_progress=lambda measured, _: done(measured))
    if as_json:
        typer.echo(json.dumps(json.loads(report.as_json())))
        return
    terminal.show(report.table())
    for sentence in report.sentences():
        typer.echo(sentence)
    typer.echo(f"written: {', '.join(str(out / name) for name in ('evaluation.json', 'table.md', *[CURVES] * report.swept))}")
