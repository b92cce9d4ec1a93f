"""`limn extract`: a control map from a picture, or the list of kinds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import DEFAULT, pairs
from core import terminal
from core.errors import BadRequest
from core.request import Resize, build_request

if TYPE_CHECKING:
    from rich.table import Table

MAX_SIDE_PX = 16384  # OpenCV and the networks' own squares end near twice that
PROCESSOR_HELP = "Shorter side at which the extractor works, 64 to 2048; by default the map's own, pixel-perfect."


def extract(
    kind: Annotated[str | None, typer.Argument(help="Kind of control; without it, the kinds and their settings are listed.")] = None,
    image: Annotated[Path | None, typer.Argument(help="Picture to extract from.")] = None,
    settings: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="The extractor's settings.")] = None,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG file to write.")] = Path("map.png"),
    size: Annotated[str | None, typer.Option("--size", metavar="WxH", help="Bring the picture to this size first.")] = None,
    resize: Annotated[Resize, typer.Option("--resize", help="How it is brought to that size.")] = "crop",
    processor_px: Annotated[int | None, typer.Option("--processor-px", help=PROCESSOR_HELP)] = None,
    model: Annotated[str, typer.Option("--model", help="Decides which estimator is the default, as in `limn render`.")] = DEFAULT.model,
) -> None:
    """Make a control map from a picture."""
    import controls
    from batch.rows import parse_size
    from controls.prepare import load_map, own_size
    from core.files import publish
    from core.images import MAX_PIXELS, encode_png

    if kind is None:
        return terminal.show(kinds())
    control = controls.get(kind)
    if image is None:
        raise BadRequest(f"extract {kind}: no picture given; write limn extract {kind} PICTURE -o MAP.png")
    params = control.parse_params(pairs(settings or [])).model_dump(mode="json")
    asked = parse_size(size) if size else own_size(control, image)
    if asked is None:
        raise BadRequest(f"{str(image)!r} does not say how large its canvas is: give --size WxH")
    width, height = asked
    if not (min(width, height) >= 1 and max(width, height) <= MAX_SIDE_PX and width * height <= MAX_PIXELS):
        raise BadRequest(
            f"a map of {width}x{height}: sides of 1 to {MAX_SIDE_PX} pixels and {MAX_PIXELS / 1e6:.1f} Mpx in all are made: give --size WxH"
        )
    unit = build_request({"controls": [{"kind": kind, "image": image, "resize": resize, "processor_px": processor_px, "params": params}]})
    prepared = load_map(unit.controls[0], width, height, model=model)
    publish(out, encode_png(prepared.map_HWC))
    terminal.warn(prepared.warnings)
    typer.echo(out)


def kinds() -> "Table":
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
