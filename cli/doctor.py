"""`limn doctor`: what would be wrong with a request, said before any weight is moved."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batch import options as batches
from cli.options import DEFAULT
from cli.render import render, typed_fields
from core.errors import BadRequest, UserError
from core.request import build_request
from pipelines.opening import Opening

if TYPE_CHECKING:
    from pipelines.doctor import Finding
    from pipelines.engine import Engine

REQUEST_HELP = "A request as JSON, a list of them, or a picture that Limn has drawn."


def doctor(context: typer.Context, **options: Any) -> int | None:
    """Say what will be wrong with a request before any weight is moved; the options are those of `limn render`."""
    asked = read_requests(options["request"]) if options["request"] else {}
    typed, engine = typed_fields(context), Opening.asked(options).engine()
    several = isinstance(asked, list)
    requests = asked if isinstance(asked, list) else [asked]
    found = [(number, one) for number, values in enumerate(requests, 1) for one in _found(values | typed, engine, several)]
    if options["as_json"]:
        numbered = [({"request": number} if several else {}, one) for number, one in found]
        rows = [{"level": one.level, "about": one.about, "text": one.text} | which for which, one in numbered]
        typer.echo(json.dumps({"findings": rows}))
    for number, one in found if not options["as_json"] else ():
        typer.echo(f"{f'request {number}: ' if several else ''}{one.level}: {' '.join(one.text.split())}")
    if not found and not options["as_json"]:
        typer.echo("nothing is wrong")
    return 2 if any(one.level == "error" for _, one in found) else None


# The options of `limn render`, and a request to begin from in place of the folder for pictures.
_OPTIONS = [option for name, option in inspect.signature(render).parameters.items() if name not in {"out", "source", *batches.NAMES}]
_OPTIONS.append(
    inspect.Parameter(
        "request",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[Path | None, typer.Argument(metavar="[REQUEST]", help=REQUEST_HELP)],
    )
)
doctor.__signature__ = inspect.Signature(_OPTIONS)  # type: ignore[attr-defined]
doctor.__annotations__ = {option.name: option.annotation for option in _OPTIONS}


def _found(values: Mapping[str, Any], engine: "Engine", several: bool) -> "list[Finding]":
    """What is wrong with one request; of several, one whose fields are no request is a finding like others."""
    from pipelines.doctor import Finding
    from renderer import examine

    try:
        return examine(build_request({"model": DEFAULT.model, **values}), engine)
    except UserError as error:
        if not several:
            raise
        return [Finding("fields", str(error), error)]


def read_requests(path: Path) -> dict[str, Any] | list[dict[str, Any]]:
    """The fields of the request in a JSON file or of a picture's own; of a list's requests, with pictures' paths relative to the file.

    Raises:
        BadRequest: it is neither.
    """
    from core.provenance import read_record

    if path.suffix.lower() == ".png":
        return read_record(path).request.model_dump(exclude_unset=True)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadRequest(f"{str(path)!r} cannot be read as a request: {error}") from None
    if isinstance(values, list) and all(isinstance(row, dict) for row in values):
        return [_placed(row, path.parent) for row in values]
    if not isinstance(values, dict):
        raise BadRequest(f"{str(path)!r} is no request: expected a JSON object of its fields, or a list of such")
    return values


def _placed(row: Mapping[str, Any], folder: Path, names: tuple[str, ...] = ("init_image", "mask")) -> dict[str, Any]:
    """A request's fields, or a control's, with the paths of pictures as seen from here."""
    placed = {name: str(folder / value) if name in names and isinstance(value, str) else value for name, value in row.items()}
    if isinstance(units := row.get("controls"), list):
        placed["controls"] = [_placed(unit, folder, ("image", "mask")) if isinstance(unit, dict) else unit for unit in units]
    return placed
