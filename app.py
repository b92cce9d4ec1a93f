"""The web page: its tabs, and how it is opened. `limn ui`, `make ui` and `python app.py` open it.

Gradio takes seconds to import and is imported when the page is built. What the tabs hold and do stands in `web/`.
"""

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import LimnError
from core.files import output_folder
from pipelines.opening import OPENING, Opening, taking

if TYPE_CHECKING:
    from web.service import Service
    from web.train_process import Trainings


@taking(OPENING)
def ui(
    *,
    model: Annotated[str, typer.Option("--model", help="The model that draws: 'toyland', a hub id or a diffusers folder.")] = "toyland",
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="By default the first free one from 7860.")] = None,
    listen: Annotated[bool, typer.Option("--listen", help="Answer the whole network, not this machine alone; needs --auth.")] = False,
    auth: Annotated[
        str | None, typer.Option("--auth", metavar="USER:PASSWORD", envvar="LIMN_AUTH", help="Ask every visitor for this login.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the pictures.")] = Path("outputs"),
    data: Annotated[Path, typer.Option("--data", help="Folder of the datasets; with --listen no other can be read.")] = Path("data"),
    runs: Annotated[Path, typer.Option("--runs", help="Folder for what is trained.")] = Path("runs"),
    **options: Any,
) -> None:
    """Open the web page on 127.0.0.1."""
    from web.quick import without_collecting
    from web.server import check_access, private_cache, serve

    login, opening = check_access(listen, auth), Opening.asked(options)
    output_folder(out)
    if opening != Opening():
        opening.engine()  # what cannot be had is said now
    with private_cache(), contextlib.ExitStack() as ends:
        with without_collecting():
            from web.service import Service
            from web.train_process import Trainings
            from web.train_settings import Places

            trainings = ends.enter_context(contextlib.closing(Trainings(Places(runs, data, restricted=listen))))
            service = Service(model, out, opening)
            page = build(service, trainings)
        serve(page, service, port=port, listen=listen, login=login)


def build(service: "Service", trainings: "Trainings") -> Any:
    """The page as Gradio Blocks, wired to a service and to what is trained."""
    import gradio as gr

    from web import batch, compare, create, gallery, pose, train
    from web.batches import Batches
    from web.library import Library
    from web.quick import building
    from web.words import note

    with building(), gr.Blocks(title="Limn", analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        with gr.Row(elem_id="head"):
            gr.HTML("<h1>Limn</h1>")
            state = gr.HTML(note(f"{service.model}, loading"), elem_id="model")
        kept = batch.remembered()
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Create", id="create"):
                _, creating = create.build(page, service, state)
            with gr.Tab("Compare", id="compare") as tab:
                compare.build(tab, creating)
            with gr.Tab("Batch", id="batch"):
                batch.build(page, creating, Batches(service), kept)
            with gr.Tab("Pose", id="pose", elem_id="pose-tab"):
                pose.build(creating, tabs)
            with gr.Tab("Train", id="train", elem_id="train-tab") as tab:
                train.build(tab, tabs, trainings, creating)
            with gr.Tab("Gallery", id="gallery", elem_id="gallery-tab") as tab:
                gallery.build(tab, tabs, Library(service.out), creating)
    return page


def main() -> None:
    """`python app.py`, with the options of `limn ui`."""
    try:
        typer.run(ui)
    except LimnError as error:
        print(f"limn: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
