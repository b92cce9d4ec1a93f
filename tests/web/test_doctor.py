"""The doctor beside the thread that draws."""

import json
import shutil
import threading
from pathlib import Path

from core.request import RenderRequest
from renderer import Renderer
from tests.web.test_service import finished, request
from web.doctor import Doctor
from web.service import Service

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


def test_tokens_are_counted_for_the_chosen_model_and_nothing_is_loaded_for_it(service: Service, models: Path, tmp_path: Path) -> None:
    short = shutil.copytree(models / "base", tmp_path / "short")
    tokenizer = short / "tokenizer" / "tokenizer_config.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"model_max_length": 12}))
    finished(service.submit(request(steps=1, vae=str(models / "wide" / "vae")), "me"))
    assert service._renderer is not None
    engine = service._renderer.engine
    loaded = list(engine._bases.items())
    used, room = service.count_tokens("a cone") or (0, 0)
    assert 0 < used <= room
    assert service.count_tokens("a cone", str(short)) == (used, 10)
    assert service.count_tokens("a cone", str(tmp_path / "none")) is None, "the doctor says what is wrong with it"
    assert list(engine._bases.items()) == loaded, "with the autoencoder that it is drawn with"
