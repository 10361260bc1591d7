"""Requests of the annotators' pages: access, size limits for bodies, errors as JSON, and shared routes.

Access control of the annotation server: the annotator behind each browser, and the requests that may write.

Each annotator URL contains a key that opens one browser, once, as in the viewer. When a browser opens the URL, the
server exchanges the key for a session cookie. The session belongs to one annotator, and the server saves all work from
that browser under the annotator's name.

For a write, the cookie isn't enough. The request must also contain a header that a form on another site can't send, an
`Origin` of this server, and the annotator's name from when the page was opened. The name guards against mix-ups. A
browser stores only one session cookie, so opening a second annotator's URL in the same browser replaces the first
annotator's session. The server then rejects requests from the first annotator's pages, which keeps that work from being
saved under the second annotator's name.
"""

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from segmint.catalogs.dataset.submissions import RemovedImageError, SubmissionError, check_name
from segmint.catalogs.dataset.versions import VersionName
from segmint.infra.errors import UsageError
from segmint.pipeline.engine.annotate.source import ConflictError, ImageGoneError, ImageSource, NotReadyError
from segmint.pipeline.serving.images import OutputOrder
from segmint.pipeline.serving.responses import (
    KEY,
    HeadersMiddleware,
    OneTimeKeys,
    image_of,
    jpeg_response,
    json_response,
    page_routes,
    parse_number,
    problem,
)
from segmint.pipeline.serving.responses import PROBLEMS as SHARED_PROBLEMS

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


SMALL_BYTES = 64 << 10
"""Size limit in bytes of request bodies with only a few fields."""

PROMPT_BYTES = 4 << 20
"""Size limit in bytes of prompts, which may contain a mask."""

_DIGITS = 9
LARGE = 1 << 20
_MOST_VALUES = 4_000_000
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class TooLargeError(Exception):
    """Error for a request whose body exceeds the limit."""


def reads(path: str, answer: Callable[[Request], Any]) -> Route:
    """Create the route of a read endpoint, which runs `answer` in a thread and responds with its result."""

    async def run(request: Request) -> Response:
        return await run_in_threadpool(lambda: _response(answer(request)))

    return Route(path, run)


def _response(value: Any) -> Response:
    """Convert a value to a JSON response, or None to an empty one. Return an existing response unchanged."""
    if isinstance(value, Response):
        return value
    return Response(status_code=204) if value is None else json_response(value)


class RequestBodies:
    """Reader of write requests' bodies that bounds the server's memory.

    Each endpoint has a size limit. Parsed JSON takes many times its size in memory, so the server reads and processes
    at most `at_once` bodies over 1 MiB at a time; other large bodies wait. To keep a slow client from blocking others,
    a body is rejected if nothing arrives for `patience_s` seconds, or if it falls that many seconds behind a rate of
    `slowest` bytes per second.
    """

    def __init__(self, at_once: int = 2, patience_s: float = 30.0, slowest: float = 40_000.0) -> None:
        self._large = asyncio.Semaphore(at_once)
        self._patience_s = patience_s
        self._slowest = slowest

    def writes(
        self, path: str, answer: Callable[[Request, Any], Any], most: int = SMALL_BYTES, method: str = "POST"
    ) -> Route:
        """Create the route of a write endpoint, which accepts a JSON body of at most `most` bytes.

        The route passes the parsed body to `answer` in a thread, and responds as in `reads`.
        """

        async def run(request: Request) -> Response:
            async with AsyncExitStack() as stack:
                body = await self._read(request, most, stack)
                return await run_in_threadpool(lambda: _response(answer(request, _parsed(body))))

        return Route(path, run, methods=[method])

    async def _read(self, request: Request, most: int, stack: AsyncExitStack) -> bytes:
        """Read a body. Raises `TooLargeError` once it exceeds the limit, whatever length the request states."""
        problem = TooLargeError(f"the request is too large: the limit is {most:,} bytes")
        said = request.headers.get("content-length", "0")
        if not (said.isascii() and said.isdecimal()) or int(said[:20]) > most:
            raise problem
        parts: list[bytes] = []
        size = 0
        waited = 0.0
        clock = asyncio.get_running_loop().time
        stream = request.stream()
        try:
            while True:
                asked = clock()
                async with asyncio.timeout(min(self._patience_s, self._patience_s + size / self._slowest - waited)):
                    part = await anext(stream, None)
                waited += clock() - asked
                if part is None:
                    return b"".join(parts)
                if size <= LARGE < size + len(part):
                    await stack.enter_async_context(self._large)
                size += len(part)
                if size > most:
                    raise problem
                parts.append(part)
        except ClientDisconnect as error:
            raise UsageError("the request ended early") from error
        except TimeoutError as error:
            raise UsageError(f"the request stalled for {self._patience_s:g} seconds or was too slow") from error


def _parsed(body: bytes) -> Any:
    """Parse a body as JSON. An empty body becomes {}.

    Raises `UsageError` if the body isn't valid JSON, or contains NaN, infinities, unpaired surrogates, or more values
    than any submission does.
    """

    def refuse(text: str) -> float:
        raise ValueError(f"{text} is not a JSON number")

    if len(body) > LARGE and sum(map(body.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        raise UsageError(f"the request has more than {_MOST_VALUES:,} values")
    try:
        value = json.loads(body.decode(), parse_constant=refuse) if body else {}
        if _SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the request is not JSON: {str(error)[:200]!a}") from error
    return value


def form_field(body: Any, name: str, kind: Any) -> Any:
    """Return a field of a body. Raises `UsageError` if it has another type."""
    value = body.get(name) if isinstance(body, dict) else None
    if not isinstance(body, dict) or isinstance(value, bool) or not isinstance(value, kind):
        raise UsageError(f"{name}: expected {getattr(kind, '__name__', 'a number')}")
    return value


def number_in(request: Request, name: str) -> int:
    """Parse a part of the path as a number. Raises `UsageError` if it isn't one."""
    problem = UsageError(f"{name}: expected a whole number of at most {_DIGITS} digits")
    return parse_number(request.path_params[name], problem, _DIGITS)


def check_owner(request: Request, team: Team) -> None:
    """Raise `NotOwnerError` if a request isn't from the owner of the server."""
    if request.state.annotator != team.owner:
        raise NotOwnerError("only the person who started the server can create addresses, and see others' submissions")


def team_routes(
    page: Path, team: Team, about: Callable[[], Mapping[str, Any]], source: ImageSource, bodies: RequestBodies
) -> list[Route]:
    """Create the routes that annotation and rating share.

    They serve the page, the session, and the images, and let the owner create URLs for other people.
    """

    def session(request: Request) -> Any:
        name = request.state.annotator
        return {"annotator": name, "owner": name == team.owner, **about()}

    def address(request: Request, body: Any) -> Any:
        check_owner(request, team)
        name = check_name(form_field(body, "annotator", str))
        return {"annotator": name, "address": team.address(name)}

    return [
        *page_routes(page),
        reads("/api/session", session),
        reads("/images/{image}.jpg", lambda request: jpeg_response(source.read(image_of(request)).jpeg)),
        bodies.writes("/api/address", address),
    ]


def team_app(routes: Sequence[Route], team: Team) -> Starlette:
    """Build an application for the browsers of a team."""
    return Starlette(routes=routes, middleware=[Middleware(TeamGuard, team=team)], exception_handlers={**PROBLEMS})


def _conflict(_: Request, error: Exception) -> Response:
    details = error.details if isinstance(error, ConflictError) else {}
    return JSONResponse({"error": str(error), **details}, 409)


PROBLEMS: Mapping[Any, Callable[[Request, Exception], Response]] = MappingProxyType(
    {
        **SHARED_PROBLEMS,
        SubmissionError: problem(400),
        NotOwnerError: problem(403),
        ConflictError: _conflict,
        ImageGoneError: problem(410),
        RemovedImageError: problem(410),
        TooLargeError: problem(413),
        NotReadyError: problem(503),
    }
)
"""Responses to the errors that every annotation application raises."""


IDLE_S = 30
"""Seconds without input after which the page stops counting time."""

HINT_S = 30
"""Seconds on one mask after which the page suggests moving on, as in the SAM paper."""


@dataclass(frozen=True)
class SessionInfo:
    """Facts about a session, which the page shows to annotators and submissions record."""

    name: str
    key: str  # from `dataset_keys`; the browser stores drafts under it, because two datasets may share a name
    version: VersionName | None
    images: int
    stage: str
    weights: str
    weights_sha256: str
    overlap: float = 0.0
    study: str | None = None
    order: OutputOrder | None = None  # order of the outputs of the dataset's weights, if it was measured

    def to_dict(self) -> dict[str, Any]:
        digest = None if self.version is None else str(self.version)
        return {
            "dataset": {"name": self.name, "key": self.key, "digest": digest, "images": self.images},
            "stage": self.stage,
            "weights": self.weights,
            "overlap": self.overlap,
            "study": self.study,
            "output_order": None if self.order is None else asdict(self.order),
            "idle_s": IDLE_S,
            "hint_s": HINT_S,
        }
