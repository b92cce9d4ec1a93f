"""The page's picture input: the uploaded file as it is, for our own decoder to judge."""

from typing import Any

import gradio as gr


def upload(**options: Any) -> Any:
    """A gr.Image whose value is the path of the uploaded file, which Pillow has not opened; an address in its place is refused.

    The two methods are replaced on the instance: Gradio writes a stub file beside every module that derives from a component.
    """
    image = gr.Image(**options)
    move = image.async_move_resource_to_block_cache

    async def move_upload(path: Any) -> Any:
        if "://" in str(path):
            raise gr.Error("An address is not accepted here: upload the picture's file.", print_exception=False)
        return await move(path)

    image.preprocess = lambda payload: None if payload is None else payload.path
    image.async_move_resource_to_block_cache = move_upload
    return image
