"""Asks for the server's API key before it shows the page: one field, and a cookie for as long as the server runs."""

from __future__ import annotations

import secrets
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

COOKIE = "llava_stf_page"
MAX_FORM = 2**14  # bytes
FORM = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>LLaVA-STF</title><style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { display: grid; place-items: center; min-height: 90vh; margin: 0 24px; }
form { display: grid; gap: 12px; width: min(320px, 100%); }
h1 { margin: 0; font-size: 24px; line-height: 1.2; }
p { margin: 0; opacity: 0.8; }
input, button { font: inherit; padding: 10px 12px; border-radius: 10px; border: 1px solid #8a93a3; }
button { font-weight: 600; cursor: pointer; }
</style></head><body><form method="post" action="login">
<h1>Ask about an image</h1><!-- problem -->
<label for="key">API key of this server</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button>Continue</button></form></body></html>
"""
WRONG = '<p role="alert">That is not the key of this server.</p>'


class Login:
    """ASGI middleware: what does not carry the cookie gets the form, or 401 where it is no page.

    Args:
        app: the page.
        api_key: what has to be typed.
    """

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self.app = app
        self.api_key = api_key.encode()
        self.token = secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on the requests of who is logged in; any other gets the login form, or is refused."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = Request(scope, receive)
        if secrets.compare_digest(request.cookies.get(COOKIE, "").encode(), self.token.encode()):
            return await self.app(scope, receive, send)
        answer = await self._answer(request)
        return await answer(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        if request.method == "GET" and path in ("", "/"):
            return HTMLResponse(FORM, headers={"Cache-Control": "no-store"})
        if (request.method, path) != ("POST", "/login"):
            return JSONResponse({"detail": "This page asks for the server's API key first."}, 401)
        given = await _key(request)
        if not secrets.compare_digest(given, self.api_key):
            return HTMLResponse(FORM.replace("<!-- problem -->", WRONG), 401)
        answer = RedirectResponse("./", 303)
        secure = request.url.scheme == "https"
        answer.set_cookie(
            COOKIE, self.token, path=request.scope.get("root_path") or "/", httponly=True, samesite="strict",
            secure=secure,
        )  # fmt: skip
        return answer


async def _key(request: Request) -> bytes:
    """The key as it was typed; empty where the form is not ours."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM:
            return b""
    try:
        return parse_qs(body.decode()).get("key", [""])[0].encode()
    except ValueError:
        return b""
