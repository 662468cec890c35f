"""What stands before every route: the API key, and the count of requests by status."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_stf.serving.errors import KeyRefusedError
from llava_stf.serving.metrics import Metrics
from llava_stf.serving.replies import error_reply

_GUARDED = ("/v1/", "/metrics")
# As a label of the metrics: a client that invents paths must not fill the memory with counters.
ROUTES = ("/health", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/completions")


class AuthMiddleware:
    """ASGI middleware.

    Args:
        app: the application behind it.
        api_key: that requests to `/v1/...` and `/metrics` have to send; `None` lets everybody in.
        metrics: where requests are counted.
    """

    def __init__(self, app: ASGIApp, api_key: str | None, metrics: Metrics) -> None:
        self._app = app
        self._key = None if api_key is None else f"Bearer {api_key}".encode()
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 499  # unless something is answered, the client has left

        async def counting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            app = self._app if self._admits(scope) else error_reply(KeyRefusedError("The API key is missing or wrong."))
            await app(scope, receive, counting_send)
        finally:
            route = scope["path"] if scope["path"] in ROUTES else "other"
            self._metrics.requests.labels(route, str(status)).inc()

    def _admits(self, scope: Scope) -> bool:
        if self._key is None or not scope["path"].startswith(_GUARDED):
            return True
        given = Headers(scope=scope).get("authorization", "").encode("latin-1", "replace")
        return hmac.compare_digest(given, self._key)
