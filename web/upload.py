"""The page's inputs for pictures and files: the uploaded file as it is, for our own decoder to judge."""

from collections.abc import Callable
from typing import Any

import gradio as gr


def upload(**options: Any) -> Any:
    """A gr.Image whose value is the path of the uploaded file, which Pillow has not opened; an address in its place is refused."""
    return gr.Image(**({"image_mode": None, "type": "filepath"} | options))


def upload_file(**options: Any) -> Any:
    """A gr.File whose value is the path of the uploaded file, or a list of them; an address in its place is refused."""
    return gr.File(**options)


def _path(component: Any, payload: Any) -> str | None:
    return None if payload is None else str(payload.path)


def _local_only(move: Callable[[Any, Any], Any]) -> Any:
    """The method by which Gradio takes a file into its cache, which no longer fetches what an address names."""

    async def move_upload(component: Any, path: Any) -> Any:
        if "://" in str(path):
            raise gr.Error("An address is not accepted here: upload the picture's file.", print_exception=False)
        return await move(component, path)

    return move_upload


# Replaced on the classes: Gradio makes a component anew, from its class, for every session in which one of its properties was updated.
# A class of our own would make Gradio write a stub file beside this module.
gr.Image.preprocess = _path
for _component in (gr.Image, gr.File, gr.JSON):
    _component.async_move_resource_to_block_cache = _local_only(_component.async_move_resource_to_block_cache)
