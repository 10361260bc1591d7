"""Web applications: responses, the check at the door, and the server.

Access control for browsers: one-time URLs, sessions in cookies, and restrictive headers.

A URL contains a key that admits one browser. When the browser opens the URL, the server exchanges the key for a cookie
that scripts can't read and other sites can't send. If the server starts the browser with the URL, other users of the
machine may see the key in the process list. By then, the key has been used and is worthless. The headers restrict the
browser to the server's own scripts and resources, and prevent framing.
"""

import base64
import hashlib
import json
import math
import secrets
import signal
import socket
import threading
import webbrowser
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.stopping import release_signals
from segmint.infra.storage.errors import StorageFaultError
from segmint.infra.uris import redact
from segmint.pipeline.serving.images import NoImageError, UnknownImageError

ASSETS = Path(__file__).parent / "assets"
"""Files shared by all pages."""

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_DIGITS = 40  # maximum length of a number in a URL; Python only parses numbers of up to 4,300 digits
_SHOWN = 60  # maximum length of an invalid value that a response repeats


def page_routes(page: Path) -> list[Route]:
    """Create a page's route and, below `/assets/`, routes for the files in its folder and for shared files."""
    files = [*sorted(ASSETS.iterdir()), *sorted(page.parent.iterdir())]
    served = {path.name: path for path in files if path.suffix in _TYPES}
    return [Route("/", _file(page)), *(Route(f"/assets/{name}", _file(path)) for name, path in served.items())]


def _file(path: Path) -> Callable[[Request], Response]:
    """Create a handler that responds with a file. The file is read immediately."""
    content = path.read_bytes()
    return lambda _: Response(content, media_type=_TYPES[path.suffix])


def image_of(request: Request) -> int:
    """Parse the image id in a URL. Raises `UnknownImageError` if it isn't a number."""
    text: str = request.path_params["image"]
    return parse_number(text, UnknownImageError(f"this dataset has no image {shortened(text)!r}"))


def parse_number(text: str, problem: SegmintError, digits: int = _DIGITS) -> int:
    """Parse a number. Raises `problem` if the text isn't a number, or has more than `digits` digits."""
    if not (text.isascii() and text.isdecimal() and len(text) <= digits):
        raise problem
    return int(text)


def shortened(text: str) -> str:
    """Shorten an invalid value for an error message that repeats it."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def jpeg_response(data: bytes) -> Response:
    """Return a response with a JPEG."""
    return Response(data, media_type="image/jpeg")


def json_response(value: Any, status: int = 200) -> Response:
    """Return a response with JSON."""
    text = json.dumps(_plain(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=str)
    return Response(text, status, media_type="application/json")


def _plain(value: Any) -> Any:
    """Convert a table's value for JSON. NaN and infinities, which a damaged table may contain, become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def problem(status: int) -> Callable[[Request, Exception], Response]:
    """Create a handler that responds to an exception with its text."""

    def answer(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": redact(str(error))}, status)

    return answer


def _http_problem(_: Request, error: Exception) -> Response:
    """Return the response for a URL or method that does not exist."""
    status, detail = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, "")
    return JSONResponse({"error": detail}, status)


PROBLEMS: Mapping[Any, Callable[[Request, Exception], Response]] = MappingProxyType(
    {
        UsageError: problem(400),
        UnknownImageError: problem(404),
        NoImageError: problem(404),
        HTTPException: _http_problem,
        StorageFaultError: problem(502),
        SegmintError: problem(500),
    }
)
"""Handlers for the errors that all applications share."""


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


_HOST = "127.0.0.1"
_LAST_ANSWERS_S = 3


def run_app(app: Starlette, listener: socket.socket, address: str | None = None) -> None:
    """Serve an application on a listening socket until the process receives SIGINT or SIGTERM.

    If `address` is given, opens it in this machine's browser.
    """
    import uvicorn

    if address is not None:
        # Opening some browsers blocks until they are closed, but the server must run in the meantime.
        threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()

    server = uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_level="warning",
            access_log=False,  # log lines would contain keys
            server_header=False,
            timeout_graceful_shutdown=_LAST_ANSWERS_S,
        )
    )
    with _ended_by_signals():
        server.run(sockets=[listener])


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """End the block quietly on SIGINT and SIGTERM. Every `finally` runs."""
    release_signals()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def listen(port: int) -> socket.socket:
    """Listen on a port of 127.0.0.1. Port 0 picks a free port. Raises `UsageError` if the port is in use."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Without this option, a response's body would wait up to 40 ms until the browser has acknowledged the headers.
    # asyncio only sets it for sockets that it creates itself. Accepted connections inherit it from the listener.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((_HOST, port))
    except OSError as error:
        listener.close()
        raise UsageError(f"--port {port}: cannot listen on {_HOST}:{port}: {error.strerror}") from error
    listener.listen()
    return listener
