"""`limn models`: what is installed, fetching more, checking what is there."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core import terminal

if TYPE_CHECKING:
    from pipelines.catalogue import Installed

app = typer.Typer(help="List the models that are installed; fetch more; check them.", invoke_without_command=True)

_PLACES = {"embedded": "with Limn", "folder": "in Limn's folder", "hub": "in the hub's cache"}
_NAME_WIDTH = 28  # with the other columns, a line stays within 80

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


@app.callback()
def models(context: typer.Context, *, as_json: Json = False) -> None:
    """List the models that are installed, with kind, family, size and SHA-256."""
    if context.invoked_subcommand is None:
        _list(as_json)


def _list(as_json: bool) -> None:
    from pipelines.catalogue import installed

    found = installed()
    if as_json:
        return typer.echo(json.dumps({"models": [_values(one) for one in found]}))
    for source, place in _PLACES.items():
        here = [one for one in found if one.source == source]
        if not here:
            continue
        table = terminal.table("name", "kind", "family", "MB", "sha256", right=("MB",))
        for one in here:
            table.add_row(_shortened(one.name), one.kind, one.family, f"{one.size / 1e6:.1f}", _digest(one)[:12])
        terminal.show(table)
        typer.echo(f"{len(here)} {place}, {sum(one.size for one in here) / 1e6:.1f} MB")
    terminal.warn([f"{one.name}: {one.problem}" for one in found if one.problem])


@app.command("list")
def list_(*, as_json: Json = False) -> None:
    """The same as `limn models` alone."""
    _list(as_json)


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME[@REVISION]", help="A model of the Hugging Face hub.")],
    *,
    as_json: Json = False,
) -> None:
    """Download a model; what is here already is not fetched again."""
    from pipelines import catalogue

    found = catalogue.add(name)
    if as_json:
        return typer.echo(json.dumps(_values(found)))
    steer = f"; steer with -c KIND=FILE,model={found.name}"
    use = {"model": f"; draw with --model {found.name}", **dict.fromkeys(catalogue.CONTROLS, steer)}.get(found.kind, "")
    typer.echo(f"{found.name}: {' '.join(filter(None, (found.family, found.kind)))}, {found.size / 1e6:.1f} MB{use}")


@app.command()
def check(
    name: Annotated[str | None, typer.Argument(help="One model; by default all.")] = None,
    *,
    as_json: Json = False,
) -> int | None:
    """Verify that models are complete, and that their bytes are those that were published or first seen."""
    from core.errors import unknown_name
    from pipelines import catalogue

    found = catalogue.installed()
    if name is not None:
        found = [one for one in found if one.name == name] or _unknown(unknown_name("model", name, [one.name for one in found]))
    problems = {one.name: catalogue.check(one) for one in found}
    if as_json:
        typer.echo(json.dumps({"problems": problems}))
    else:
        for model, said in problems.items():
            typer.echo(f"{model}: {'; '.join(said) or 'whole'}")
    return 2 if any(problems.values()) else None


def _unknown(error: Exception) -> "list[Installed]":
    raise error


def _values(one: "Installed") -> dict[str, Any]:
    hashes = one.hashes()
    files = [{"file": one.within(file), "bytes": file.stat().st_size, "sha256": hashes[one.within(file)]} for file in one.files]
    said = {"name": one.name, "kind": one.kind, "family": one.family, "source": one.source, "path": str(one.path)}
    return said | {"bytes": one.size, "problem": one.problem, "files": files}


def _digest(one: "Installed") -> str:
    """A model's only file's SHA-256, or that of its files' hashes in order."""
    from hashlib import sha256

    hashes = one.hashes()
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return sha256("".join(f"{digest}  {file}\n" for file, digest in sorted(hashes.items())).encode()).hexdigest()


def _shortened(name: str) -> str:
    return name if len(name) <= _NAME_WIDTH else f"…{name[1 - _NAME_WIDTH :]}"
