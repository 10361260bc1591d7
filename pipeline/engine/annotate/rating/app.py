"""Web application of raters. URLs identify masks by their index in the rater's order, which reveals nothing about them.

```
GET  /                      the page; /assets/… its scripts and styles
GET  /api/session           the rater and the session
POST /api/rate/next         the next unrated mask
GET  /api/rate/{item}       a mask
PUT  /api/rate/{item}/{n}   save the n-th rating of a mask, {score, seconds}; a null score withdraws the last one
GET  /images/{id}.jpg       its image
POST /api/address           create a URL for a rater (owner only)
```
"""

from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from segmint.pipeline.engine.annotate.access import Team, TeamGuard
from segmint.pipeline.engine.annotate.app import ASSETS
from segmint.pipeline.engine.annotate.rating.rater_view import RaterView
from segmint.pipeline.engine.annotate.requests import PROBLEMS, RequestBodies, number_in, reads, team_routes
from segmint.pipeline.serving.responses import json_response


def make_rating_app(view: RaterView, team: Team) -> Starlette:
    """Build the application that serves a rater view to the browsers of a team."""

    def save(request: Request, body: Any) -> Response:
        rater = request.state.annotator
        saved = view.save(rater, number_in(request, "item"), number_in(request, "n"), body)
        return json_response({"n": saved.n, "next": view.next(rater)}, 201)

    bodies = RequestBodies()
    routes = [
        *team_routes(ASSETS / "rate.html", team, lambda: view.about.to_dict(), view.source, bodies),
        bodies.writes("/api/rate/next", lambda r, _: view.next(r.state.annotator)),
        reads("/api/rate/{item}", lambda r: view.show(r.state.annotator, number_in(r, "item"))),
        bodies.writes("/api/rate/{item}/{n}", save, method="PUT"),
    ]
    return Starlette(routes=routes, middleware=[Middleware(TeamGuard, team=team)], exception_handlers={**PROBLEMS})
