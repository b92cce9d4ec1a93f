"""`limn evaluate`: how well a model and its ControlNets obey."""

from pathlib import Path
from typing import Annotated

import typer

from cli.options import DEFAULT, Json, help_of, pairs
from toyland import commands as toyland_commands


def evaluate(
    *,
    model: Annotated[str, typer.Option("--model", help=help_of("model"))] = DEFAULT.model,
    controlnets: Annotated[
        list[str] | None, typer.Option("--controlnet", metavar="KIND=FOLDER", help="Repeatable; by default those beside the model.")
    ] = None,
    count: Annotated[int, typer.Option("--count", help="Held-out toyland scenes.")] = 200,
    steps: Annotated[int, typer.Option("--steps", help=help_of("steps"))] = DEFAULT.steps,
    guidance: Annotated[float, typer.Option("--guidance", help=help_of("guidance_scale"))] = DEFAULT.guidance_scale,
    seed: Annotated[int, typer.Option("--seed", help=help_of("seed"))] = DEFAULT.seed,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes; by default one per core.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the table as JSON and Markdown.")] = Path("outputs/evaluation"),
    as_json: Json = False,
) -> None:
    """Measure how well a model and its ControlNets obey prompt and control, beside floor and ceiling."""
    import controls
    from toyland.judge import Settings

    nets = pairs(controlnets or [])
    for kind in nets:
        controls.get(kind)
    settings = Settings(model=model, controlnets=nets, count=count, steps=steps, guidance_scale=guidance, seed=seed)
    toyland_commands.measure(settings, out, workers=workers, as_json=as_json)
