"""`limn demo`: the shipped examples, drawn."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.options import Json, open_renderer, stream
from core import terminal
from core.errors import BadRequest
from core.request import RenderRequest, build_request
from pipelines.opening import OPENING, taking

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "demo.json"


@taking(OPENING)
def demo(
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder for the pictures and the contact sheet.")] = Path("outputs/demo"),
    as_json: Json = False,
    **options: Any,
) -> None:
    """Draw the shipped examples: every picture, its control maps, one contact sheet and the table of fidelity."""
    import numpy as np

    from core.files import publish
    from core.images import encode_png
    from core.sheet import contact_sheet

    started = time.perf_counter()
    requests = read_requests(EXAMPLES)
    renderer = open_renderer(requests[0].model, options)
    found, strips, captions = [], [], []
    for number, request in enumerate(requests, 1):
        for picture in stream(renderer, request, f"example {number} of {len(requests)}"):
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


def read_requests(path: Path) -> list[RenderRequest]:
    """A JSON list of requests; the control images' paths are relative to the file."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadRequest(f"{str(path)!r} cannot be read as a list of requests: {error}") from None
    folder = path.parent.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.parent  # no machine's paths in records
    for unit in (unit for row in rows for unit in row.get("controls", ())):
        unit["image"] = folder / unit["image"]
    return [build_request(row) for row in rows]
