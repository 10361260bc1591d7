"""Web application that shows one dataset: its routes, images, and who may open it.

The page is in `assets/`, and data is sent as JSON and JPEG.

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

Access control of a viewer, which is read-only, local, and limited to browsers that opened a one-time URL.

Requests with another Host header are rejected. This prevents DNS rebinding.
"""

import io
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa
from PIL import Image
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.manifest import name_of, read_manifest
from segmint.catalogs.dataset.tables import DatasetTables
from segmint.catalogs.dataset.versions import VersionName, name_now
from segmint.catalogs.layout import DamagedDatasetError, commit_name, image_name
from segmint.infra.errors import UsageError
from segmint.infra.scratch import ScratchFolder
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.uris import redact
from segmint.operators.foreign.layouts import read_jpeg
from segmint.operators.images import PICTURES, JpegDecoder, UndecodableError
from segmint.operators.prepare.ingest import upright_pixels
from segmint.operators.rows import Row
from segmint.pipeline.quality.audit.result import read_audit
from segmint.pipeline.quality.audit.versions import check_same_version
from segmint.pipeline.quality.statistics.masks import open_tables
from segmint.pipeline.quality.view.index import PAGE, AuditFindings, Filters, ImageIndex, findings_of, parse_filters
from segmint.pipeline.serving.images import (
    MEASURED,
    ImageAddress,
    NoImageError,
    OutputOrder,
    TarIndex,
    UnknownImageError,
    index_tar,
)
from segmint.pipeline.serving.responses import (
    KEY,
    PROBLEMS,
    HeadersMiddleware,
    OneTimeKeys,
    image_of,
    jpeg_response,
    json_response,
    listen,
    page_routes,
    parse_number,
    run_app,
    shortened,
)

_ADVICE = """\
<p>To get a new one, use &ldquo;Open in another browser&rdquo; in a browser where the viewer is open.</p>
<p>If the viewer isn't open in any of your browsers, another user of this machine may have used the address.
Stop <code>segmint view</code> with Ctrl-C and start it again.</p>"""


class SessionKeys(OneTimeKeys):
    """One-time keys and sessions of a viewer that listens on `port`. All sessions belong to the same unnamed person."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port

    def address(self) -> str:
        """Return a new URL that opens one browser, and revoke the previous URL if it is unused."""
        return f"http://127.0.0.1:{self.port}/?{KEY}={self.new_key('')}"


class ViewerGuard(HeadersMiddleware):
    """Middleware that enforces the rules in the module docstring."""

    def __init__(self, app: ASGIApp, access: SessionKeys) -> None:
        port = access.port
        super().__init__(app, f"segmint-view-{port}", "segmint view", _ADVICE)
        self._access = access
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    def _answer(self, request: Request) -> Response | None:
        if request.headers.get("host", "").lower() not in self._hosts:
            return PlainTextResponse("This viewer only responds at 127.0.0.1 and localhost.", 421)
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("This viewer is read-only.", 405, {"allow": "GET, HEAD"})
        inside = self._access.name_of(self._session(request)) is not None
        entered = self._enter(request, self._access.enter, inside)
        if entered is not None or inside:
            return entered
        return PlainTextResponse("Open the address that `segmint view` printed: it contains the key.", 403)


THUMBNAIL_SIDE = 480
"""Length in pixels of a thumbnail's longer side, which is twice its size in the grid, for high-density screens."""

LOOK_S = 2.0
"""Seconds until a shard is checked again. Until then, a viewer may show images that were taken down or redacted."""

_LOOKS = 16  # threads that check shards
_THUMBNAIL_BYTES = 64 << 20
_INDEXES = 512  # maximum number of shards with cached tar headers, about 100 kB each
_QUALITY = 80

K = TypeVar("K")
V = TypeVar("V")


class ShardChangedError(NoImageError):
    """Error for an image whose shard was replaced after the viewer was opened. Such images are no longer shown."""


class WeightedCache(Generic[K, V]):
    """Thread-safe LRU cache with a maximum total weight."""

    def __init__(self, limit: int, weigh: Callable[[V], int]) -> None:
        self._limit = limit
        self._weigh = weigh
        self.values: OrderedDict[K, V] = OrderedDict()
        self._weight = 0
        self._lock = threading.Lock()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Return the value of a key. If it isn't cached, call `make`, which may happen concurrently in two threads."""
        with self._lock:
            if key in self.values:
                self.values.move_to_end(key)
                return self.values[key]
        value = make()
        with self._lock:
            if key in self.values:
                return self.values[key]
            self.values[key] = value
            self._weight += self._weigh(value)
            while self._weight > self._limit and self.values:
                _, dropped = self.values.popitem(last=False)
                self._weight -= self._weigh(dropped)
        return value

    def drop(self, which: Callable[[K], bool]) -> None:
        """Drop the values of the keys for which `which` is true."""
        with self._lock:
            for key in [key for key in self.values if which(key)]:
                self._weight -= self._weigh(self.values.pop(key))


class ShardImages:
    """Source of a segmint dataset's JPEGs, which are read by range from the shards' tars.

    The viewer keeps reading the tars that were committed when it was opened. `generations` are the shards' generations
    at that time, by default the latest commits' generations.
    """

    def __init__(self, dataset: Location, generations: Mapping[int, int] | None = None, look_s: float = LOOK_S) -> None:
        self._dataset = dataset
        self.look_s = look_s
        self._looked: dict[int, float] = {}  # time of the last check that found a shard unchanged
        self._changed: set[int] = set()  # shards that have changed; they stay in this set
        self._log = CommitLog(dataset)
        self._generations = self._log.committed() if generations is None else generations
        self._indexes: WeightedCache[int, TarIndex] = WeightedCache(_INDEXES, lambda _: 1)

    def check(self, place: ImageAddress, *, anew: bool = False) -> None:
        """Raise `ShardChangedError` if the generation of the image's shard has changed or is gone.

        The first check of a shard lists the store. Its result is valid for `look_s` seconds, unless `anew` is set.
        """
        if self._has_changed(place.shard, anew):
            self._indexes.drop(lambda shard: shard == place.shard)
            raise ShardChangedError(
                f"shard {place.shard} has changed since this viewer was started, by a correction or takedown. "
                "Restart the viewer"
            )

    def changed(self, shards: Iterable[int]) -> set[int]:
        """Return which of these shards have changed, checking several at a time."""
        wanted = sorted(set(shards))
        answers = map_ahead(self._has_changed, wanted, _LOOKS, _LOOKS, "looks")
        return {shard for shard, changed in zip(wanted, answers, strict=True) if changed}

    def _has_changed(self, shard: int, anew: bool = False) -> bool:
        now = time.monotonic()
        if shard in self._changed:
            return True
        if not anew and now - self._looked.get(shard, -self.look_s) < self.look_s:
            return False
        if self._log.is_latest(shard, self._generations.get(shard, 0)):
            self._looked[shard] = now
            return False
        self._changed.add(shard)
        return True

    def jpeg(self, place: ImageAddress) -> bytes:
        """Return an image's JPEG exactly as it is in the tar.

        Raises `NoImageError` if there is no JPEG or the shard has changed, and `DamagedDatasetError` if the tar is
        unreadable.
        """
        self.check(place)
        name = image_name(place.id)
        try:
            data = self._indexes.get(place.shard, lambda: self._index(place.shard)).read(name)
        except NotFoundError as error:
            raise NoImageError(
                f"shard {place.shard} has changed since this viewer was started, or its tar is missing. "
                f"Restart the viewer: {error}"
            ) from error
        if data is None:
            raise NoImageError(
                f"{name} is not in the tar of shard {place.shard}; the dataset may have only annotations"
            )
        return data

    def _index(self, shard: int) -> TarIndex:
        generation = self._generations.get(shard)
        commit = None if generation is None else self._log.read(shard, generation)
        if generation is None or commit is None:
            raise NotFoundError(f"no {commit_name(shard, generation or 1)}")
        return index_tar(self._dataset, commit)


class ForeignImages:
    """Source of the JPEGs of foreign data, as loose files or in tars."""

    def __init__(self, tables: DatasetTables) -> None:
        self._tables = tables

    def check(self, place: ImageAddress, *, anew: bool = False) -> None:
        """Do nothing, because changes of foreign data aren't tracked."""

    def changed(self, shards: Iterable[int]) -> set[int]:
        """Return nothing, because changes of foreign data aren't tracked."""
        return set()

    def jpeg(self, place: ImageAddress) -> bytes:
        """Return the bytes of an image's JPEG unchanged. Raises `NoImageError` if there is none."""
        data = read_jpeg(self._tables, place.ordinal)
        if data is None:
            raise NoImageError(f"no JPEG next to the annotations of image {place.id}")
        return data


class Thumbnails:
    """Cache of a dataset's thumbnails, which `decoder` creates. The most recently used 64 MiB stay in memory."""

    def __init__(self, pictures: ShardImages | ForeignImages, decoder: JpegDecoder) -> None:
        self._pictures = pictures
        self._decoder = decoder
        self.recent: WeightedCache[ImageAddress, bytes] = WeightedCache(_THUMBNAIL_BYTES, len)

    def jpeg(self, place: ImageAddress) -> bytes:
        """Return an image's thumbnail as JPEG.

        Raises `NoImageError` if the image is missing, cannot be decoded, or its shard has changed. In the last case,
        the cache drops all of the shard's thumbnails.
        """
        try:
            self._pictures.check(place)
            made = self.recent.get(place, lambda: self._make(place))
            self._pictures.check(place)  # another thread may have cleared the shard before it was cached
        except ShardChangedError:
            self.recent.drop(lambda other: other.shard == place.shard)
            raise
        return made

    def _make(self, place: ImageAddress) -> bytes:
        try:
            return self._decoder.run(thumbnail, self._pictures.jpeg(place))
        except UndecodableError as error:
            raise NoImageError(f"can't decode this image: {error}") from error


def thumbnail(jpeg: bytes, side: int = THUMBNAIL_SIDE) -> bytes:
    """Scale a JPEG down so that no side exceeds `side` pixels. Raises Pillow's exceptions if it cannot be decoded.

    The decoder scales large images while reading, which saves memory and time.
    """
    out = io.BytesIO()
    with Image.open(io.BytesIO(jpeg), formats=PICTURES) as picture:
        picture.thumbnail((side, side))
        Image.fromarray(upright_pixels(picture)).save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


ASSETS = Path(__file__).parent / "assets"


@dataclass
class Viewer:
    """State of the application. `name` is the dataset's name."""

    name: str
    tables: DatasetTables
    index: ImageIndex
    pictures: ShardImages | ForeignImages
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


def _only_id(row: Row) -> dict[str, Any]:
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
        pictures: ShardImages | ForeignImages = (
            ShardImages(tables.location, generations) if own else ForeignImages(tables)
        )
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
