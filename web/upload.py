"""The page's picture input: the uploaded file as it is, for our own decoder to judge."""

from typing import Any

import gradio as gr


def upload(**options: Any) -> Any:
    """A gr.Image whose value is the path of the uploaded file, which Pillow has not opened; an address in its place is refused."""
    image = gr.Image(**({"image_mode": None, "type": "filepath"} | options))
    image.preprocess = lambda payload: None if payload is None else payload.path
    return local_only(image)


def upload_file(**options: Any) -> Any:
    """A gr.File whose value is the path of the uploaded file, or a list of them; an address in its place is refused."""
    return local_only(gr.File(**options))


def local_only(component: Any) -> Any:
    """The component, which no longer fetches what an address names.

    Methods are replaced on the instance: Gradio writes a stub file beside every module that derives from a component.
    """
    move = component.async_move_resource_to_block_cache

    async def move_upload(path: Any) -> Any:
        if "://" in str(path):
            raise gr.Error("An address is not accepted here: upload the picture's file.", print_exception=False)
        return await move(path)

    component.async_move_resource_to_block_cache = move_upload
    return component
