"""The `limn` command: arguments in, one call into the packages, a table or JSON out.

Everything heavy is imported inside the command that needs it, so that `limn --help` answers at once. Errors that Limn raises on purpose
become one line on stderr and the error's own exit code; progress goes to stderr, results to stdout.
"""

import inspect
import io
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app import ui
from batch import options as batches
from core import terminal
from core.errors import BadRequest, LimnError
from core.request import Hires, RenderRequest, Resize, Tiles, build_request
from pipelines import commands as models_commands
from toyland import commands as toyland_commands
from training import commands as dataset_commands

if TYPE_CHECKING:
    from rich.table import Table

    from renderer import Picture, Renderer

ROOT = Path(__file__).resolve().parent
DEFAULT = RenderRequest()
SAMPLERS = (
    "euler, euler_ancestral, heun, dpm2, dpm2_ancestral, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_sde, unipc, deis, "
    "ddim, ddpm, pndm, lcm or tcd"
)
SCHEDULES = "uniform, leading, trailing, sgm_uniform, simple, beta, karras, exponential or polyexponential"

app = typer.Typer(
    name="limn",
    help="Draw pictures from a prompt and control images; train new ControlNets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(toyland_commands.app, name="toyland")
app.add_typer(models_commands.app, name="models")
app.add_typer(dataset_commands.app, name="dataset")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a prompt may hold what the terminal cannot show
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one command; its exit code: 0, an error's own, 2 for a usage error, 130 after Ctrl-C."""
    try:
        result = app(list(arguments), prog_name="limn", standalone_mode=False)
        sys.stdout.flush()
        if result == 130:  # what typer makes of Ctrl-C
            return _complain("interrupted", 130)
        return result if isinstance(result, int) else 0
    except LimnError as error:
        return _complain(str(error), error.exit_code)
    except typer.TyperException as error:
        message = getattr(error, "format_message", error.__str__)()
        return _complain(f"{message.rstrip('.')} (see limn --help)", 2) if message else 2  # none: the help was shown
    except (KeyboardInterrupt, typer.Abort):
        return _complain("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has gone, as in `limn models | head`
        sys.stderr.close()
        return 1


def _help(field: str) -> str:
    text = RenderRequest.model_fields[field].description or ""
    return f"{text[:1].upper()}{text[1:]}."


def _option(field: str, group: str, *names: str, **more: Any) -> Any:
    """A request field's option, explained as the field is, under a heading of the help."""
    names = names or (f"--{field.replace('_', '-')}",)
    return typer.Option(*names, **({"help": _help(field), "rich_help_panel": group} | more))


SAMPLING, GUIDANCE, START, LARGER = "Sampling", "Guidance and text", "From a picture", "Larger pictures and memory"
HIRES_HELP = f"A second, larger pass: its scale, or any of {', '.join(Hires.model_fields)}."
INVERSION_HELP = "Begin from the init_image's own noise instead of noise from the seed; the prompt says what it shows."
CONTROL_HELP = (
    "Repeatable. Keys: ready, model, weight, start, end, mode, resize, mask, layer_weights, and what `limn extract` lists for the kind."
)


@app.command()
@batches.accepted
def render(
    context: typer.Context,
    source: batches.Source = None,
    *,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help=_help("prompt"))] = DEFAULT.prompt,
    negative: Annotated[str, typer.Option("--negative", help=_help("negative_prompt"))] = DEFAULT.negative_prompt,
    control: Annotated[list[str] | None, typer.Option("--control", "-c", metavar="KIND=FILE,KEY=VALUE,…", help=CONTROL_HELP)] = None,
    model: Annotated[str, typer.Option("--model", help=_help("model"))] = DEFAULT.model,
    size: Annotated[str, typer.Option("--size", metavar="WxH", help="Pixels, multiples of 8.")] = f"{DEFAULT.width}x{DEFAULT.height}",
    seed: Annotated[int, typer.Option("--seed", help=_help("seed"))] = DEFAULT.seed,
    count: Annotated[int, typer.Option("--count", help=_help("count"))] = DEFAULT.count,
    out: Annotated[str, typer.Option("--out", help="Folder for the pictures; equal requests give equal names.")] = "outputs",
    as_json: Json = False,
    steps: Annotated[int, _option("steps", SAMPLING)] = DEFAULT.steps,
    sampler: Annotated[str, _option("sampler", SAMPLING, help=f"{SAMPLERS}.")] = DEFAULT.sampler,
    schedule: Annotated[str, _option("schedule", SAMPLING, help=f"{SCHEDULES}.")] = DEFAULT.schedule,
    eta: Annotated[float | None, _option("eta", SAMPLING)] = DEFAULT.eta,
    variation_seed: Annotated[int, _option("variation_seed", SAMPLING)] = DEFAULT.variation_seed,
    variation_strength: Annotated[float, _option("variation_strength", SAMPLING)] = DEFAULT.variation_strength,
    guidance: Annotated[float, _option("guidance_scale", GUIDANCE, "--guidance")] = DEFAULT.guidance_scale,
    true_cfg_scale: Annotated[float, _option("true_cfg_scale", GUIDANCE)] = DEFAULT.true_cfg_scale,
    guidance_start: Annotated[float, _option("guidance_start", GUIDANCE)] = DEFAULT.guidance_start,
    guidance_end: Annotated[float, _option("guidance_end", GUIDANCE)] = DEFAULT.guidance_end,
    guidance_rescale: Annotated[float, _option("guidance_rescale", GUIDANCE)] = DEFAULT.guidance_rescale,
    pag_scale: Annotated[float, _option("pag_scale", GUIDANCE)] = DEFAULT.pag_scale,
    clip_skip: Annotated[int, _option("clip_skip", GUIDANCE)] = DEFAULT.clip_skip,
    lora: Annotated[list[str] | None, _option("loras", GUIDANCE, "--lora", metavar="NAME[=WEIGHT[:TEXT]]", help="Repeatable.")] = None,
    init_image: Annotated[Path | None, _option("init_image", START)] = DEFAULT.init_image,
    resize: Annotated[Resize, _option("resize", START)] = DEFAULT.resize,
    strength: Annotated[float, _option("strength", START)] = DEFAULT.strength,
    inversion: Annotated[str | None, _option("inversion", START, metavar="PROMPT", help=INVERSION_HELP)] = None,
    mask: Annotated[Path | None, _option("mask", START)] = DEFAULT.mask,
    paste_back: Annotated[bool, _option("paste_back", START, "--paste-back/--no-paste-back")] = DEFAULT.paste_back,
    hires: Annotated[str | None, _option("hires", LARGER, metavar="SCALE|KEY=VALUE,…", help=HIRES_HELP)] = None,
    tile_vae: Annotated[Tiles, _option("tile_vae", LARGER)] = DEFAULT.tile_vae,
    **options: Any,
) -> int | None:
    """Draw pictures from a prompt and control images. What is left out takes the model's own default, where it has one."""
    if source is not None:
        from batch.commands import render_source

        return render_source(source, _typed_fields(context), context.params)
    batches.refuse_without_source(context)
    request = build_request({"model": model, **_typed_fields(context)})
    started = time.perf_counter()
    found = [(picture.save(out), picture.record) for picture in _stream(_open(request.model), request)]
    terminal.report(found, {"seconds": round(time.perf_counter() - started, 3)}, as_json)
    return None


def doctor(context: typer.Context, **options: Any) -> int | None:
    """Say what will be wrong with a request before any weight is moved; the options are those of `limn render`."""
    from pipelines.engine import Engine, choose_place
    from renderer import examine

    values = (_read_request(options["request"]) if options["request"] else {}) | _typed_fields(context)
    found = examine(build_request({"model": DEFAULT.model, **values}), Engine(choose_place()))
    if options["as_json"]:
        typer.echo(json.dumps({"findings": [{"level": one.level, "about": one.about, "text": one.text} for one in found]}))
    for one in found if not options["as_json"] else ():
        typer.echo(f"{one.level}: {' '.join(one.text.split())}")
    if not found and not options["as_json"]:
        typer.echo("nothing is wrong")
    return 2 if any(one.level == "error" for one in found) else None


# The same options, and a request to begin from in place of the folder for pictures.
_RECORDED = Annotated[Path | None, typer.Argument(metavar="[REQUEST]", help="A request as JSON, or a picture that Limn has drawn.")]
_OPTIONS = [option for name, option in inspect.signature(render).parameters.items() if name not in {"out", "source", *batches.NAMES}]
_OPTIONS.append(inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_RECORDED))
doctor.__signature__ = inspect.Signature(_OPTIONS)  # type: ignore[attr-defined]
doctor.__annotations__ = {option.name: option.annotation for option in _OPTIONS}
app.command()(doctor)


def _typed_fields(context: typer.Context) -> dict[str, Any]:
    """The request's fields that were typed, from the options of `render`; what was not is left to the model."""
    from batch.rows import parse_lora, parse_size
    from controls.grammar import parse_control

    renamed = {"negative": "negative_prompt", "guidance": "guidance_scale"}  # the others are called as the fields are
    typed = {
        name: value for name, value in context.params.items() if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
    values = {renamed.get(name, name): value for name, value in typed.items() if renamed.get(name, name) in RenderRequest.model_fields}
    if "control" in typed:
        # With a folder of pictures a control is a kind without a file.
        files = [text for text in typed["control"] if "source" not in typed or "=" in text.partition(",")[0]]
        values["controls"] = [parse_control(text) for text in files]
    if "lora" in typed:
        values["loras"] = [parse_lora(text) for text in typed["lora"]]
    if "size" in typed:
        values["width"], values["height"] = parse_size(typed["size"])
    if "inversion" in typed:
        values["inversion"] = {"prompt": typed["inversion"]}
    if "hires" in typed:
        hires = typed["hires"]
        values["hires"] = {"scale": hires} if "=" not in hires else _pairs(hires.split(","))
    return values


def _read_request(path: Path) -> dict[str, Any]:
    """The fields of a request in a JSON file, or of a picture's own."""
    from core.provenance import read_record

    if path.suffix.lower() == ".png":
        return read_record(path).request.model_dump(exclude_unset=True)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadRequest(f"{str(path)!r} cannot be read as a request: {error}") from None
    if not isinstance(values, dict):
        raise BadRequest(f"{str(path)!r} is no request: expected a JSON object of its fields")
    return values


@app.command()
def extract(
    kind: Annotated[str | None, typer.Argument(help="Kind of control; without it, the kinds and their settings are listed.")] = None,
    image: Annotated[Path | None, typer.Argument(help="Picture to extract from.")] = None,
    settings: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="The extractor's settings.")] = None,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG file to write.")] = Path("map.png"),
    size: Annotated[str | None, typer.Option("--size", metavar="WxH", help="Bring the picture to this size first.")] = None,
    resize: Annotated[Resize, typer.Option("--resize", help="How it is brought to that size.")] = "crop",
) -> None:
    """Make a control map from a picture."""
    import controls
    from batch.rows import parse_size
    from controls.prepare import load_map
    from core.files import publish
    from core.images import decode, encode_png
    from core.request import ControlUnit

    if kind is None:
        return terminal.show(_kinds())
    control = controls.get(kind)
    if image is None:
        raise BadRequest(f"extract {kind}: no picture given; write limn extract {kind} PICTURE -o MAP.png")
    params = control.parse_params(_pairs(settings or [])).model_dump(mode="json")
    height, width = parse_size(size)[::-1] if size else decode(image).shape[:2]
    prepared = load_map(ControlUnit(kind=kind, image=image, resize=resize, params=params), width, height)
    publish(out, encode_png(prepared.map_HWC))
    terminal.warn(prepared.warnings)
    typer.echo(out)


@app.command()
def demo(
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder for the pictures and the contact sheet.")] = Path("outputs/demo"),
    as_json: Json = False,
) -> None:
    """Draw the shipped examples: every picture, its control maps, one contact sheet and the table of fidelity."""
    import numpy as np

    from core.files import publish
    from core.images import encode_png
    from core.sheet import contact_sheet

    started = time.perf_counter()
    requests = _read_requests(ROOT / "examples" / "demo.json")
    renderer = _open(requests[0].model)
    found, strips, captions = [], [], []
    for number, request in enumerate(requests, 1):
        for picture in _stream(renderer, request, f"example {number} of {len(requests)}"):
            path = picture.save(out)
            for unit, map_HWC in zip(request.controls, picture.maps, strict=True):
                publish(path.with_name(f"{path.stem}-{unit.kind}.png"), encode_png(map_HWC))
            found.append((path, picture.record))
            strips.append([*picture.maps, np.asarray(picture.image)])
            captions.append("\n".join([request.prompt, *terminal.fidelity_lines(picture.record)]))
    columns = len({tuple(unit.kind for unit in request.controls) for request in requests})
    sheet = out / "contact-sheet.png"
    publish(sheet, encode_png(contact_sheet(strips, captions, columns=columns, title="Limn: control and picture")))
    terminal.report(found, {"seconds": round(time.perf_counter() - started, 3), "sheet": str(sheet)}, as_json)


app.command()(ui)
app.command()(batches.status)
app.command()(batches.report)
app.command()(batches.verify)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML file; its keys are those of training.run.ControlNetConfig.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="As in train.steps=500.")] = None,
) -> None:
    """Train a ControlNet on pairs of pictures and control maps; started again, it goes on."""
    from training.run import main as train_from

    finished = train_from(config, overrides or [])
    if finished.main:
        typer.echo(finished.config.out / "weights")


@app.command()
def evaluate(
    *,
    model: Annotated[str, typer.Option("--model", help=_help("model"))] = DEFAULT.model,
    controlnets: Annotated[
        list[str] | None, typer.Option("--controlnet", metavar="KIND=FOLDER", help="Repeatable; by default those beside the model.")
    ] = None,
    count: Annotated[int, typer.Option("--count", help="Held-out toyland scenes.")] = 200,
    steps: Annotated[int, typer.Option("--steps", help=_help("steps"))] = DEFAULT.steps,
    guidance: Annotated[float, typer.Option("--guidance", help=_help("guidance_scale"))] = DEFAULT.guidance_scale,
    seed: Annotated[int, typer.Option("--seed", help=_help("seed"))] = DEFAULT.seed,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes; by default one per core.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the table as JSON and Markdown.")] = Path("outputs/evaluation"),
    as_json: Json = False,
) -> None:
    """Measure how well a model and its ControlNets obey prompt and control, beside floor and ceiling."""
    import controls
    from toyland.judge import Settings

    nets = _pairs(controlnets or [])
    for kind in nets:
        controls.get(kind)
    settings = Settings(model=model, controlnets=nets, count=count, steps=steps, guidance_scale=guidance, seed=seed)
    toyland_commands.measure(settings, out, workers=workers, as_json=as_json)


def _pairs(settings: Sequence[str]) -> dict[str, str]:
    """`low=80 high=160` as a dictionary."""
    pairs: dict[str, str] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or key in pairs:
            raise BadRequest(f"setting {text!r}: {'given twice' if equals else 'write KEY=VALUE'}")
        pairs[key] = value
    return pairs


def _read_requests(path: Path) -> list[RenderRequest]:
    """A JSON list of requests; the control images' paths are relative to the file."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadRequest(f"{str(path)!r} cannot be read as a list of requests: {error}") from None
    folder = path.parent.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.parent  # no machine's paths in records
    for unit in (unit for row in rows for unit in row.get("controls", ())):
        unit["image"] = folder / unit["image"]
    return [build_request(row) for row in rows]


def _open(model: str) -> "Renderer":
    from renderer import Renderer

    return Renderer.open(model=model)


def _stream(renderer: "Renderer", request: RenderRequest, what: str = "steps") -> "Iterator[Picture]":
    """The request's pictures, with a bar while they are drawn."""
    total = request.steps * request.count  # a second pass or a picture to begin from changes the steps, not how full the bar is
    with terminal.progress(what, total) as done:
        yield from renderer.stream(
            request, lambda step: done(round(request.steps * (step.pictures.start + (step.index + 1) / step.steps * len(step.pictures))))
        )


def _kinds() -> "Table":
    """Every kind of control with its settings, their defaults and what they mean."""
    import controls

    table = terminal.table("kind", "setting", "default", "meaning")
    for name in controls.names():
        control = controls.get(name)
        needs = "" if control.available() else "finished maps only: no estimator is installed"
        rows = [(field, str(info.default), info.description or "") for field, info in control.params.model_fields.items()]
        for number, row in enumerate([*rows, *([("", "", needs)] if needs or not rows else [])]):
            table.add_row("" if number else name, *row)
    return table


def _complain(message: str, exit_code: int) -> int:
    """One line on stderr."""
    print(f"limn: {' '.join(message.split())}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    main()
