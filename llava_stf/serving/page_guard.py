"""What of gradio's server the page needs, and nothing else: every other route, path and body is refused.

gradio can fetch URLs and read files for whoever may call a handler, and a mounted app skips its own check of paths. So
the page's routes are listed here, and a file is one that was uploaded to the page or it is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_stf.io.json import parse_json

READ = ("/", "/config", "/theme.css", "/gradio_api/queue/data", "/gradio_api/upload_progress")
READ_BELOW = ("/assets/", "/static/", "/svelte/")
WRITE = ("/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/upload")
FILE = "/gradio_api/file="
UPLOAD, JOIN = "/gradio_api/upload", "/gradio_api/queue/join"
MAX_BODY = 2**18  # bytes of a call: a question, some paths and the page's own state
MULTIPART_ROOM = 2**12  # bytes of an upload's headers and boundaries


class Refused(Exception):
    """A request that the page does not make: status and sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class PageGuard:
    """ASGI middleware in front of the page.

    Args:
        app: gradio's.
        files: folder of uploads; no path outside it is read or sent.
        max_image_bytes: of one upload.
    """

    def __init__(self, app: ASGIApp, files: Path, max_image_bytes: int) -> None:
        self.app = app
        self.files = files.resolve()
        self.max_upload = max_image_bytes + MULTIPART_ROOM

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it before the page sees it."""
        if scope["type"] == "http":
            try:
                receive = await self._checked(Request(scope, receive))
            except Refused as refusal:
                answer = JSONResponse({"detail": str(refusal)}, refusal.status, {"Connection": "close"})
                return await answer(scope, receive, send)
        elif scope["type"] != "lifespan":
            return None
        return await self.app(scope, receive, send)

    async def _checked(self, request: Request) -> Receive:
        """The body of a request that the page may make. Raises `Refused` for any other."""
        path = request.scope["path"].removeprefix(request.scope.get("root_path", "")) or "/"
        if request.method in ("GET", "HEAD"):
            if path.startswith(FILE):
                self._check_file(path.removeprefix(FILE))
            elif path not in READ and not path.startswith(READ_BELOW):
                raise Refused(404, "The page has no such address.")
            return request.receive
        if request.method != "POST" or path not in WRITE:
            raise Refused(404, "The page has no such address.")
        limit = self.max_upload if path == UPLOAD else MAX_BODY
        _check_length(request.headers, limit)
        if path != JOIN:
            return request.receive
        body = await request.body()
        try:
            self._check_files_in(parse_json(body))
        except ValueError as error:
            raise Refused(400, "Expected a call of the page in JSON.") from error
        return _replay(body, request.receive)

    def _check_files_in(self, value: Any) -> None:
        """Every file that a call names is one of the page's own."""
        if isinstance(value, dict):
            if "path" in value:
                self._check_file(value["path"])
            for item in value.values():
                self._check_files_in(item)
        elif isinstance(value, list):
            for item in value:
                self._check_files_in(item)

    def _check_file(self, name: Any) -> None:
        try:
            # A browser's address may still be quoted; a name that is not is the same after unquoting or refused.
            inside = isinstance(name, str) and all(
                Path(text).resolve().is_relative_to(self.files) for text in (name, unquote(name))
            )
        except (OSError, ValueError):
            inside = False
        if not inside:
            raise Refused(403, "Only an image that was uploaded to this page can be shown or asked about.")


def _check_length(headers: Headers, limit: int) -> None:
    length = headers.get("content-length", "")
    if not length.isdecimal():
        raise Refused(411, "The request does not say how long it is.")
    if int(length) > limit:
        raise Refused(413, f"The file is too large: at most {limit:,} bytes can be sent, found {int(length):,}.")


def _replay(body: bytes, receive: Receive) -> Receive:
    """`receive` with the body, which has been read, once more in front of it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again
