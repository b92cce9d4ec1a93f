"""What cannot be published is said before training begins; what the hub refuses leaves the weights where they are."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from core.errors import BadRequest, LimnError
from training.push import check_push, push


class Refusing(BaseHTTPRequestHandler):
    """A hub that nobody may write to."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(403)
        self.send_header("X-Error-Message", "you may not write here")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch, online: None) -> Iterator[None]:
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_cannot_be_pushed_is_named_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    check_push("")
    check_push("someone/my-net")
    with pytest.raises(BadRequest, match="'my-net' names no owner: write owner/name"):
        check_push("my-net")
    with pytest.raises(BadRequest, match="is no repository of the hub"):
        check_push("a b/c//d")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadRequest, match="HF_HUB_OFFLINE is set"):
        check_push("someone/my-net")


def test_without_a_login_there_is_nothing_to_push_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(BadRequest, match="nobody is logged in to the hub: run `hf auth login`"):
        check_push("someone/my-net")


def test_a_hub_that_refuses_loses_nothing(tmp_path: Path, refusing: None) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LimnError, match=r"push 'someone/my-net' failed \(.*403.*\); the weights stand: hf upload someone/my-net"):
        push(tmp_path, "someone/my-net")
    assert (tmp_path / "config.json").read_text() == "{}"


def test_a_hub_that_is_not_reached_loses_nothing(tmp_path: Path, online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(LimnError, match="the weights stand"):
        push(tmp_path, "someone/my-net")
