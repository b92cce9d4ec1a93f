"""The web page: its layout, and which handler answers what. `limn ui`, `make ui` and `python app.py` open it.

Gradio takes seconds to import and is imported when the page is built. What the handlers do stands in `web/`.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import LimnError
from core.request import ControlUnit, RenderRequest

if TYPE_CHECKING:
    from web.handlers import Handlers, Parts
    from web.service import Service

EXAMPLE = "a red sphere left of a blue cube on grass at sunset"
NETWORK = "Hub id or folder; empty for the one that belongs to the model and the kind."


def ui(
    *,
    model: Annotated[str, typer.Option("--model", help="The model that draws: 'toyland', a hub id or a diffusers folder.")] = "toyland",
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="By default the first free one from 7860.")] = None,
    listen: Annotated[bool, typer.Option("--listen", help="Answer the whole network, not this machine alone; needs --auth.")] = False,
    auth: Annotated[
        str | None, typer.Option("--auth", metavar="USER:PASSWORD", envvar="LIMN_AUTH", help="Ask every visitor for this login.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the pictures.")] = Path("outputs"),
) -> None:
    """Open the web page on 127.0.0.1."""
    from web.server import check_access, private_cache, serve
    from web.service import Service

    login = check_access(listen, auth)
    with private_cache():
        service = Service(model, out)
        serve(build(service), service, port=port, listen=listen, login=login)


def build(service: "Service") -> Any:
    """The page as Gradio Blocks, wired to a service."""
    import gradio as gr

    from web.handlers import Handlers

    with gr.Blocks(title="Limn", analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        parts = _layout(service.model)
        _wire(page, parts, Handlers(service, parts))
    return page


def _layout(model: str) -> "Parts":
    """The components, in the order they are read: what is asked on the left, what comes of it on the right."""
    import gradio as gr

    from web.fields import component
    from web.handlers import Parts
    from web.words import note

    with gr.Row(elem_id="head"):
        gr.HTML("<h1>Limn</h1>")
        state = gr.HTML(note(f"{model}, loading"), elem_id="model")
    with gr.Row(elem_id="columns"):
        with gr.Column(scale=6, min_width=340, elem_id="asked"):
            inputs = {
                "prompt": component(RenderRequest, "prompt", lines=2, placeholder=EXAMPLE, info=None, elem_id="prompt", autofocus=True),
                "negative_prompt": component(RenderRequest, "negative_prompt", info=None, elem_id="negative"),
            }
            with gr.Row():
                render = gr.Button("Render", variant="primary", scale=3, elem_id="render")
                cancel = gr.Button("Cancel", interactive=False, scale=1, min_width=100, elem_id="cancel")
            with gr.Group(elem_id="control"):
                control, settings, map_, map_note = _control()
            inputs |= control
            new_seed = gr.Button("New", render=False)
            with gr.Group():
                with gr.Row():
                    inputs["steps"] = component(RenderRequest, "steps", info=None, elem_id="steps", min_width=120)
                    inputs["guidance_scale"] = component(RenderRequest, "guidance_scale", info=None, elem_id="guidance", min_width=160)
                with gr.Row():
                    inputs["seed"] = component(RenderRequest, "seed", info=None, elem_id="seed", min_width=120, buttons=[new_seed])
                    inputs["sampler"] = _choice("sampler")
            with gr.Accordion("More", open=False), gr.Group():
                with gr.Row():
                    inputs |= {name: component(RenderRequest, name, info=None, elem_id=name, min_width=90) for name in ("width", "height")}
                    inputs["schedule"] = _choice("schedule")
                with gr.Row():
                    inputs["control.resize"] = component(ControlUnit, "resize", label="Control resize", min_width=200)
                    inputs["control.mode"] = component(ControlUnit, "mode", label="Control mode", min_width=200)
                inputs["control.model"] = component(ControlUnit, "model", label="ControlNet", info=NETWORK, elem_id="controlnet")
        with gr.Column(scale=5, min_width=340, elem_id="shown"):
            picture = gr.Image(label="Picture", interactive=False, format="jpeg", buttons=["fullscreen"], elem_id="picture")
            status = gr.HTML(elem_id="status")
            result = gr.HTML(elem_id="fidelity")
            download = gr.DownloadButton("Download PNG", visible=False, elem_id="download")
    new_seed.click(None, None, inputs["seed"], js="() => Math.floor(Math.random() * 2 ** 32)", api_visibility="private")
    return Parts(inputs, settings, state, map_, map_note, render, cancel, picture, status, result, download)


def _control() -> tuple[dict[str, Any], dict[str, Any], Any, Any]:
    """The control: its inputs by name, each kind's own settings, the map and what is to be said about it."""
    import gradio as gr

    import controls
    from web.fields import component, components
    from web.upload import upload

    kinds = controls.names()
    inputs: dict[str, Any] = {}
    with gr.Row():
        inputs["control.kind"] = gr.Radio(kinds, value=kinds[0], label="Control", scale=3, min_width=220, elem_id="kind")
        inputs["control.ready"] = component(ControlUnit, "ready", info="It is the finished map.", scale=2, min_width=120, elem_id="ready")
    with gr.Row():
        inputs["control.image"] = upload(label="Control picture", sources=["upload", "clipboard"], height=220, elem_id="control-image")
        map_ = gr.Image(label="Map", interactive=False, format="png", buttons=["fullscreen"], height=220, elem_id="map")
    map_note = gr.HTML(elem_id="map-note")
    settings = {}
    for kind in kinds:
        with gr.Column(visible=kind == kinds[0], elem_id=f"settings-{kind}") as settings[kind]:
            inputs |= components(controls.get(kind).params, kind)
    with gr.Row():
        inputs |= {f"control.{name}": component(ControlUnit, name, info=None) for name in ("weight", "start", "end")}
    return inputs, settings, map_, map_note


def _choice(name: str) -> Any:
    """A dropdown whose other choices come when the libraries are loaded."""
    import gradio as gr

    default = RenderRequest.model_fields[name].default
    return gr.Dropdown([default], value=default, label=name.capitalize(), elem_id=name, min_width=160)


def _wire(page: Any, parts: "Parts", handlers: "Handlers") -> None:
    """Which handler answers what. Only `render` is offered to other programs."""
    import gradio as gr

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    inputs, every = parts.inputs, list(parts.inputs.values())
    kind, image = inputs["control.kind"], inputs["control.image"]
    page.load(handlers.greet, outputs=[parts.model, inputs["sampler"], inputs["schedule"]], **quiet)
    kind.change(handlers.show_settings, kind, list(parts.settings.values()), **quiet)
    image.upload(handlers.notice_map, [kind, image], inputs["control.ready"], **quiet)
    shaping = ("control.kind", "control.ready", "control.image", "control.resize", "width", "height")
    gr.on(
        [inputs[name].change for name in inputs if name in shaping or name.partition(".")[0] in parts.settings],
        handlers.show_map,
        every,
        [parts.map, parts.map_note],
        trigger_mode="always_last",
        concurrency_limit=4,
        **quiet,
    )
    outputs = [parts.render, parts.cancel, parts.picture, parts.status, parts.result, parts.download]
    parts.render.click(handlers.render, every, outputs, concurrency_limit=None, show_progress="hidden", api_name="render")
    parts.cancel.click(handlers.cancel, queue=False, **quiet)


def main() -> None:
    """`python app.py`, with the options of `limn ui`."""
    try:
        typer.run(ui)
    except LimnError as error:
        print(f"limn: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
