"""The web application of raters. Addresses name masks by their places in the rater's order, which say nothing of them.

```
GET  /                      the page; /assets/… its scripts and styles
GET  /api/session           who rates, and what
POST /api/rate/next         the next mask that is not rated
GET  /api/rate/{item}       a mask
PUT  /api/rate/{item}/{n}   save the n-th rating of a mask, {score, seconds}; the score null takes the last one back
GET  /images/{id}.jpg       its picture
POST /api/address           a new address for a rater, by the owner
```
"""

from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from segmint.pipeline.engine.annotate.access import Gate, NotOwnerError, Team, check_name
from segmint.pipeline.engine.annotate.app import ASSETS, assets
from segmint.pipeline.engine.annotate.rating.desk import OtherRatingError, RatingDesk
from segmint.pipeline.engine.annotate.requests import PROBLEMS, Bodies, field, number_in, reads
from segmint.pipeline.quality.view import app as view


def make_rating_app(desk: RatingDesk, team: Team) -> Starlette:
    """Return the application of a desk that serves the browsers of a team."""

    def session(rater: str) -> Response:
        return view.json_response({"annotator": rater, "owner": rater == team.owner, **desk.about.to_dict()})

    def following(rater: str) -> Response:
        return view.json_response(desk.next(rater))

    def save(rater: str, item: int, n: int, body: Any) -> Response:
        saved = desk.save(rater, item, n, body)
        return view.json_response({"n": saved.n, "next": desk.next(rater)}, 201)

    def jpeg(image: int) -> Response:
        return view.jpeg_response(desk.source.read(image).jpeg)

    def address(body: Any, rater: str) -> Response:
        if rater != team.owner:
            raise NotOwnerError("only who started the server gives addresses")
        name = check_name(field(body, "annotator", str))
        return view.json_response({"annotator": name, "address": team.address(name)})

    writes = Bodies().writes
    routes = [
        Route("/", view.asset(ASSETS / "rate.html")),
        *(Route(f"/assets/{name}", view.asset(path)) for name, path in assets().items()),
        Route("/api/session", reads(lambda r: session(r.state.annotator))),
        Route("/api/rate/next", writes(lambda r, _: following(r.state.annotator)), methods=["POST"]),
        Route(
            "/api/rate/{item}",
            reads(lambda r: view.json_response(desk.show(r.state.annotator, number_in(r, "item")))),
        ),
        Route(
            "/api/rate/{item}/{n}",
            writes(lambda r, body: save(r.state.annotator, number_in(r, "item"), number_in(r, "n"), body)),
            methods=["PUT"],
        ),
        Route("/images/{image}.jpg", reads(lambda r: jpeg(view.image_of(r)))),
        Route("/api/address", writes(lambda r, body: address(body, r.state.annotator)), methods=["POST"]),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Gate, team=team)],
        exception_handlers={**PROBLEMS, OtherRatingError: _other},
    )


def _other(_: Request, error: Exception) -> Response:
    if not isinstance(error, OtherRatingError):
        raise error
    score = None if error.winner is None else error.winner.score
    return JSONResponse({"error": str(error), "score": score}, 409)
