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

Server-side view of the owner, who leads the annotators: a table of all images, their submissions, and returns.

The annotators' server, which opens a dataset and a model and listens on 127.0.0.1 until it is interrupted.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from segmint.catalogs.dataset.manifest import DatasetManifest, dataset_keys, load_manifest
from segmint.catalogs.dataset.submissions import (
    MOST_BYTES,
    Return,
    is_merged,
    merged_assignment,
    put_return,
    read_return,
)
from segmint.catalogs.dataset.versions import name_now
from segmint.catalogs.layout import wrong_fields
from segmint.infra.arrays import Bools
from segmint.infra.assets import AssetError, resolve, sha256_of
from segmint.infra.device import resolve_compute
from segmint.infra.errors import UsageError
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.operators.images import JpegDecoder
from segmint.operators.rows import Row
from segmint.operators.segment.models import load_model
from segmint.pipeline.engine.annotate.annotator_view import AnnotatorView, MaskFiles
from segmint.pipeline.engine.annotate.decoder import Decoder, Embeddings, PredictorThread
from segmint.pipeline.engine.annotate.prefill import ObjectFinder, PrefillCache, mask_settings
from segmint.pipeline.engine.annotate.queue import LatestSubmission, ProgressBoard, QueueOptions, make_queue
from segmint.pipeline.engine.annotate.requests import (
    PROMPT_BYTES,
    RequestBodies,
    ServerOrigin,
    SessionInfo,
    Team,
    check_owner,
    form_field,
    number_in,
    reads,
    team_app,
    team_routes,
)
from segmint.pipeline.engine.annotate.source import ConflictError, ImageSource, check_images
from segmint.pipeline.quality.statistics.masks import open_tables
from segmint.pipeline.serving.images import MEASURED, ImagePlaces
from segmint.pipeline.serving.responses import image_of, json_response, listen, run_app

OPEN, STARTED, SUBMITTED, RETURNED, MERGED = STATES = "open", "in progress", "submitted", "returned", "merged"
FLAGGED = "flagged"
ROWS = 100  # maximum number of rows in a response
LEAST = 10  # minimum number of submissions to estimate the remaining time

_SAVED_AGAIN = "this image was saved again in the meantime. Look at the new submission first"


@dataclass(frozen=True)
class OwnerView:
    """Table of a server's images for its `owner`. Thread-safe."""

    view: AnnotatorView
    owner: str

    def table(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """Return a page of the table, which starts at the rank `start` in the queue, and counts over the whole table.

        `asked` can also filter the rows: `show` is a state or `flagged`, and `person` is an annotator.
        """
        show, person, start = asked.get("show"), asked.get("person"), asked.get("start", "0")
        if show not in (None, FLAGGED, *STATES) or not (start.isascii() and start.isdecimal() and len(start) < 16):
            raise UsageError("table: expected a state to show and a number to start with")
        if start == "0":
            self.view.find_merges()
        waiting = self.view.waiting()
        rows: list[Row] = []
        rank = int(start)
        while rank < len(self.view.queue) and len(rows) < ROWS:
            found = self._rows(rank, waits=bool(waiting[rank]))
            shown = (row for row in found if show in (None, row["state"], FLAGGED if row["flag"] else None))
            rows += (row for row in shown if person in (None, row["annotator"]))
            rank += 1
        following = rank if rank < len(self.view.queue) else None
        return {"rows": rows, "next": following, **self._counts(waiting)}

    def submission(self, image: int, assignment: int) -> dict[str, Any]:
        """Return an image with the last submission of an assignment. Raises `UsageError` if there is none."""
        found = self.view.source.read(image)
        last = self._last(image, assignment)
        submission = self.view.board.submission(found, assignment)
        return {
            **self._row(image, last),
            "size": list(found.size),
            "masks": list(found.masks),
            "submission": None if submission is None else submission.model_dump(mode="json"),
        }

    def give_back(self, image: int, assignment: int, body: Any) -> dict[str, Any]:
        """Return submission `n` of an assignment to its annotator, with a `comment`. Responds like `submission`.

        Raises `UsageError` if the comment is invalid or the submission doesn't exist. Raises `ConflictError` if a later
        submission exists, or if this one was merged or already returned with another comment.
        """
        n, comment = form_field(body, "n", int), form_field(body, "comment", str)
        found, last = self.view.source.read(image), self._last(image, assignment)
        if last.name.n != n:
            raise ConflictError(_SAVED_AGAIN)
        merged = found.row.get("submission")
        if is_merged(merged, assignment, n) or merged_assignment(merged) not in (None, assignment):
            raise ConflictError("this image already has a merged submission, so this one can't be returned")
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        said = {"n": n, "by": self.owner, "comment": comment, "saved_at": now}
        try:
            returned = Return.model_validate({"image": image, "assignment": assignment, **said})
        except ValidationError as error:
            raise UsageError(f"this comment can't be used: {wrong_fields(error)}") from error
        if not put_return(self.view.dataset, returned):
            other = read_return(self.view.dataset, returned.name)
            if (other.by, other.comment) != (self.owner, comment):  # otherwise, the first response was lost
                raise ConflictError(f"{other.by} has already returned this submission: {other.comment}")
        if self._last(image, assignment).name.n != n:
            raise ConflictError(_SAVED_AGAIN)
        return self.submission(image, assignment)

    def _last(self, image: int, assignment: int) -> LatestSubmission:
        last = self.view.board.refresh(image).get(assignment)
        if last is None or last.annotator is None:
            raise UsageError(f"image {image} has no readable submission of assignment {assignment}")
        return last

    def _rows(self, rank: int, *, waits: bool) -> Iterator[Row]:
        image = int(self.view.queue.ids[rank])
        done = self.view.board.assignments(image)
        for assignment in range(self.view.queue.assignments(image)):
            if assignment in done:
                yield self._row(image, done[assignment])
            elif waits:
                holder = self.view.leases.holder((image, assignment))
                state = OPEN if holder is None else STARTED
                row = {"image": image, "name": self.view.source.places.name(image), "assignment": assignment}
                yield {**row, "state": state, "annotator": holder, "flag": False}

    def _row(self, image: int, last: LatestSubmission) -> dict[str, Any]:
        returned = None if last.returned is None else last.returned.model_dump(mode="json")
        state = {"state": self._state(image, last), "returned": returned}
        of_image = {"image": image, "name": self.view.source.places.name(image)}
        return {**vars(last), **of_image, "assignment": last.name.assignment, "n": last.name.n, **state}

    def _state(self, image: int, last: LatestSubmission) -> str:
        if last.returned is not None:
            return RETURNED
        merged = self.view.queue.merged.get(image)
        return MERGED if is_merged(merged, last.name.assignment, last.name.n) else SUBMITTED

    def _counts(self, waiting: Bools) -> dict[str, Any]:
        """Count the submissions and the assignments that still need one, and average the seconds per submission."""
        queue, board = self.view.queue, self.view.board
        ranks = {image: rank for image in board.answered() if (rank := queue.rank(image)) is not None}
        last = [(image, each) for image in ranks for each in board.assignments(image).values()]
        counts = Counter(self._state(image, each) for image, each in last)
        left = int((1 + queue.twice.astype(np.int64))[waiting].sum()) + counts[RETURNED]
        timed = [each.seconds for _, each in last if each.seconds > 0]
        return {
            "counts": {**counts, FLAGGED: sum(each.flag for _, each in last)},
            "annotators": sorted({each.annotator for _, each in last if each.annotator is not None}),
            "left": left - sum(bool(waiting[ranks[image]]) for image, _ in last),
            "timed": len(timed),
            "seconds": sum(timed) / len(timed) if len(timed) >= LEAST else None,
        }


ASSETS = Path(__file__).parent / "assets"


def make_app(view: AnnotatorView, team: Team) -> Starlette:
    """Build the application that serves an annotator view to the browsers of a team."""

    def of(request: Request) -> tuple[int, str]:
        return image_of(request), request.state.annotator

    def following(request: Request, body: Any) -> Any:
        after = form_field(body, "after", int | None)
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
            f"{image}/clean",
            lambda r, body: {"counts": view.clean(*of(r), form_field(body, "counts", str))},
            PROMPT_BYTES,
        ),
        bodies.writes(f"{image}/submissions/{{n}}", save, MOST_BYTES, "PUT"),
        bodies.writes(f"{image}/release", lambda r, _: view.leases.release(*of(r))),
        reads("/api/progress", lambda _: view.progress(team.annotators)),
        reads("/api/table", table),
        reads(assignment, lambda r: owner_view.submission(*assigned(r))),
        bodies.writes(assignment, lambda r, body: owner_view.give_back(*assigned(r), body)),
    ]
    return team_app(routes, team)


DEFAULT_WEIGHTS = "mobile_sam"


@dataclass(frozen=True)
class AnnotateOptions:
    """Options of an annotation session. By default, `weights` are the dataset's weights, if they can be found."""

    queue: QueueOptions = field(default_factory=QueueOptions)
    stage: str = "assisted"
    weights: str | None = None
    device: str = "auto"
    detector: str | None = None  # TorchScript file of an object detector, whose boxes prefill masks
    files: MaskFiles | None = None  # external files to which saved masks are also written


@dataclass(frozen=True)
class ServedView:
    """Annotator view that is ready to serve, with a note to print for the user."""

    annotator_view: AnnotatorView
    note: str | None = None


@contextmanager
def open_view(dataset: Location, options: AnnotateOptions) -> Iterator[ServedView]:
    """Open a dataset for annotation. Deletes scratch files on exit.

    Raises `UsageError` if there is no segmint dataset, if it has no images, or if the weights aren't SAM's, and the
    errors of `make_queue`.
    """
    manifest = load_manifest(dataset)
    check_images(dataset, manifest)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(ScratchFolder()))
        with open_tables(dataset, scratch=folder) as tables:
            queue = make_queue(tables, manifest, options.queue)
            places = stack.enter_context(closing(ImagePlaces(tables, folder)))
        weights, path, note = find_weights(dataset, manifest, options.weights)
        compute = resolve_compute(options.device, "fp32")
        predictor = stack.enter_context(PredictorThread(lambda: load_model(path, compute)))
        decoder = stack.enter_context(JpegDecoder(own=True))
        source = stack.enter_context(closing(ImageSource(dataset, places, folder)))
        study = None if options.queue.study is None else options.queue.study.name
        about = SessionInfo(
            name=manifest.name,
            key=dataset_keys(dataset)[0],
            version=name_now(dataset),
            images=len(queue),
            stage=options.stage,
            weights=weights,
            weights_sha256=sha256_of(path),
            overlap=options.queue.overlap,
            study=study,
            order=MEASURED.get(manifest.weights.sha256),
        )
        prefills = None
        if options.detector is not None:
            finder = stack.enter_context(ObjectFinder(resolve(options.detector, storage=dataset.storage)))
            prefills = PrefillCache(finder, predictor, decoder, mask_settings(manifest))
        embeddings = stack.enter_context(
            Embeddings(predictor, decoder, source.read, made=None if prefills is None else prefills.make)
        )
        masks = stack.enter_context(Decoder(predictor))
        annotator_view = AnnotatorView(
            *(dataset, about, queue, source, ProgressBoard(dataset), embeddings, masks),
            prefills=prefills,
            files=options.files,
        )
        stack.enter_context(closing(annotator_view))
        stack.enter_context(annotator_view.kept)
        yield ServedView(annotator_view, note)


def find_weights(dataset: Location, manifest: DatasetManifest, name: str | None) -> tuple[str, Path, str | None]:
    """Find the weights, and return their name, their file, and a note.

    The note is None if the weights are the dataset's or if the user chose them. Raises `AssetError` if no weights can
    be found.
    """
    if name is not None:
        return name, resolve(name, storage=dataset.storage), None
    wanted = manifest.weights
    if "segmenter" in manifest.config:
        note = f"using {DEFAULT_WEIGHTS} because a segmenter made the masks: {wanted.name}. Pass weights with --weights"
        return DEFAULT_WEIGHTS, resolve(DEFAULT_WEIGHTS), note
    try:
        path = resolve(wanted.name, storage=dataset.storage)
        if sha256_of(path) == wanted.sha256:
            return wanted.name, path, None
        problem = f"{path} is now a different file"
    except (AssetError, OSError) as error:
        problem = str(error).splitlines()[0]
    note = f"using {DEFAULT_WEIGHTS} because the dataset's weights weren't found: {problem}. Pass them with --weights"
    return DEFAULT_WEIGHTS, resolve(DEFAULT_WEIGHTS), note


def serve(
    make: Callable[[Team], Starlette],
    port: int,
    names: Sequence[str],
    *,
    origin: ServerOrigin | None = None,
    open_browser: bool,
    on_ready: Callable[[Mapping[str, str]], None],
) -> None:
    """Serve a team's application until the process receives SIGINT or SIGTERM.

    Once the server listens, `on_ready` receives each annotator's URL, and the first annotator's URL is opened if
    `open_browser` is set. Port 0 picks a free port. Raises `UsageError` if the port is in use.
    """
    with closing(listen(port)) as listener:
        team = Team(listener.getsockname()[1], list(names), origin)
        addresses = {name: team.address(name) for name in team.annotators}
        app = make(team)
        on_ready(addresses)
        run_app(app, listener, addresses[team.owner] if open_browser else None)
