"""Access to a viewer: only reads, only from this machine, and only from a browser that opened a one-time address.

An address carries a key that opens one browser: at its first use it is exchanged for a cookie that scripts cannot read
and other sites cannot send. So a key is worth nothing to another user of the machine, who may read it in the list of
processes once a browser was started with it. Requests for other host names are refused by the header Host, because of
DNS rebinding. The headers restrict the browser: it runs only the viewer's scripts, loads nothing from elsewhere, and
does not show the pages in a frame.
"""

import secrets
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
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


_SPENT = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>segmint view: this address was used before</title>
<h1>This address was used before</h1>
<p>An address of <code>segmint view</code> opens one browser, once. This one was used, or is not of this viewer.</p>
<p>In a browser that has the viewer open, &ldquo;Open in another browser&rdquo; gives a new address.</p>
<p>If no browser of yours has it open, another user of this machine may have used the address: end
<code>segmint view</code> with ctrl-C and start it again.</p>
</html>
"""


class Access:
    """The one-time keys and the sessions of a viewer that listens on `port`. Thread-safe.

    Keys and sessions cannot be guessed: 256 random bits. One key at most is waiting for its use.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self._lock = threading.Lock()
        self._key: str | None = None
        self._sessions: set[str] = set()

    def address(self) -> str:
        """Return a new address that opens one browser; the one before is void if it was not used."""
        with self._lock:
            self._key = secrets.token_urlsafe(32)
            return f"http://127.0.0.1:{self.port}/?{KEY}={self._key}"

    def enter(self, key: str) -> str | None:
        """Exchange the key of an address for a session; None if it is not the one that waits for its use."""
        with self._lock:
            if self._key is None or not same_secret(key, self._key):
                return None
            self._key = None
            session = secrets.token_urlsafe(32)
            self._sessions.add(session)
            return session

    def has(self, session: str) -> bool:
        """Return whether this is a session."""
        with self._lock:
            return any(same_secret(session, known) for known in self._sessions)


class Door(ABC):
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


class Guard(Door):
    """The door of a viewer: refuses requests by the rules above."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        port = access.port
        super().__init__(app, f"segmint-view-{port}", _SPENT)
        self._access = access
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    def _answer(self, request: Request) -> Response | None:
        if request.headers.get("host", "").lower() not in self._hosts:
            return PlainTextResponse("This viewer answers only at 127.0.0.1 and localhost.", 421)
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("This viewer is read-only.", 405, {"allow": "GET, HEAD"})
        inside = self._access.has(self._session(request))
        entered = self._enter(request, self._access.enter, inside)
        if entered is not None or inside:
            return entered
        return PlainTextResponse("Open the address that `segmint view` printed: it contains the key.", 403)


def same_secret(given: str, known: str) -> bool:
    """Return whether two secrets are the same, in a time that says nothing of them."""
    return secrets.compare_digest(given.encode("utf-8", "surrogateescape"), known.encode())
