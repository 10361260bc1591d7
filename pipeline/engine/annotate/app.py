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
POST /api/address                    create a URL for an annotator (owner only)
GET  /api/table                      the images with their states and annotators (owner only)
GET  /api/images/{id}/assignments/{assignment}    its last submission (owner only)
POST /api/images/{id}/assignments/{assignment}    return the submission to its annotator (owner only)
```
"""

from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from segmint.catalogs.dataset.annotations.submissions import MOST_BYTES
from segmint.infra.errors import UsageError
from segmint.pipeline.engine.annotate.access import Team, TeamGuard
from segmint.pipeline.engine.annotate.annotator_view import AnnotatorView
from segmint.pipeline.engine.annotate.owner_view import OwnerView
from segmint.pipeline.engine.annotate.requests import (
    PROBLEMS,
    PROMPT_BYTES,
    RequestBodies,
    check_owner,
    field,
    number_in,
    reads,
    team_routes,
)
from segmint.pipeline.serving.responses import image_of, json_response

ASSETS = Path(__file__).parent / "assets"


def make_app(view: AnnotatorView, team: Team) -> Starlette:
    """Build the application that serves an annotator view to the browsers of a team."""

    def of(request: Request) -> tuple[int, str]:
        return image_of(request), request.state.annotator

    def following(request: Request, body: Any) -> Any:
        after = field(body, "after", int | None)
        if after is not None and not 1 <= after < 1 << 53:
            raise UsageError("after: expected the id of an image")
        return view.next(request.state.annotator, after)

    def save(request: Request, body: Any) -> Response:
        return json_response({"n": view.save(*of(request), number_in(request, "n"), body).n}, 201)

    def table(request: Request) -> Any:
        check_owner(request, team)
        return owner_view.table(request.query_params)

    def assigned(request: Request) -> tuple[int, int]:
        check_owner(request, team)
        return image_of(request), number_in(request, "assignment")

    owner_view = OwnerView(view, team.owner)
    bodies = RequestBodies()
    image, assignment = "/api/images/{image}", "/api/images/{image}/assignments/{assignment}"
    routes = [
        *team_routes(ASSETS / "index.html", team, lambda: view.about.to_dict(), view.source, bodies),
        bodies.writes("/api/next", following),
        reads("/api/find", lambda r: {"image": view.source.find(r.query_params.get("image", ""))}),
        reads(image, lambda r: view.open(*of(r))),
        bodies.writes(f"{image}/embed", lambda r, _: view.embed(*of(r))),
        bodies.writes(f"{image}/predict", lambda r, body: view.predict(*of(r), body).to_dict(), PROMPT_BYTES),
        bodies.writes(
            f"{image}/clean", lambda r, body: {"counts": view.clean(*of(r), field(body, "counts", str))}, PROMPT_BYTES
        ),
        bodies.writes(f"{image}/submissions/{{n}}", save, MOST_BYTES, "PUT"),
        bodies.writes(f"{image}/release", lambda r, _: view.leases.release(*of(r))),
        reads("/api/progress", lambda _: view.progress(team.annotators)),
        reads("/api/table", table),
        reads(assignment, lambda r: owner_view.submission(*assigned(r))),
        bodies.writes(assignment, lambda r, body: owner_view.give_back(*assigned(r), body)),
    ]
    return Starlette(routes=routes, middleware=[Middleware(TeamGuard, team=team)], exception_handlers={**PROBLEMS})
