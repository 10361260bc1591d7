"""The door of a server for browsers: one-time addresses, sessions in cookies, and headers that restrict the browser.

An address carries a key that opens one browser: at its first use it is exchanged for a cookie that scripts cannot read
and other sites cannot send. So a key is worth nothing to another user of the machine, who may read it in the list of
processes once a browser was started with it. The headers restrict the browser: it runs only the server's scripts, loads
nothing from elsewhere, and does not show the pages in a frame.
"""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

KEY = "key"
"""The parameter of the address that carries the key."""

HEADERS = {
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
"""The headers of every answer of a server for one person's browser."""


class HeadersMiddleware(ABC):
    """ASGI middleware that answers some requests itself, and adds the headers to every answer.

    `cookie` names the session, as all ports of a host share its cookies; `spent` is the page for an address that was
    used before.
    """

    def __init__(self, app: ASGIApp, cookie: str, spent: str) -> None:
        self._app = app
        self._cookie = cookie
        self._spent = spent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let the application answer it."""

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] != "http":
            return
        response = self._answer(Request(scope)) or self._app
        await response(scope, receive, send_guarded)

    @abstractmethod
    def _answer(self, request: Request) -> Response | None:
        """Return the answer to a refused request or to the first one with a key; None if the request may pass."""

    def _session(self, request: Request) -> str:
        return request.cookies.get(self._cookie, "")

    def _enter(
        self, request: Request, enter: Callable[[str], str | None], inside: bool, secure: bool = False
    ) -> Response | None:
        """Return the answer to an address with a key, which `enter` exchanges for a session; None for others."""
        if request.url.path != "/" or KEY not in request.query_params or request.method != "GET":
            return None
        session = enter(request.query_params[KEY])
        if session is None and not inside:
            return HTMLResponse(self._spent, 403)
        response = RedirectResponse("/", 303)
        if session is not None:
            response.set_cookie(self._cookie, session, httponly=True, samesite="strict", path="/", secure=secure)
        return response


def same_secret(given: str, known: str) -> bool:
    """Return whether two secrets are the same, in a time that says nothing of them."""
    return secrets.compare_digest(given.encode("utf-8", "surrogateescape"), known.encode())
