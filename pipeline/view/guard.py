"""Access to a viewer: only reads, only from this machine, and only with the key in the address that it printed.

The key is in the first address and becomes a cookie that scripts cannot read and other sites cannot send. Requests for
other host names are refused by the header Host, because of DNS rebinding. The headers restrict the browser: it runs
only the viewer's scripts, loads nothing from elsewhere, and does not show the pages in a frame.
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
    # Tomorrow the same address may show another dataset, and images are taken down.
    "cache-control": "no-store",
}


def new_key() -> str:
    """Return a key that cannot be guessed: 256 random bits."""
    return secrets.token_urlsafe(32)


def address(port: int, key: str) -> str:
    """Return the address to open first."""
    return f"http://127.0.0.1:{port}/?{KEY}={key}"


class Guard:
    """ASGI middleware that refuses requests by the rules above, and adds the headers to every answer."""

    def __init__(self, app: ASGIApp, key: str, port: int) -> None:
        self._app = app
        self._key = key.encode()
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._cookie = f"segmint-view-{port}"  # all ports of a host share its cookies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let the application answer it."""

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        if scope["type"] != "http":
            return
        response = self._answer(Request(scope)) or self._app
        await response(scope, receive, send_guarded)

    def _answer(self, request: Request) -> Response | None:
        """Return the answer to a refused request or to the first one with the key; None if the request may pass."""
        if request.headers.get("host", "").lower() not in self._hosts:
            return PlainTextResponse("This viewer answers only at 127.0.0.1 and localhost.", 421)
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("This viewer is read-only.", 405, {"allow": "GET, HEAD"})
        if request.url.path == "/" and self._is_key(request.query_params.get(KEY, "")):
            response = RedirectResponse("/", 303)
            response.set_cookie(self._cookie, self._key.decode(), httponly=True, samesite="strict", path="/")
            return response
        if not self._is_key(request.cookies.get(self._cookie, "")):
            return PlainTextResponse("Open the address that `segmint view` printed: it contains the key.", 403)
        return None

    def _is_key(self, given: str) -> bool:
        return secrets.compare_digest(given.encode("utf-8", "surrogateescape"), self._key)
