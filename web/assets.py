"""The scripts and styles of Gradio's page, handed out at once: a page is nearly a hundred of them, and the server is one thread."""

import mimetypes
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

Message = dict[str, Any]
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

ROUTE = "/assets/"
_KEPT = b"public, max-age=31536000, immutable"  # their names change with what is in them


class Assets:
    """ASGI middleware: answers for the files of one folder, of which the names are read once, so that no other can be asked for."""

    def __init__(self, app: Asgi, folder: Path) -> None:
        self.app = app
        with os.scandir(folder) as entries:
            self._files = {ROUTE + entry.name: Path(entry.path) for entry in entries if entry.is_file(follow_symlinks=False)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        file = self._files.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "GET" else None
        if file is None:
            await self.app(scope, receive, send)
            return
        body = file.read_bytes()
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode()), (b"cache-control", _KEPT)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Uncompressed:
    """ASGI middleware in place of one that compresses: on this machine a file is handed over sooner than it is compressed."""

    def __init__(self, app: Asgi, **options: Any) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)
