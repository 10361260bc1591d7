"""Web application of annotators: its pages and its JSON API. URLs identify images by id only.

```
GET  /                               the page; /assets/… its scripts and styles
GET  /api/session                    the annotator and the session
POST /api/next                       the next image of the queue
GET  /api/find?image={text}          an image by its image_id or number
GET  /api/images/{id}                an image's row, masks, and last submission
GET  /images/{id}.jpg
POST /api/images/{id}/embed          compute its embedding
POST /api/images/{id}/predict        masks for a prompt
POST /api/images/{id}/clean          a mask without small specks and holes
PUT  /api/images/{id}/submissions/{n}    save a submission
POST /api/images/{id}/release        release its lease
GET  /api/progress                   the progress so far
POST /api/address                    a new URL for an annotator, by the owner
GET  /api/table                      the images with their states and annotators, for the owner
GET  /api/images/{id}/assignments/{assignment}    its last submission, for the owner
POST /api/images/{id}/assignments/{assignment}    return that to the annotator, by the owner
```
"""

from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from segmint.catalogs.dataset.annotations.submissions import MOST_BYTES
from segmint.infra.errors import UsageError
from segmint.pipeline.engine.annotate.access import Team, TeamGuard
from segmint.pipeline.engine.annotate.annotator_view import AnnotatorView, SaveConflictError
from segmint.pipeline.engine.annotate.owner_view import OwnerView, ReturnConflictError
from segmint.pipeline.engine.annotate.requests import PROBLEMS, PROMPT_BYTES, RequestBodies, field, give_address, reads
from segmint.pipeline.serving.responses import image_of, jpeg_response, json_response, page_routes, problem

ASSETS = Path(__file__).parent / "assets"


def make_app(annotator_view: AnnotatorView, team: Team) -> Starlette:
    """Return the application that serves an annotator view to the browsers of a team."""

    def session(_: Any, annotator: str) -> Response:
        about = {"annotator": annotator, "owner": annotator == team.owner, **annotator_view.about.to_dict()}
        return json_response(about)

    def following(body: Any, annotator: str) -> Response:
        after = field(body, "after", int | None)
        if after is not None and not 1 <= after < 1 << 53:
            raise UsageError("after: expected the id of an image")
        return json_response(annotator_view.next(annotator, after))

    def find(text: str) -> Response:
        return json_response({"image": annotator_view.source.find(text)})

    def save(image: int, n: int, body: Any, annotator: str) -> Response:
        return json_response({"n": annotator_view.save(image, annotator, n, body).n}, 201)

    def embed(image: int, annotator: str) -> Response:
        annotator_view.embed(image, annotator)
        return Response(status_code=204)

    def clean(image: int, body: Any, annotator: str) -> Response:
        return json_response({"counts": annotator_view.clean(image, annotator, field(body, "counts", str))})

    def release(image: int, annotator: str) -> Response:
        annotator_view.release(image, annotator)
        return Response(status_code=204)

    def jpeg(image: int) -> Response:
        return jpeg_response(annotator_view.source.read(image).jpeg)

    def assigned(request: Request, body: Any = None) -> Response:
        if request.path_params["assignment"] not in ("0", "1"):
            raise UsageError("assignment: expected 0 or 1")
        asked = request.state.annotator, image_of(request), int(request.path_params["assignment"])
        read = request.method in ("GET", "HEAD")
        return json_response(owner_view.submission(*asked) if read else owner_view.give_back(*asked, body))

    owner_view = OwnerView(annotator_view, team.owner)
    of = image_of
    writes = RequestBodies().writes
    routes = [
        *page_routes(ASSETS / "index.html"),
        Route("/api/session", reads(lambda request: session(None, request.state.annotator))),
        Route("/api/next", writes(lambda r, body: following(body, r.state.annotator)), methods=["POST"]),
        Route("/api/find", reads(lambda request: find(request.query_params.get("image", "")))),
        Route("/api/images/{image}", reads(lambda r: json_response(annotator_view.open(of(r), r.state.annotator)))),
        Route("/images/{image}.jpg", reads(lambda request: jpeg(of(request)))),
        Route("/api/images/{image}/embed", writes(lambda r, _: embed(of(r), r.state.annotator)), methods=["POST"]),
        Route(
            "/api/images/{image}/predict",
            writes(
                lambda r, body: json_response(annotator_view.predict(of(r), r.state.annotator, body).to_dict()),
                PROMPT_BYTES,
            ),
            methods=["POST"],
        ),
        Route(
            "/api/images/{image}/clean",
            writes(lambda r, body: clean(of(r), body, r.state.annotator), PROMPT_BYTES),
            methods=["POST"],
        ),
        Route(
            "/api/images/{image}/submissions/{n}",
            writes(lambda r, body: save(of(r), _submission_number(r), body, r.state.annotator), MOST_BYTES),
            methods=["PUT"],
        ),
        Route("/api/images/{image}/release", writes(lambda r, _: release(of(r), r.state.annotator)), methods=["POST"]),
        Route("/api/progress", reads(lambda _: json_response(annotator_view.progress(team.annotators)))),
        Route("/api/address", writes(lambda r, body: give_address(team, body, r.state.annotator)), methods=["POST"]),
        Route("/api/table", reads(lambda r: json_response(owner_view.table(r.state.annotator, r.query_params)))),
        Route("/api/images/{image}/assignments/{assignment}", reads(assigned)),
        Route("/api/images/{image}/assignments/{assignment}", writes(assigned), methods=["POST"]),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(TeamGuard, team=team)],
        exception_handlers={**PROBLEMS, SaveConflictError: _save_conflict, ReturnConflictError: problem(409)},
    )


def _submission_number(request: Request) -> int:
    text: str = request.path_params["n"]
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UsageError("submissions: expected a number from 1")
    return int(text)


def _save_conflict(_: Request, error: Exception) -> Response:
    if not isinstance(error, SaveConflictError):
        raise error
    winner = None if error.winner is None else error.winner.model_dump(mode="json")
    return JSONResponse({"error": str(error), "winner": winner, "base": error.base}, 409)
