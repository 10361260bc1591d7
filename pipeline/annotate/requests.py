"""Requests of the annotators' pages: bodies within a limit, answers in threads, and errors as JSON."""

import json
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from segmint.catalogs.dataset.annotations.answers import MOST_BYTES, AnswerError
from segmint.catalogs.dataset.annotations.saved import TakenDownError
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.storage.errors import StorageFaultError
from segmint.pipeline.annotate.access import NotOwnerError
from segmint.pipeline.annotate.source import GoneError
from segmint.pipeline.view import app as view
from segmint.pipeline.view.images import NoPictureError
from segmint.pipeline.view.index import UnknownImageError

_DIGITS = 9

Answering = Callable[[Request], Awaitable[Response]]


class TooLargeError(Exception):
    """A request's body is over the limit."""


def reads(answer: Callable[[Request], Response]) -> Answering:
    """Return an endpoint that reads: `answer` runs in a thread."""

    async def run(request: Request) -> Response:
        return await run_in_threadpool(answer, request)

    return run


def writes(answer: Callable[[Request, Any], Response]) -> Answering:
    """Return an endpoint that takes a JSON body: `answer` gets it, and runs in a thread."""

    async def run(request: Request) -> Response:
        body = await _body(request)
        return await run_in_threadpool(lambda: answer(request, _parsed(body)))

    return run


async def _body(request: Request) -> bytes:
    """Return a request's body; raises `TooLargeError` as soon as it is over the limit, whatever it says of itself."""
    problem = TooLargeError(f"a request has at most {MOST_BYTES:,} bytes")
    said = request.headers.get("content-length", "0")
    if not (said.isascii() and said.isdecimal()) or int(said[:20]) > MOST_BYTES:
        raise problem
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > MOST_BYTES:
                raise problem
            parts.append(part)
    except ClientDisconnect as error:
        raise UsageError("the request ended early") from error
    return b"".join(parts)


def _parsed(body: bytes) -> Any:
    """Return a body's JSON, {} for an empty one; raises `UsageError` for anything else, and for NaN and infinities."""

    def refuse(text: str) -> float:
        raise ValueError(f"{text} is no number in JSON")

    try:
        return json.loads(body, parse_constant=refuse) if body else {}
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the request is not JSON: {str(error)[:200]}") from error


def field(body: Any, name: str, kind: Any) -> Any:
    """Return a field of a body; raises `UsageError` if it is of another kind."""
    value = body.get(name) if isinstance(body, dict) else None
    if not isinstance(body, dict) or isinstance(value, bool) or not isinstance(value, kind):
        raise UsageError(f"{name}: expected {getattr(kind, '__name__', 'a number')}")
    return value


def number_in(request: Request, name: str) -> int:
    """Return the number in a part of an address; raises `UsageError` for anything else."""
    text: str = request.path_params[name]
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS):
        raise UsageError(f"{name}: expected a whole number of at most {_DIGITS} digits")
    return int(text)


PROBLEMS: Mapping[Any, Callable[[Request, Exception], Response]] = MappingProxyType(
    {
        UsageError: view.problem(400),
        AnswerError: view.problem(400),
        NotOwnerError: view.problem(403),
        UnknownImageError: view.problem(404),
        NoPictureError: view.problem(404),
        GoneError: view.problem(410),
        TakenDownError: view.problem(410),
        TooLargeError: view.problem(413),
        HTTPException: view.http_problem,
        StorageFaultError: view.problem(502),
        SegmintError: view.problem(500),
    }
)
"""The answers to errors that every application of annotators has."""
