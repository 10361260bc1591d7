"""The annotator's web application: its pages, and what they ask, as JSON. Addresses name images by id alone.

```
GET  /                               the page; /assets/… its scripts and styles, and the viewer's
GET  /api/session                    who works, on what
POST /api/next                       the next image of the queue
GET  /api/images/{id}                an image's row, masks and last answer
GET  /images/{id}.jpg, /thumbnails/{id}.jpg
POST /api/images/{id}/embed          make its embedding
POST /api/images/{id}/predict        masks for a prompt
PUT  /api/images/{id}/answers/{n}    save an answer
POST /api/images/{id}/release        give it back
GET  /api/progress                   what has been done
POST /api/address                    a new address for an annotator, by the owner
```
"""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from segmint.catalogs.dataset.annotations.answers import MOST_BYTES, AnswerError, TakenDownError
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.storage.errors import StorageFaultError
from segmint.pipeline.annotate.access import Gate, NotOwnerError, Team, check_name
from segmint.pipeline.annotate.desk import Desk, LostRaceError
from segmint.pipeline.annotate.source import GoneError
from segmint.pipeline.view import app as view
from segmint.pipeline.view.images import NoPictureError, Thumbnails
from segmint.pipeline.view.index import UnknownImageError

ASSETS = Path(__file__).parent / "assets"

Answering = Callable[[Request], Awaitable[Response]]


class TooLargeError(Exception):
    """A request's body is over the limit."""


def make_app(desk: Desk, team: Team, thumbnails: Thumbnails) -> Starlette:
    """Return the application of a desk that serves the browsers of a team."""

    def session(_: Any, annotator: str) -> Response:
        about = {"annotator": annotator, "owner": annotator == team.owner, **desk.about.to_dict()}
        return view.json_response(about)

    def address(body: Any, annotator: str) -> Response:
        if annotator != team.owner:
            raise NotOwnerError("only who started the server gives addresses")
        name = check_name(_field(body, "annotator", str))
        return view.json_response({"annotator": name, "address": team.address(name)})

    def following(body: Any, annotator: str) -> Response:
        after = _field(body, "after", int | None)
        if after is not None and not 1 <= after < 1 << 53:
            raise UsageError("after: expected the id of an image")
        return view.json_response(desk.next(annotator, after))

    def save(image: int, n: int, body: Any, annotator: str) -> Response:
        return view.json_response({"n": desk.save(image, annotator, n, body).n}, 201)

    def embed(image: int, annotator: str) -> Response:
        desk.embed(image, annotator)
        return Response(status_code=204)

    def release(image: int, annotator: str) -> Response:
        desk.release(image, annotator)
        return Response(status_code=204)

    def jpeg(image: int) -> Response:
        return view.jpeg_response(desk.source.read(image).jpeg)

    def thumbnail(image: int) -> Response:
        return view.jpeg_response(thumbnails.jpeg(desk.source.read(image).place))

    of = view.image_of
    routes = [
        Route("/", view.asset(ASSETS / "index.html")),
        *(Route(f"/assets/{name}", view.asset(path)) for name, path in assets().items()),
        Route("/api/session", _reads(lambda request: session(None, request.state.annotator))),
        Route("/api/next", _writes(lambda r, body: following(body, r.state.annotator)), methods=["POST"]),
        Route("/api/images/{image}", _reads(lambda r: view.json_response(desk.open(of(r), r.state.annotator)))),
        Route("/images/{image}.jpg", _reads(lambda request: jpeg(of(request)))),
        Route("/thumbnails/{image}.jpg", _reads(lambda request: thumbnail(of(request)))),
        Route("/api/images/{image}/embed", _writes(lambda r, _: embed(of(r), r.state.annotator)), methods=["POST"]),
        Route(
            "/api/images/{image}/predict",
            _writes(lambda r, body: view.json_response(desk.predict(of(r), r.state.annotator, body).to_dict())),
            methods=["POST"],
        ),
        Route(
            "/api/images/{image}/answers/{n}",
            _writes(lambda r, body: save(of(r), _answer_number(r), body, r.state.annotator)),
            methods=["PUT"],
        ),
        Route("/api/images/{image}/release", _writes(lambda r, _: release(of(r), r.state.annotator)), methods=["POST"]),
        Route("/api/progress", _reads(lambda _: view.json_response(desk.progress(team.annotators)))),
        Route("/api/address", _writes(lambda r, body: address(body, r.state.annotator)), methods=["POST"]),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Gate, team=team)],
        exception_handlers={
            UsageError: view.problem(400),
            AnswerError: view.problem(400),
            NotOwnerError: view.problem(403),
            UnknownImageError: view.problem(404),
            NoPictureError: view.problem(404),
            LostRaceError: _lost_race,
            GoneError: view.problem(410),
            TakenDownError: view.problem(410),
            TooLargeError: view.problem(413),
            HTTPException: view.http_problem,
            StorageFaultError: view.problem(502),
            SegmintError: view.problem(500),
        },
    )


def assets() -> dict[str, Path]:
    """Return the files below /assets/ by name: the annotator's, and those of the viewer that it does not have."""
    found = [*sorted(view.ASSETS.iterdir()), *sorted(ASSETS.iterdir())]
    return {path.name: path for path in found if path.suffix in view.TYPES}


def _reads(answer: Callable[[Request], Response]) -> Answering:
    async def run(request: Request) -> Response:
        return await run_in_threadpool(answer, request)

    return run


def _writes(answer: Callable[[Request, Any], Response]) -> Answering:
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


def _field(body: Any, name: str, kind: Any) -> Any:
    value = body.get(name) if isinstance(body, dict) else None
    if not isinstance(body, dict) or isinstance(value, bool) or not isinstance(value, kind):
        raise UsageError(f"{name}: expected {getattr(kind, '__name__', 'a number')}")
    return value


def _answer_number(request: Request) -> int:
    text: str = request.path_params["n"]
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UsageError("answers: expected a number from 1")
    return int(text)


def _lost_race(_: Request, error: Exception) -> Response:
    if not isinstance(error, LostRaceError):
        raise error
    winner = None if error.winner is None else error.winner.model_dump(mode="json")
    return JSONResponse({"error": str(error), "winner": winner, "base": error.base}, 409)
