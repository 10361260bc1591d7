"""Web application of raters. URLs identify masks by their index in the rater's order, which reveals nothing about them.

```
GET  /                      the page; /assets/… its scripts and styles
GET  /api/session           the rater and the session
POST /api/rate/next         the next unrated mask
GET  /api/rate/{item}       a mask
PUT  /api/rate/{item}/{n}   save the n-th rating of a mask, {score, seconds}; a null score withdraws the last one
GET  /images/{id}.jpg       its image
POST /api/address           a new URL for a rater, by the owner
```
"""

from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from segmint.pipeline.engine.annotate.access import Team, TeamGuard
from segmint.pipeline.engine.annotate.app import ASSETS
from segmint.pipeline.engine.annotate.rating.rater_view import RaterView, RatingConflictError
from segmint.pipeline.engine.annotate.requests import PROBLEMS, RequestBodies, give_address, number_in, reads
from segmint.pipeline.serving.responses import image_of, jpeg_response, json_response, page_routes


def make_rating_app(rater_view: RaterView, team: Team) -> Starlette:
    """Return the application that serves a rater view to the browsers of a team."""

    def session(rater: str) -> Response:
        return json_response({"annotator": rater, "owner": rater == team.owner, **rater_view.about.to_dict()})

    def following(rater: str) -> Response:
        return json_response(rater_view.next(rater))

    def save(rater: str, item: int, n: int, body: Any) -> Response:
        saved = rater_view.save(rater, item, n, body)
        return json_response({"n": saved.n, "next": rater_view.next(rater)}, 201)

    def jpeg(image: int) -> Response:
        return jpeg_response(rater_view.source.read(image).jpeg)

    writes = RequestBodies().writes
    routes = [
        *page_routes(ASSETS / "rate.html"),
        Route("/api/session", reads(lambda r: session(r.state.annotator))),
        Route("/api/rate/next", writes(lambda r, _: following(r.state.annotator)), methods=["POST"]),
        Route(
            "/api/rate/{item}",
            reads(lambda r: json_response(rater_view.show(r.state.annotator, number_in(r, "item")))),
        ),
        Route(
            "/api/rate/{item}/{n}",
            writes(lambda r, body: save(r.state.annotator, number_in(r, "item"), number_in(r, "n"), body)),
            methods=["PUT"],
        ),
        Route("/images/{image}.jpg", reads(lambda r: jpeg(image_of(r)))),
        Route("/api/address", writes(lambda r, body: give_address(team, body, r.state.annotator)), methods=["POST"]),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(TeamGuard, team=team)],
        exception_handlers={**PROBLEMS, RatingConflictError: _other},
    )


def _other(_: Request, error: Exception) -> Response:
    if not isinstance(error, RatingConflictError):
        raise error
    score = None if error.winner is None else error.winner.score
    return JSONResponse({"error": str(error), "score": score}, 409)
