"""Runs a viewer: opens the dataset, and listens on 127.0.0.1 until it is interrupted."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.manifest import name_of, read_manifest
from segmint.catalogs.dataset.tables import DatasetTables
from segmint.catalogs.dataset.versions.record import name_now
from segmint.infra.storage.location import Location
from segmint.operators.decoding import JpegDecoder
from segmint.pipeline.quality.audit.result_json import read_audit
from segmint.pipeline.quality.audit.versions import check_same_version
from segmint.pipeline.quality.statistics.open_tables import open_tables
from segmint.pipeline.quality.view.app import Viewer, make_app
from segmint.pipeline.quality.view.findings import AuditFindings, findings_of
from segmint.pipeline.quality.view.guard import SessionKeys
from segmint.pipeline.quality.view.images import ForeignImages, JpegSource, ShardImages
from segmint.pipeline.quality.view.index import ImageIndex
from segmint.pipeline.serving.server import listen, run_app


@contextmanager
def open_viewer(dataset: Location, audit: Location | None = None) -> Iterator[Viewer]:
    """Open a viewer of a dataset with the findings in an audit's JSON; scratch files are deleted at the end.

    Raises `UsageError` if there is no dataset, one of another format, or no audit.
    """
    with ExitStack() as stack:
        findings, note = AuditFindings(), None
        if audit is not None:
            read = read_audit(audit)
            note = check_same_version(read, str(audit), dataset)
            findings = findings_of(read)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="segmint-view-")))
        generations = CommitLog(dataset).committed()  # before what they name is read: a shard may be replaced now
        tables = stack.enter_context(open_tables(dataset, scratch=folder))
        index = stack.enter_context(closing(ImageIndex(tables, findings.images, folder)))
        decoder = stack.enter_context(JpegDecoder(own=tables.kind == "segmint"))
        manifest = read_manifest(dataset)
        version = None if manifest is None else name_now(dataset)
        name, pictures = name_of(manifest, dataset.uri), _pictures(tables, generations)
        yield Viewer(name, tables, index, pictures, findings, decoder, version, note)


def serve(viewer: Viewer, port: int, *, open_browser: bool, on_ready: Callable[[str], None]) -> None:
    """Serve until the process gets SIGINT or SIGTERM; `on_ready` gets the address as soon as it can be opened.

    Port 0 takes a free one. Raises `UsageError` if the port is taken.
    """
    with closing(listen(port)) as listener:
        access = SessionKeys(listener.getsockname()[1])
        address = access.address()
        app = make_app(viewer, access)
        on_ready(address)
        run_app(app, listener, address if open_browser else None)


def _pictures(tables: DatasetTables, generations: Mapping[int, int]) -> JpegSource:
    return ShardImages(tables.location, generations) if tables.kind == "segmint" else ForeignImages(tables)
