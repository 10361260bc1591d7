"""Who may ask a viewer: whoever has its key, from this machine, by the address that it printed. It answers reads alone.

The key comes once, in the address, and becomes a cookie that no script reads and no other site sends. A name of the
web that was led to 127.0.0.1 is refused by the header Host (DNS rebinding). What a browser may do with the pages is in
the headers: it runs our scripts alone, loads nothing from elsewhere, and is shown in nobody's frame.
"""

import secrets

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

KEY = "key"
"""The parameter of the address that carries the key."""

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Another dataset may be shown at the same address tomorrow, and images are taken down.
    "cache-control": "no-store",
}


def new_key() -> str:
    """A key that nobody guesses: 256 random bits."""
    return secrets.token_urlsafe(32)


def address(port: int, key: str) -> str:
    """The address to open first."""
    return f"http://127.0.0.1:{port}/?{KEY}={key}"


class Guard:
    """ASGI middleware that lets through what this module's head says, and puts its headers on every answer."""

    def __init__(self, app: ASGIApp, key: str, port: int) -> None:
        self._app = app
        self._key = key.encode()
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._cookie = f"segmint-view-{port}"  # cookies of one host are shared by all of its ports

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or lets the application answer it."""

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        if scope["type"] != "http":
            return
        response = self._answer(Request(scope)) or self._app
        await response(scope, receive, send_guarded)

    def _answer(self, request: Request) -> Response | None:
        """The answer to who may not ask, or comes in; None for who is let through."""
        if request.headers.get("host", "").lower() not in self._hosts:
            return PlainTextResponse("This viewer answers at 127.0.0.1 and localhost alone.", 421)
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("This viewer is read-only.", 405, {"allow": "GET, HEAD"})
        if request.url.path == "/" and self._is_key(request.query_params.get(KEY, "")):
            response = RedirectResponse("/", 303)
            response.set_cookie(self._cookie, self._key.decode(), httponly=True, samesite="strict", path="/")
            return response
        if not self._is_key(request.cookies.get(self._cookie, "")):
            return PlainTextResponse("Open the address that `segmint view` printed: it carries the key.", 403)
        return None

    def _is_key(self, given: str) -> bool:
        return secrets.compare_digest(given.encode("utf-8", "surrogateescape"), self._key)
