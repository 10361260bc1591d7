"""Requests of the annotators' pages: size limits for bodies, handlers in threads, errors as JSON, and shared routes."""

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from segmint.catalogs.dataset.annotations.saved import RemovedImageError
from segmint.catalogs.dataset.annotations.submissions import SubmissionError, check_name
from segmint.infra.errors import UsageError
from segmint.pipeline.engine.annotate.access import NotOwnerError, Team
from segmint.pipeline.engine.annotate.source import ConflictError, ImageGoneError, ImageSource, NotReadyError
from segmint.pipeline.serving.responses import PROBLEMS as SHARED_PROBLEMS
from segmint.pipeline.serving.responses import image_of, jpeg_response, json_response, page_routes, problem

SMALL_BYTES = 64 << 10
"""Size limit in bytes of request bodies with only a few fields."""

PROMPT_BYTES = 4 << 20
"""Size limit in bytes of prompts, which may contain a mask."""

_DIGITS = 9
_LARGE = 1 << 20
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
                if size <= _LARGE < size + len(part):
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

    if len(body) > _LARGE and sum(map(body.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        raise UsageError(f"the request has more than {_MOST_VALUES:,} values")
    try:
        value = json.loads(body.decode(), parse_constant=refuse) if body else {}
        if _SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the request is not JSON: {str(error)[:200]!a}") from error
    return value


def field(body: Any, name: str, kind: Any) -> Any:
    """Return a field of a body. Raises `UsageError` if it has another type."""
    value = body.get(name) if isinstance(body, dict) else None
    if not isinstance(body, dict) or isinstance(value, bool) or not isinstance(value, kind):
        raise UsageError(f"{name}: expected {getattr(kind, '__name__', 'a number')}")
    return value


def number_in(request: Request, name: str) -> int:
    """Parse a part of the path as a number. Raises `UsageError` if it isn't one."""
    text: str = request.path_params[name]
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS):
        raise UsageError(f"{name}: expected a whole number of at most {_DIGITS} digits")
    return int(text)


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
        name = check_name(field(body, "annotator", str))
        return {"annotator": name, "address": team.address(name)}

    return [
        *page_routes(page),
        reads("/api/session", session),
        reads("/images/{image}.jpg", lambda request: jpeg_response(source.read(image_of(request)).jpeg)),
        bodies.writes("/api/address", address),
    ]


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
