"""`limn dataset …`: its arguments, and one call each into this package."""

from pathlib import Path
from typing import Annotated

import typer

from core import terminal
from core.errors import BadRequest

app = typer.Typer(help="Datasets to train on: pairs of pictures and control maps, in any of the usual layouts.", no_args_is_help=True)


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="A dataset, as data.folder in a training config.")],
    condition: Annotated[
        str, typer.Option("--condition", help="Column, folder or extension with the condition; default: the only one there is.")
    ] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Repeatable: any key of data, as kind=canny.")
    ] = None,
    base: Annotated[
        str, typer.Option("--base", help="As in a training config: it decides which estimator extracts, where conditions are extracted.")
    ] = "toyland",
    sheet: Annotated[Path, typer.Option("--sheet", help="Where the contact sheet goes.")] = Path("outputs/dataset.png"),
) -> None:
    """Look at every pair: what is missing, damaged, empty, doubled, of another size, or a map turned round; and draw a contact sheet."""
    import yaml
    from pydantic import ValidationError

    from core.files import publish
    from core.images import encode_png
    from core.request import explain
    from training import formats
    from training.check import check as look
    from training.check import refuse
    from training.hub import located
    from training.pairs import DataConfig

    values: dict[str, object] = {"folder": folder, "condition": condition}
    for text in settings or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise BadRequest(f"setting {text!r}: write KEY=VALUE")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise BadRequest(f"setting {text!r}: {value!r} is not YAML, as true, 0.5, a name or [1, 2] are") from None
    if not values["condition"]:
        values["condition"] = formats.only_condition(located(folder))
    try:
        config = DataConfig.model_validate(values)
    except ValidationError as error:
        raise BadRequest(f"data: {explain(error)}") from None
    with terminal.progress("pairs", 1) as done:
        found, page = look(config, base=base, on_progress=lambda seen, total: done(seen // total))
    for line in found.lines():
        typer.echo(line)
    if page is not None:
        publish(sheet, encode_png(page))
        typer.echo(f"{found.pairs} pairs; some of them: {sheet}")
    refuse(found)
