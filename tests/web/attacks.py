"""What was done to the neighbours, done to this page: paths, addresses, forged choices and forged files. `make security` prints the count.

Sources: the public advisories of Gradio (file routes, proxy, uploads' names), A1111 and ComfyUI (paths in fields, pickled weights, address
fields), InvokeAI (models by address).
"""

import http.client
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.web import archives
from tests.web.running import ROOT, serving

SECRET = b"root:"

_FILES = (
    "/etc/passwd",
    "../../../../../../etc/passwd",
    "/tmp/../etc/passwd",
    "%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "//etc/passwd",
    "/proc/self/environ",
    "/proc/self/root/etc/passwd",
    "file:///etc/passwd",
    "....//....//etc/passwd",
    "\\..\\..\\etc\\passwd",
    "C:/windows/win.ini",
    str(ROOT / "app.py"),
    str(ROOT / "README.md"),
    "app.py",
    ".git/config",
)
_ROUTES = ("/gradio_api/file=", "/file=", "/file/", "/static/", "/assets/", "/gradio_api/stream/", "/custom_component/x/client/component/")
_ADDRESSES = (
    "http://127.0.0.1:1/x.png",
    "http://169.254.169.254/latest/meta-data/",
    "https://example.com/x.png",
    "http://[::1]:22/",
    "ftp://127.0.0.1/x",
    "file:///etc/passwd",
    "gopher://127.0.0.1:1/",
)
_FORGED: tuple[tuple[str, Any], ...] = (
    ("control.0.kind", "no-such-kind"),
    ("control.0.kind", "../canny"),
    ("control.0.kind", ["canny"]),
    ("sampler", "__import__('os')"),
    ("sampler", {"a": 1}),
    ("schedule", "nope"),
    ("control.0.resize", "stretch"),
    ("control.0.mode", "loud"),
    ("width", 1_000_000),
    ("width", -8),
    ("width", "128; rm"),
    ("height", 1e308),
    ("steps", 10**9),
    ("steps", 0),
    ("steps", True),
    ("count", 10**9),
    ("seed", -1),
    ("seed", 2**64),
    ("seed", "x"),
    ("guidance_scale", 1e9),
    ("model", "/etc/passwd"),
    ("model", "../../../../etc"),
    ("model", "http://127.0.0.1:1/model.safetensors"),
    ("model", "https://example.com/evil.ckpt"),
    ("model", "evil.pt"),
    ("model", "evil.ckpt"),
    ("model", "x" * 5000),
    ("model", "\0"),
    ("prompt", {"__class__": 1}),
    ("__class__", 1),
    ("controls", [{"kind": "canny", "image": "/etc/passwd"}]),
    ("prompt", "(" * 5000),
    ("control.0.window", [2, 3]),
    ("control.0.window", "0-1"),
    ("control.0.painting", "/etc/passwd"),
    ("control.0.painting", "data:image/png;base64,AAAA"),
    ("control.0.painting", "data:text/html;base64,PHNjcmlwdD4="),
)


@dataclass(frozen=True)
class Attack:
    """One attempt. succeeded: whether it got through, from status and body."""

    name: str
    method: str
    path: str
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    succeeded: Callable[[int, bytes], bool] = lambda status, body: status < 400 or SECRET in body


def ask(port: int, attack: Attack) -> tuple[int, bytes]:
    """Status and body of one raw request, nothing normalised on the way; a call's answer is waited for."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(attack.method, attack.path, attack.body, dict(attack.headers))
        response = connection.getresponse()
        status, body = response.status, response.read()
    except http.client.InvalidURL:
        return 400, b"refused by the client"
    finally:
        connection.close()
    if attack.path.startswith("/gradio_api/call/") and attack.method == "POST" and status == 200:
        return ask(port, Attack(attack.name, "GET", f"{attack.path}/{json.loads(body)['event_id']}"))
    return status, body


def attacks() -> Iterator[Attack]:
    """Everything that is tried on the page."""
    for route in _ROUTES:
        for file in _FILES:
            yield Attack(f"path {route}{file}", "GET", route + file.replace(" ", "%20"))
    for address in _ADDRESSES:
        yield Attack(f"address file={address}", "GET", f"/gradio_api/file={address}")
        yield Attack(f"address proxy={address}", "GET", f"/gradio_api/proxy={address}")
        for field in ("control.0.image", "init_image"):
            yield _call(f"address in {field}: {address}", {field: _file(address, url=address)})
    for file in ("/etc/passwd", str(ROOT / "examples" / "runner.png"), "../../etc/passwd", "/dev/zero", "/proc/self/mem"):
        for field in ("control.0.image", "init_image"):
            yield _call(f"file in {field}: {file}", {field: _file(file)})
            yield _call(f"path in {field}: {file}", {field: file})
            yield _call(f"path without its mark in {field}: {file}", {field: {"path": file}})
    for field, value in _FORGED:
        yield _call(f"forged {field} = {value!r:.50}", {field: value})
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80"):
        yield Attack(f"host {host}", "GET", "/", headers=(("Host", host),))
    for name in ("../../../../tmp/limn-evil.png", "/tmp/limn-evil.png", "..\\..\\limn-evil.png", "limn\0evil.png"):
        yield _upload(name)
    yield Attack(
        "a body that is no JSON", "POST", "/gradio_api/call/render", b"\x80\x04cos\nsystem\n", (("Content-Type", "application/json"),)
    )
    yield Attack("a method of a component", "POST", "/gradio_api/component_server", b'{"data": [], "fn_name": "os.system", "component_id": 1, "session_hash": "x"}', (("Content-Type", "application/json"),))  # fmt: skip  # noqa: E501


def replay(port: int) -> tuple[int, list[str]]:
    """How many attacks were refused, and the names of those that were not."""
    refused, through = 0, []
    for attack in attacks():
        status, body = ask(port, attack)
        if attack.succeeded(status, body):
            through.append(f"{attack.name}: {status} {body[:80]!r}")
        else:
            refused += 1
    return refused, through


def _drawn(status: int, body: bytes) -> bool:
    return b"Done in" in body or SECRET in body


def _file(path: str, url: str | None = None) -> dict[str, Any]:
    return {"path": path, "url": url, "meta": {"_type": "gradio.FileData"}}


def _call(name: str, changed: dict[str, Any]) -> Attack:
    """A request for a picture, as the page would send it but for what is changed."""
    body = json.dumps({"data": [{"steps": 1} | changed]}).encode()
    return Attack(name, "POST", "/gradio_api/call/render", body, (("Content-Type", "application/json"),), _drawn)


def _upload(name: str) -> Attack:
    """An upload whose name would lead elsewhere; what it is stored as must not."""
    parts = [b"--cut", f'Content-Disposition: form-data; name="files"; filename="{name}"'.encode(), b"Content-Type: image/png", b"", b"x"]
    body = b"\r\n".join([*parts, b"--cut--", b""])

    def outside(status: int, body: bytes) -> bool:
        if status >= 400:
            return False
        return any(".." in Path(path).parts or "limn-page-" not in path for path in json.loads(body)) or Path("/tmp/limn-evil.png").exists()

    return Attack(f"upload {name!r}", "POST", "/gradio_api/upload", body, (("Content-Type", "multipart/form-data; boundary=cut"),), outside)


def main() -> int:
    """Starts the page, replays everything, prints the count; exit code 1 if anything got through."""
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as site:
        refused, through = replay(site.port)
        through += archives.replay(Path(folder))
    refused += len(archives.HOSTILE) - sum(name.startswith("ZIP") for name in through)
    print("\n".join([f"{refused} attacks refused, {len(through)} got through", *through]))
    return 1 if through else 0


if __name__ == "__main__":
    sys.exit(main())
