"""Access control of the annotation server: the annotator behind each browser, and the requests that may write.

Each annotator URL contains a key that opens one browser, once, as in the viewer. When a browser opens the URL, the
server exchanges the key for a session cookie. The session belongs to one annotator, and the server saves all work from
that browser under the annotator's name.

For a write, the cookie isn't enough. The request must also contain a header that a form on another site can't send, an
`Origin` of this server, and the annotator's name from when the page was opened. The name guards against mix-ups. A
browser stores only one session cookie, so opening a second annotator's URL in the same browser replaces the first
annotator's session. The server then rejects requests from the first annotator's pages, which keeps that work from being
saved under the second annotator's name.
"""

from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from segmint.infra.errors import UsageError
from segmint.pipeline.serving.door import KEY, HeadersMiddleware, OneTimeKeys

HEADER = "x-segmint"
"""Header that every write must send, with the value 1."""

WHO = "x-segmint-annotator"
"""Header with the annotator's name from when the page was opened, in percent-encoded UTF-8. Required for writes."""

MOST_ANNOTATORS = 1000

_READS = ("GET", "HEAD")

_ADVICE = """\
<p>Ask the person who started <code>segmint annotate</code> for a new one. If the page isn't open in any of your
browsers, someone else may have used the address, so tell them.</p>"""


class NotOwnerError(Exception):
    """Error for a request that is reserved for the owner, who is the annotator who started the server."""


@dataclass(frozen=True)
class ServerOrigin:
    """Origin that browsers use to reach the server, such as `http://127.0.0.1:8765`. `host` is its Host header."""

    text: str
    host: str

    @property
    def secure(self) -> bool:
        """True if browsers use HTTPS."""
        return self.text.startswith("https:")


def parse_origin(text: str) -> ServerOrigin:
    """Parse a proxy's origin, such as `https://annotate.example.org`. Raises `UsageError` if it isn't an origin."""
    problem = UsageError(f"--origin {text!r}: expected only https://HOST or http://HOST, optionally with a port")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise problem from error
    bare = parts.netloc and parts.path in ("", "/") and not (parts.query or parts.fragment or "@" in parts.netloc)
    if parts.scheme not in ("http", "https") or not bare or not parts.hostname or not text.isascii():
        raise problem
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    usual = {"http": 80, "https": 443}[parts.scheme]
    host = name if port in (None, usual) else f"{name}:{port}"
    return ServerOrigin(f"{parts.scheme}://{host}", host)


class Team(OneTimeKeys):
    """Annotators who can use a server on `port`, with their one-time keys and their sessions. Thread-safe.

    The first annotator owns the server and can create URLs for the others. `origin` is the origin of a reverse proxy,
    if there is one.
    """

    def __init__(self, port: int, annotators: list[str], origin: ServerOrigin | None = None) -> None:
        super().__init__()
        local = [ServerOrigin(f"http://{host}", host) for host in (f"127.0.0.1:{port}", f"localhost:{port}")]
        self.port = port
        self.owner = annotators[0]
        self.origins = [*local, *([] if origin is None else [origin])]
        self._public = local[0] if origin is None else origin
        self._names = list(dict.fromkeys(annotators))

    @property
    def annotators(self) -> list[str]:
        """Names of all annotators, the owner's first."""
        with self._lock:
            return list(self._names)

    def address(self, annotator: str) -> str:
        """Return a new URL that opens one browser for an annotator, and revoke the previous one if it is unused.

        An annotator who isn't in the team yet is added to it. Raises `UsageError` if the team already has the maximum
        number of annotators.
        """
        with self._lock:
            if annotator not in self._names:
                if len(self._names) >= MOST_ANNOTATORS:
                    raise UsageError(f"too many annotators: the maximum is {MOST_ANNOTATORS}")
                self._names.append(annotator)
        return f"{self._public.text}/?{KEY}={quote(self.new_key(annotator), safe='')}"


class TeamGuard(HeadersMiddleware):
    """Middleware that enforces the rules in the module docstring.

    It stores the annotator's name in `request.state.annotator` for the handlers.
    """

    def __init__(self, app: ASGIApp, team: Team) -> None:
        super().__init__(app, f"segmint-annotate-{team.port}", "segmint annotate", _ADVICE)
        self._team = team
        self._hosts = {origin.host.lower(): origin for origin in team.origins}
        self._origins = {origin.text.lower() for origin in team.origins}

    def _answer(self, request: Request) -> Response | None:
        origin = self._hosts.get(request.headers.get("host", "").lower())
        if origin is None:
            return _refusal(421, "this server only responds at its own addresses. Pass a proxy's with --origin")
        annotator = self._team.name_of(self._session(request))
        entered = self._enter(request, self._team.enter, annotator is not None, origin.secure)
        if entered is not None:
            return entered
        if annotator is None:
            return _refusal(403, "open the address that `segmint annotate` printed for you: it contains a key")
        if request.method not in _READS and (problem := self._write_problem(request)) is not None:
            return _refusal(403, problem)
        if unquote(request.headers.get(WHO, quote(annotator))) != annotator:
            text = f"{annotator}'s address was opened in this browser since then, so this would be saved under it"
            return JSONResponse({"error": text, "annotator": annotator}, 403)
        request.state.annotator = annotator
        return None

    def _write_problem(self, request: Request) -> str | None:
        """Return the reason why this request may not write, or None if it may."""
        if request.headers.get(HEADER) != "1":
            return "writing requires the header X-Segmint: 1"
        if request.headers.get("origin", "").lower() not in self._origins:
            return "writing requires an Origin of this server"
        if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return "only this server's own pages can write"
        if WHO not in request.headers:
            return "writing requires the header X-Segmint-Annotator: the session's name, percent-encoded"
        return None


def _refusal(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status)
