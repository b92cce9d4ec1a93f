"""The doctor beside the thread that draws."""

import threading
from pathlib import Path

from core.request import RenderRequest
from renderer import Renderer
from web.doctor import Doctor

ROUNDS = 8


def test_models_are_examined_while_others_are_loaded(models: Path) -> None:
    """Both make networks, and the libraries that do are not made for two at once."""
    renderer, over, failed = Renderer.open(str(models / "base")), threading.Event(), []

    def examine() -> None:
        while not over.is_set():
            failed.extend(one for one in Doctor(renderer).examine(RenderRequest(width=64, height=64)) if one.level == "error")

    threads = [threading.Thread(target=examine) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        opened = [Renderer.open(str(models / "base")) for _ in range(ROUNDS)]
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert all(len(one.render(RenderRequest(width=64, height=64, steps=1))) == 1 for one in opened)
