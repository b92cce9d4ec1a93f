"""The page is safe by default: who may come in, what may be fetched, what is reachable."""

import http.client
import json
import os
from pathlib import Path
from typing import Any

import gradio
import numpy as np
import pytest

import app
from core.errors import BadRequest
from tests.web.conftest import ROOT, Site
from web import server


def ask(site: Site, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Status and body of one raw request, nothing normalised on the way."""
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=60)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def test_the_network_needs_a_login() -> None:
    with pytest.raises(BadRequest, match=r"^--listen opens the page to everyone on the network: give --auth USER:PASSWORD as well$"):
        app.ui(listen=True)


@pytest.mark.parametrize(("auth", "lacking"), [("me", "colon"), ("me:", "password"), (":secret", "user"), (":", "user"), ("", "user")])
def test_a_login_has_user_and_password(auth: str, lacking: str) -> None:
    with pytest.raises(BadRequest, match=f"^--auth has no {lacking}: write USER:PASSWORD$"):
        server.check_access(listen=True, auth=auth)


def test_a_login_is_taken_apart() -> None:
    assert server.check_access(listen=True, auth="me:pass:word") == ("me", "pass:word")
    assert server.check_access(listen=False, auth=None) is None


def test_a_port_that_is_taken(site: Site) -> None:
    with pytest.raises(BadRequest, match=rf"^port {site.port} is taken or not allowed: choose another with --port$"):
        server._free_port("127.0.0.1", site.port)


def test_only_this_machine_is_answered(site: Site) -> None:
    """By its own names: a page elsewhere whose name was pointed to this machine gets nothing."""
    assert ask(site, "GET", "/")[0] == 200
    assert ask(site, "GET", "/", Host=f"localhost:{site.port}")[0] == 200
    assert ask(site, "GET", "/", Host="evil.example")[0] == 400
    listening = {row.split()[1] for row in Path("/proc/net/tcp").read_text().splitlines()[1:] if row.split()[3] == "0A"}
    assert f"0100007F:{site.port:04X}" in listening
    assert f"00000000:{site.port:04X}" not in listening


def test_no_file_of_the_server_is_reachable(site: Site, tmp_path: Path) -> None:
    secret = site.out / "limn-secret.png"
    secret.write_bytes(b"nobody was given this")
    (site.out / ".hidden").write_text("nor this")
    paths = ["/etc/passwd", str(ROOT / "README.md"), str(ROOT / "app.py"), str(secret), str(site.out / ".hidden"), "README.md", "app.py"]
    paths += ["../../../../etc/passwd", "/tmp/../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/proc/self/environ"]
    for path in paths:
        for route in ("/gradio_api/file=", "/file="):
            status, body = ask(site, "GET", route + path)
            assert status in (403, 404), (route, path)
            assert b"nobody" not in body
            assert b"root:" not in body


def test_no_address_is_fetched(site: Site) -> None:
    for path in ("/gradio_api/file=http://127.0.0.1:1/x", "/gradio_api/file=https://example.com/", "/gradio_api/proxy=http://127.0.0.1:1/"):
        assert ask(site, "GET", path)[0] == 403
    image = {"path": "http://127.0.0.1:1/x.png", "url": "http://127.0.0.1:1/x.png", "meta": {"_type": "gradio.FileData"}}
    assert "address is not accepted" in drawn(site, image)


def test_a_file_that_was_not_uploaded_is_refused(site: Site) -> None:
    before = set(site.out.rglob("*"))
    image = {"path": str(ROOT / "examples" / "runner.png"), "meta": {"_type": "gradio.FileData"}}
    for forged in (image, {"path": image["path"]}, image["path"], [image["path"]]):
        assert "Done in" not in drawn(site, forged)
    assert set(site.out.rglob("*")) == before


def drawn(site: Site, image: Any) -> str:
    """What a program hears that asks for a picture with this control image."""
    body = json.dumps({"data": [{"control.0.image": image, "steps": 1}]}).encode()
    status, answer = ask(site, "POST", "/gradio_api/call/render", body, Content_Type="application/json")
    assert status == 200, answer
    return ask(site, "GET", f"/gradio_api/call/render/{json.loads(answer)['event_id']}")[1].decode()


def test_programs_may_draw_too(site: Site) -> None:
    assert "Done in" in drawn(site, None)


def test_the_page_s_own_files_are_handed_out_as_they_are_and_no_others(site: Site) -> None:
    folder = Path(gradio.__file__).parent / "templates" / "frontend" / "assets"
    script = next(folder.glob("index-*.js"))
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=60)
    connection.request("GET", f"/assets/{script.name}", headers={"Accept-Encoding": "br, gzip"})
    response = connection.getresponse()
    headers, body = {name.lower(): value for name, value in response.getheaders()}, response.read()
    connection.close()
    assert body == script.read_bytes()
    assert "javascript" in headers["content-type"]
    assert "immutable" in headers["cache-control"]
    assert "content-encoding" not in headers, "on one machine, compressing takes longer than handing over"
    for path in ("/assets/../index.html", "/assets/..%2findex.html", "/assets//etc/passwd", "/assets/", "/assets/none.js"):
        assert ask(site, "GET", path)[0] in (400, 403, 404), path


def test_uploads_are_capped(site: Site) -> None:
    parts = [
        b"--cut",
        b'Content-Disposition: form-data; name="files"; filename="x.png"',
        b"Content-Type: image/png",
        b"",
        b"\0" * (21 * 2**20),
    ]
    body = b"\r\n".join([*parts, b"--cut--", b""])
    assert ask(site, "POST", "/gradio_api/upload", body, Content_Type="multipart/form-data; boundary=cut")[0] == 413


def test_nothing_is_reported_home_and_nothing_is_remembered(site: Site) -> None:
    config = json.loads(ask(site, "GET", "/config")[1])
    assert config["analytics_enabled"] is False
    assert not config.get("run_history", True)
    assert config.get("footer_links") == []
    assert not config.get("is_space", False)
    offered = {one["api_name"] for one in config["dependencies"] if one["api_visibility"] == "public"}
    assert offered == {"render"}


def test_the_cache_is_private_and_goes_with_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "before")
    with server.private_cache():
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


def test_a_picture_shown_again_is_not_written_again(tmp_path: Path) -> None:
    image = gradio.Image(format="png")
    image.GRADIO_CACHE = str(tmp_path)
    with server.whole_pictures():
        shown = Path(image.postprocess(np.zeros((8, 8, 3), np.uint8)).path)
        shown.write_bytes(b"being read")
        again = Path(image.postprocess(np.zeros((8, 8, 3), np.uint8)).path)
        other = Path(image.postprocess(np.ones((8, 8, 3), np.uint8)).path)
    assert (again, again.read_bytes()) == (shown, b"being read")
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted([shown, other])
