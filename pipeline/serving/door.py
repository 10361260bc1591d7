"""Access control for browsers: one-time URLs, sessions in cookies, and restrictive headers.

A URL contains a key that admits one browser. When the browser opens the URL, the server exchanges the key for a cookie
that scripts can't read and other sites can't send. If the server starts the browser with the URL, other users of the
machine may see the key in the process list. By then, the key has been used and is worthless. The headers restrict the
browser to the server's own scripts and resources, and prevent framing.
"""

import base64
import hashlib
import secrets
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

KEY = "key"
"""Query parameter that contains the key."""

_STYLE = "body { font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 10vh auto; padding: 0 1rem }"
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_SPENT = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{command}: this address was used before</title>
<style>{style}</style>
<main><h1>This address was used before</h1>
<p>Each address from <code>{command}</code> works once, in one browser.
This one was used, or isn't from this server.</p>
{advice}</main>
</html>
"""

HEADERS = {
    "content-security-policy": (
        f"default-src 'none'; script-src 'self'; style-src 'self' 'sha256-{_STYLE_HASH}'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Nothing is cached: the same URL may show another dataset tomorrow, and images may be taken down.
    "cache-control": "no-store",
}
"""Headers of every response from a server that is meant for one person's browser."""


class OneTimeKeys:
    """One-time keys and sessions, by people's names. Thread-safe.

    Keys and sessions consist of 256 random bits each, so they can't be guessed. Each person has at most one unused key.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[str, str] = {}  # by name
        self._sessions: dict[str, str] = {}  # names by session

    def new_key(self, name: str) -> str:
        """Create a key that opens one browser, and revoke the person's previous key if it is unused."""
        with self._lock:
            self._keys[name] = secrets.token_urlsafe(32)
            return self._keys[name]

    def enter(self, key: str) -> str | None:
        """Exchange a key for a session. Return None if the key is unknown or was already used."""
        with self._lock:
            found = [name for name, known in self._keys.items() if _same_secret(key, known)]
            if not found:
                return None
            del self._keys[found[0]]
            session = secrets.token_urlsafe(32)
            self._sessions[session] = found[0]
            return session

    def name_of(self, session: str) -> str | None:
        """Return the person that a session belongs to, or None if the session doesn't exist."""
        with self._lock:
            found = [name for known, name in self._sessions.items() if _same_secret(session, known)]
            return found[0] if found else None


class HeadersMiddleware(ABC):
    """ASGI middleware that rejects requests without access, and adds the headers to every response.

    `cookie` is the name of the session's cookie. All ports of a host share cookies, so the name must be unique to a
    port. The page for a URL that was already used names `command`, and ends with the paragraphs in `advice`.
    """

    def __init__(self, app: ASGIApp, cookie: str, command: str, advice: str) -> None:
        self._app = app
        self._cookie = cookie
        self._spent = _SPENT.format(command=command, style=_STYLE, advice=advice)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a request, or pass it to the application."""

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
        """Return the response to a rejected request or to a request with a key, or None if the request may pass."""

    def _session(self, request: Request) -> str:
        return request.cookies.get(self._cookie, "")

    def _enter(
        self, request: Request, enter: Callable[[str], str | None], inside: bool, secure: bool = False
    ) -> Response | None:
        """Respond to a URL with a key, which `enter` exchanges for a session. Return None for other URLs."""
        if request.url.path != "/" or KEY not in request.query_params or request.method != "GET":
            return None
        session = enter(request.query_params[KEY])
        if session is None and not inside:
            return HTMLResponse(self._spent, 403)
        response = RedirectResponse("/", 303)
        if session is not None:
            response.set_cookie(self._cookie, session, httponly=True, samesite="strict", path="/", secure=secure)
        return response


def _same_secret(given: str, known: str) -> bool:
    """Compare two secrets in constant time."""
    return secrets.compare_digest(given.encode("utf-8", "surrogateescape"), known.encode())
