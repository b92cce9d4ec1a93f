"""What several commands say the same way: options of request fields, pairs of settings, the renderer and its bar."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core import terminal
from core.errors import BadRequest
from core.request import RenderRequest
from pipelines.opening import Opening

if TYPE_CHECKING:
    from renderer import Picture, Renderer

DEFAULT = RenderRequest()

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


def help_of(field: str) -> str:
    """What a request's field means, as a sentence."""
    text = RenderRequest.model_fields[field].description or ""
    return f"{text[:1].upper()}{text[1:]}."


def option(field: str, group: str, *names: str, **more: Any) -> Any:
    """A request field's option, explained as the field is, under a heading of the help."""
    names = names or (f"--{field.replace('_', '-')}",)
    return typer.Option(*names, **({"help": help_of(field), "rich_help_panel": group} | more))


def pairs(settings: Sequence[str]) -> dict[str, str]:
    """`low=80 high=160` as a dictionary."""
    found: dict[str, str] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or key in found:
            raise BadRequest(f"setting {text!r}: {'given twice' if equals else 'write KEY=VALUE'}")
        found[key] = value
    return found


def open_renderer(model: str, typed: Mapping[str, Any]) -> "Renderer":
    """A renderer with `model` loaded, opened as the command's options say."""
    from renderer import Renderer

    return Renderer.open(model, **Opening.asked(typed).arguments)


def stream(renderer: "Renderer", request: RenderRequest, what: str = "steps") -> "Iterator[Picture]":
    """The request's pictures, with a bar while they are drawn."""
    total = request.steps * request.count  # a second pass or a picture to begin from changes the steps, not how full the bar is
    with terminal.progress(what, total) as done:
        yield from renderer.stream(
            request, lambda step: done(round(request.steps * (step.pictures.start + (step.index + 1) / step.steps * len(step.pictures))))
        )
