"""The page on a port, safe by default: this machine only, no sharing, no telemetry, no file but what the page itself handed out."""

import contextlib
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import BadRequest
from core.images import MAX_BYTES
from web.assets import Asgi, Assets, Receive, Scope, Send, Uncompressed
from web.quick import building, replaced, without_collecting
from web.service import CAPACITY, Service

if TYPE_CHECKING:
    from PIL.Image import Image as Pillow

LOCAL, LISTENED = "127.0.0.1", "0.0.0.0"
FIRST_PORT, PORTS = 7860, 20
FIRST_LOOK_S = 3.0  # so long the model waits for a first visitor
POLL_S = 0.005  # so often Gradio's queue looks for something to do; its own thousand times a second are felt by what is drawn
LOOK, SCRIPT = (Path(__file__).parent / name for name in ("page.css", "page.js"))

_FETCHING = re.compile(r"/proxy=|/file=\w+:")


class NoFetching:
    """ASGI middleware: refuses the routes by which Gradio would fetch an address for a visitor."""

    def __init__(self, app: Asgi) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _FETCHING.search(scope["path"]):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"Addresses are not fetched here."})
            return
        await self.app(scope, receive, send)


def check_access(listen: bool, auth: str | None) -> tuple[str, str] | None:
    """Name and password from `user:password`.

    Raises:
        BadRequest: the page would be open to the network without a password, or `auth` is not of that form.
    """
    if auth is None:
        if listen:
            raise BadRequest("--listen opens the page to everyone on the network: give --auth USER:PASSWORD as well")
        return None
    user, colon, password = auth.partition(":")
    if not user or not password:
        raise BadRequest(f"--auth has no {'password' if user and colon else 'colon' if user else 'user'}: write USER:PASSWORD")
    return user, password


@contextlib.contextmanager
def private_cache() -> Iterator[None]:
    """A folder of our own for uploads and previews, gone afterwards: Gradio's usual one is shared by all its apps and served by each."""
    folder = tempfile.mkdtemp(prefix="limn-page-")
    os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_EXAMPLES_CACHE=f"{folder}/examples", GRADIO_ANALYTICS_ENABLED="False")
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def whole_pictures() -> Iterator[None]:
    """Gradio writes a picture that is shown again over its own file, which a browser that is just reading it gets torn: here it stays."""
    from gradio import processing_utils

    def save(image: "Pillow", cache_dir: str, name: str = "image", format: str = "webp") -> str:
        data = processing_utils.encode_pil_to_bytes(image, format)
        path = Path(cache_dir).resolve() / processing_utils.hash_bytes(data) / f"{name}.{format}"
        if path.exists():
            os.utime(path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            # not `core.files.publish`: nothing shown here needs to outlive a power cut
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(data)
            Path(file.name).replace(path)
        return str(path)

    with replaced(processing_utils, "save_pil_to_cache", save):
        yield


def serve(page: Any, service: Service, *, port: int | None, listen: bool, login: tuple[str, str] | None) -> None:
    """Opens the page, then loads the model behind it, and stays until Ctrl-C or SIGTERM.

    Raises:
        BadRequest: the port is taken.
    """
    port = _free_port(LISTENED if listen else LOCAL, port)
    with without_collecting():
        _open(page, port, listen=listen, login=login)
    print(f"Limn is at http://{LOCAL}:{port} (Ctrl-C stops it)", flush=True)
    try:
        with contextlib.suppress(KeyboardInterrupt), whole_pictures():
            # Whoever looks sees the page sooner when the model is not loaded at the same time.
            service.asked.wait(FIRST_LOOK_S)
            service.start()
            threading.Event().wait()
    finally:
        service.close()
        page.close(verbose=False)


def _open(page: Any, port: int, *, listen: bool, login: tuple[str, str] | None) -> None:
    """The page on its port."""
    import gradio as gr
    from gradio import routes
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # A page elsewhere could have its own name point to this machine; we answer to no name but ours.
    guards = [Middleware(NoFetching)] + [Middleware(TrustedHostMiddleware, allowed_hosts=[LOCAL, "localhost"])] * (not listen)
    guards.append(Middleware(Assets, folder=Path(routes.BUILD_PATH_LIB)))
    compression = contextlib.nullcontext() if listen else replaced(routes, "BrotliMiddleware", Uncompressed)
    with building():
        page.queue(max_size=4 * CAPACITY)  # against floods: our own queue is full before, and says more
    page._queue.sleep_when_free, page._queue.progress_update_sleep_when_free = POLL_S, FIRST_LOOK_S  # nothing here tells a progress
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with compression:
        page.launch(
            server_name=LISTENED if listen else LOCAL,
            server_port=port,
            auth=login,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_threads=2 * CAPACITY,
            max_file_size=MAX_BYTES,
            app_kwargs={"middleware": guards},
            run_history=False,
            footer_links=[],
            ssr_mode=False,
            _frontend=False,  # no test whether the page answers within three seconds: a busy machine may take longer
            theme=gr.themes.Base(
                primary_hue="teal",
                neutral_hue="slate",
                font=["system-ui", "sans-serif"],
                font_mono=["ui-monospace", "monospace"],
            ),
            css_paths=LOOK,
            head=f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>",
        )


def _free_port(host: str, port: int | None) -> int:
    for candidate in range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else [port]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
                return candidate
            except OSError:
                continue
    taken = f"{FIRST_PORT} to {FIRST_PORT + PORTS - 1} are" if port is None else f"{port} is"
    raise BadRequest(f"port {taken} taken or not allowed: choose another with --port")
