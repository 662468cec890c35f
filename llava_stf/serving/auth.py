"""What stands before every route: the API key, the id of the request, its line in the log, and the count by status."""

from __future__ import annotations

import hmac
import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_stf.serving import request_id
from llava_stf.serving.errors import KeyRefusedError
from llava_stf.serving.metrics import Metrics
from llava_stf.serving.replies import error_reply

logger = logging.getLogger(__name__)

_GUARDED = ("/v1/", "/metrics")
# As a label of the metrics: a client that invents paths must not fill the memory with counters.
ROUTES = ("/health", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/completions")


class AuthMiddleware:
    """ASGI middleware.

    Args:
        app: The application behind it.
        api_key: What requests to `/v1/...` and `/metrics` have to send; `None` lets everybody in.
        metrics: Where requests are counted.
    """

    def __init__(self, app: ASGIApp, api_key: str | None, metrics: Metrics) -> None:
        self._app = app
        self._key = None if api_key is None else f"Bearer {api_key}".encode()
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 499  # unless something is answered, the client has left
        started = time.perf_counter()
        headers = Headers(scope=scope)
        id_ = request_id.begin(headers.get("x-request-id", ""))

        async def noting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = id_
            await send(message)

        try:
            admitted = self._admits(scope["path"], headers)
            app = self._app if admitted else error_reply(KeyRefusedError("The API key is missing or wrong."))
            await app(scope, receive, noting_send)
        finally:
            route = scope["path"] if scope["path"] in ROUTES else "other"
            self._metrics.requests.labels(route, str(status)).inc()
            path = scope["raw_path"].decode("latin-1") if "raw_path" in scope else scope["path"]
            client = scope["client"][0] if scope.get("client") else "-"
            seconds = time.perf_counter() - started
            logger.info('%s "%s %.200s" %d, %.3f s', client, scope["method"], path, status, seconds)

    def _admits(self, path: str, headers: Headers) -> bool:
        if self._key is None or not path.startswith(_GUARDED):
            return True
        return hmac.compare_digest(headers.get("authorization", "").encode("latin-1", "replace"), self._key)
