"""Web application that shows one dataset; its page is in `assets/`, and data is sent as JSON and JPEG.

```
/                             the page; /assets/… its scripts and styles
/api/address                  create a one-time URL for another browser
/api/annotator                start an annotator for the same images, and return its URL
/api/dataset                  the dataset and the values of its filters
/api/images?…                 a page of the grid; `after=ID` for the next page
/api/rejects?reason=…         a page of rejected rows; `after=ID` for the next page
/api/images/{id}              an image's row, masks, and findings
/api/images/{id}/masks        only the run lengths of its masks, largest first
/api/images/{id}/neighbors?…  the ids of the images before and after it
/images/{id}.jpg, /thumbnails/{id}.jpg
```

URLs identify images only by id, so no part of a URL becomes a path. The server listens on 127.0.0.1 until it is
interrupted.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import Route

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.manifest import name_of, read_manifest
from segmint.catalogs.dataset.tables import DatasetTables
from segmint.catalogs.dataset.versions.record import VersionName, name_now
from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.errors import UsageError
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.infra.uris import redact
from segmint.operators.decoding import JpegDecoder
from segmint.pipeline.quality.audit.result_json import read_audit
from segmint.pipeline.quality.audit.versions import check_same_version
from segmint.pipeline.quality.statistics.open_tables import open_tables
from segmint.pipeline.quality.view.guard import SessionKeys, ViewerGuard
from segmint.pipeline.quality.view.images import ForeignImages, JpegSource, ShardImages, Thumbnails
from segmint.pipeline.quality.view.index import PAGE, AuditFindings, Filters, ImageIndex, findings_of, parse_filters
from segmint.pipeline.serving.images import ImageAddress, UnknownImageError
from segmint.pipeline.serving.levels import MEASURED, OutputOrder
from segmint.pipeline.serving.responses import (
    PROBLEMS,
    image_of,
    jpeg_response,
    json_response,
    page_routes,
    parse_number,
    shortened,
)
from segmint.pipeline.serving.server import listen, run_app

ASSETS = Path(__file__).parent / "assets"


@dataclass
class Viewer:
    """State of the application. `name` is the dataset's name."""

    name: str
    tables: DatasetTables
    index: ImageIndex
    pictures: JpegSource
    findings: AuditFindings
    decoder: JpegDecoder
    version: VersionName | None = None  # None: data that segmint did not write
    note: str | None = None  # warning about the audit to show on the page
    order: OutputOrder | None = None  # order of the decoder's outputs, if it was measured for the weights
    annotator: Callable[[], str] | None = None  # starts an annotator for the same images, and returns its URL

    def __post_init__(self) -> None:
        self.thumbnails = Thumbnails(self.pictures, self.decoder)
        self.summary = self.index.summary()

    def dataset(self) -> dict[str, Any]:
        """Return the values for the page's header and for its filters."""
        about: dict[str, Any] = {"name": self.name, "uri": redact(self.tables.location.uri), "kind": self.tables.kind}
        about["digest"] = None if self.version is None else str(self.version)
        about["output_order"] = None if self.order is None else asdict(self.order)
        about["correctable"] = self.annotator is not None
        return {**about, **self.summary, "findings_elsewhere": self.findings.elsewhere}

    def images(self, filters: Filters, after: int | None) -> dict[str, Any]:
        """Return a page of images. The first page includes the total, and `next` is None on the last page.

        If an image's shard has changed since the viewer was opened, only the image's id is returned.
        """
        rows = self.index.page(filters, after, PAGE)
        shards = self.index.shards(row["id"] for row in rows)
        changed = self.pictures.changed(shards.values())
        shown = [{**_only_id(row), "findings": 0} if shards[row["id"]] in changed else row for row in rows]
        page: dict[str, Any] = {"images": shown, "next": rows[-1]["id"] if len(rows) == PAGE else None}
        return page if after is not None else {**page, "total": self.index.count(filters)}

    def rejects(self, reason: str | None, after: int | None) -> dict[str, Any]:
        """Return a page of rejected rows. The first page includes the number of rows by reason.

        If a row's shard has changed since the viewer was opened, only the row's id is returned.
        """
        rows = self.index.rejects(reason, after or 0)
        changed = self.pictures.changed(row["shard"] for row in rows)
        page: dict[str, Any] = {
            "rows": [_only_id(row) if row["shard"] in changed else row for row in rows],
            "next": rows[-1]["id"] if len(rows) == PAGE else None,
        }
        return page if after is not None else {**page, "reasons": self.index.reasons()}

    def image(self, image: int) -> dict[str, Any]:
        """Return an image's row, the rows of its masks, and its findings, with all columns.

        Raises `UnknownImageError` if there is no such image, and `ShardChangedError` if its shard has changed.
        """
        with self._place(image) as place:
            rows = self._query(place, "images", "SELECT * FROM images WHERE ordinal = ?")
            masks = self._query(place, "masks", "SELECT * FROM masks WHERE ordinal = ? ORDER BY annotation_id")
        if not rows:
            raise UnknownImageError(f"image {image} no longer exists")
        (row,) = rows.to_pylist()
        row["hashes"] = [f"{each:016x}" for each in row["hashes"] or ()]  # JavaScript would round the numbers
        found = [asdict(finding) for finding in self.index.findings(image)]
        return {"image": row, "masks": masks.to_pylist(), "findings": found}

    def masks(self, image: int) -> dict[str, Any]:
        """Return the run lengths of an image's masks, largest first. Raises the errors of `image`."""
        with self._place(image) as place:
            sql = "SELECT segmentation FROM masks WHERE ordinal = ? ORDER BY area DESC, annotation_id"
            rows = self._query(place, "masks", sql)
        return {"masks": rows.column("segmentation").to_pylist()}

    def jpeg(self, image: int) -> bytes:
        """Return the released JPEG."""
        return self.pictures.jpeg(self.index.place(image))

    def thumbnail(self, image: int) -> bytes:
        """Return the thumbnail."""
        return self.thumbnails.jpeg(self.index.place(image))

    def _query(self, place: ImageAddress, view: str, sql: str) -> pa.Table:
        return self.tables.query_shard(place.shard, view, sql, [place.ordinal])

    @contextmanager
    def _place(self, image: int) -> Iterator[ImageAddress]:
        """Check that an image's shard is unchanged, and yield the image's address for reading the tables.

        If a read fails because the shard was replaced in the meantime, raises `ShardChangedError` instead of the read's
        error.
        """
        place = self.index.place(image)
        self.pictures.check(place)
        try:
            yield place
        except DamagedDatasetError:
            self.pictures.check(place, anew=True)
            raise


def _only_id(row: Mapping[str, Any]) -> dict[str, Any]:
    """Reduce a row to its id."""
    return {**dict.fromkeys(row), "id": row["id"]}


def make_app(viewer: Viewer, access: SessionKeys) -> Starlette:
    """Build the application of a viewer for the browsers that `access` admits."""
    routes = [
        *page_routes(ASSETS / "index.html"),
        Route("/api/address", lambda _: json_response({"address": access.address()})),
        Route("/api/dataset", lambda _: json_response(viewer.dataset())),
        Route("/api/images", lambda request: json_response(viewer.images(*_asked(request)))),
        Route("/api/rejects", lambda request: json_response(viewer.rejects(*_asked_rejects(request)))),
        Route("/api/images/{image}/masks", lambda request: json_response(viewer.masks(image_of(request)))),
        Route("/api/images/{image}", lambda request: json_response(viewer.image(image_of(request)))),
        Route(
            "/api/images/{image}/neighbors",
            lambda request: json_response(viewer.index.neighbors(_asked(request)[0], image_of(request))),
        ),
        Route("/images/{image}.jpg", lambda request: jpeg_response(viewer.jpeg(image_of(request)))),
        Route("/thumbnails/{image}.jpg", lambda request: jpeg_response(viewer.thumbnail(image_of(request)))),
    ]
    if (annotator := viewer.annotator) is not None:
        routes.append(Route("/api/annotator", lambda _: json_response({"address": annotator()})))
    return Starlette(routes=routes, middleware=[Middleware(ViewerGuard, access=access)], exception_handlers=PROBLEMS)


def _asked(request: Request) -> tuple[Filters, int | None]:
    """Parse a URL's filters, and the id after which the page starts."""
    parameters = dict(request.query_params)
    after = _after(parameters.pop("after", None))
    return parse_filters(parameters), after


def _asked_rejects(request: Request) -> tuple[str | None, int | None]:
    """Parse a URL's reason, if any, and the id after which the page starts."""
    return request.query_params.get("reason"), _after(request.query_params.get("after"))


def _after(text: str | None) -> int | None:
    return None if text is None else parse_number(text, UsageError(f"after: expected an id, not {shortened(text)!r}"))


@contextmanager
def open_viewer(dataset: Location, audit: Location | None = None) -> Iterator[Viewer]:
    """Open a viewer of a dataset, with the findings in an audit's JSON file. Deletes scratch files on exit.

    Raises `UsageError` if there is no dataset, if it has another format, or if the audit doesn't exist.
    """
    with ExitStack() as stack:
        findings, note = AuditFindings(), None
        if audit is not None:
            read = read_audit(audit)
            note = check_same_version(read, str(audit), dataset)
            findings = findings_of(read)
        folder = Path(stack.enter_context(ScratchFolder()))
        generations = CommitLog(dataset).committed()  # first, because a shard may be replaced at any time
        tables = stack.enter_context(open_tables(dataset, scratch=folder))
        index = stack.enter_context(closing(ImageIndex(tables, findings.images, folder)))
        own = tables.kind == "segmint"
        decoder = stack.enter_context(JpegDecoder(own=own))
        manifest = read_manifest(dataset)
        version = None if manifest is None else name_now(dataset)
        name = name_of(manifest, dataset.uri)
        pictures: JpegSource = ShardImages(tables.location, generations) if own else ForeignImages(tables)
        order = None if manifest is None else MEASURED.get(manifest.weights.sha256)
        yield Viewer(name, tables, index, pictures, findings, decoder, version, note, order)


def serve(viewer: Viewer, port: int, *, open_browser: bool, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM. Call `on_ready` with the URL once the server responds.

    Port 0 picks a free port. Raises `UsageError` if the port is in use.
    """
    with closing(listen(port)) as listener:
        access = SessionKeys(listener.getsockname()[1])
        address = access.address()
        app = make_app(viewer, access)
        on_ready(address)
        run_app(app, listener, address if open_browser else None)
