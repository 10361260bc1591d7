"""Requests of the annotators' pages: bodies within a limit, answers in threads, and errors as JSON."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from types import MappingProxyType
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from segmint.catalogs.dataset.annotations.saved import RemovedImageError
from segmint.catalogs.dataset.annotations.submissions import SubmissionError
from segmint.infra.errors import UsageError
from segmint.pipeline.engine.annotate.access import NotOwnerError, Team, check_name
from segmint.pipeline.engine.annotate.source import ImageGoneError, NotReadyError
from segmint.pipeline.serving.responses import PROBLEMS as SHARED_PROBLEMS
from segmint.pipeline.serving.responses import json_response, problem

SMALL_BYTES = 64 << 10
"""The limit of bodies that have only a few fields."""

PROMPT_BYTES = 4 << 20
"""The limit of prompts, which may have a mask."""

_DIGITS = 9
_LARGE = 1 << 20
_MOST_VALUES = 4_000_000
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

Answering = Callable[[Request], Awaitable[Response]]


class TooLargeError(Exception):
    """A request's body is over the limit."""


def reads(answer: Callable[[Request], Response]) -> Answering:
    """Return an endpoint that reads: `answer` runs in a thread."""

    async def run(request: Request) -> Response:
        return await run_in_threadpool(answer, request)

    return run


class RequestBodies:
    """The bodies of an application's writes, in bounded memory.

    Each endpoint has a limit. Of the bodies over 1 MiB as many as `at_once` are read and answered at a time, as JSON
    takes many times its size; the others wait. One that stops arriving for `patience_s` seconds is refused, and so is
    one that takes so much longer than at `slowest` bytes a second: else it could hold its place for ever.
    """

    def __init__(self, at_once: int = 2, patience_s: float = 30.0, slowest: float = 40_000.0) -> None:
        self._large = asyncio.Semaphore(at_once)
        self._patience_s = patience_s
        self._slowest = slowest

    def writes(self, answer: Callable[[Request, Any], Response], most: int = SMALL_BYTES) -> Answering:
        """Return an endpoint that takes a JSON body of at most `most` bytes: `answer` gets it, and runs in a thread."""

        async def run(request: Request) -> Response:
            async with AsyncExitStack() as stack:
                body = await self._read(request, most, stack)
                return await run_in_threadpool(lambda: answer(request, _parsed(body)))

        return run

    async def _read(self, request: Request, most: int, stack: AsyncExitStack) -> bytes:
        """Return a body; raises `TooLargeError` as soon as it is over the limit, whatever it says of itself."""
        problem = TooLargeError(f"this request has at most {most:,} bytes")
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
            raise UsageError(f"the request stopped for {self._patience_s:g} seconds, or came too slowly") from error


def _parsed(body: bytes) -> Any:
    """Return a body's JSON, {} for an empty one.

    Raises `UsageError` for anything else, for NaN and infinities, for halves of surrogate pairs, and for more values
    than any answer has.
    """

    def refuse(text: str) -> float:
        raise ValueError(f"{text} is no number in JSON")

    if len(body) > _LARGE and sum(map(body.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        raise UsageError(f"the request has over {_MOST_VALUES:,} values")
    try:
        value = json.loads(body.decode(), parse_constant=refuse) if body else {}
        if _SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the request is not JSON: {str(error)[:200]!a}") from error
    return value


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


def give_address(team: Team, body: Any, annotator: str) -> Response:
    """Answer with a new address for whom a body names; raises `NotOwnerError` unless the owner asks."""
    if annotator != team.owner:
        raise NotOwnerError("only who started the server gives addresses")
    name = check_name(field(body, "annotator", str))
    return json_response({"annotator": name, "address": team.address(name)})


PROBLEMS: Mapping[Any, Callable[[Request, Exception], Response]] = MappingProxyType(
    {
        **SHARED_PROBLEMS,
        SubmissionError: problem(400),
        NotOwnerError: problem(403),
        ImageGoneError: problem(410),
        RemovedImageError: problem(410),
        TooLargeError: problem(413),
        NotReadyError: problem(503),
    }
)
"""The answers to errors that every application of annotators has."""
