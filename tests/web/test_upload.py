"""What is uploaded is judged by our own decoder, and no address is fetched, also in a session whose components were made anew."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest


def made_anew(component: Any) -> Any:
    """As Gradio does for a session in which a property of the component was updated."""
    return component.__class__(**component.constructor_args)


def moved(component: Any, path: str) -> str:
    """What becomes of a path that a browser sends; in a thread of its own, because Playwright's loop runs in this one."""
    with ThreadPoolExecutor(1) as pool:
        return str(pool.submit(asyncio.run, component.async_move_resource_to_block_cache(path)).result())


@pytest.mark.parametrize("name", ["upload", "upload_file"])
def test_an_address_is_refused_by_every_copy(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gradio as gr

    from web import upload

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    (tmp_path / "here.png").write_bytes(b"anything")
    for component in (getattr(upload, name)(), made_anew(getattr(upload, name)())):
        for address in ("http://127.0.0.1:1/x.png", "https://example.com/x.png", "file:///etc/passwd"):
            with pytest.raises(gr.Error, match="An address is not accepted here"):
                moved(component, address)
        assert Path(moved(component, str(tmp_path / "here.png"))).read_bytes() == b"anything"


def test_a_picture_is_not_opened_before_our_decoder_does(tmp_path: Path) -> None:
    from gradio.data_classes import ImageData

    from web.upload import upload

    (tmp_path / "photo.png").write_text("this is no picture\n")
    for component in (upload(), made_anew(upload())):
        assert component.preprocess(ImageData(path=str(tmp_path / "photo.png"))) == str(tmp_path / "photo.png")
        assert component.preprocess(None) is None
