"""Features of a catalog's images for curation, computed in parts that cover fixed ranges of rows.

The content of a part doesn't depend on the time, the host, or the attempt. A part is put if absent and never changed,
so an interrupted run can resume with the missing parts.

There is one exception. If a child dies, hangs, or runs out of memory on an image, the machine may be to blame. A part
with such a verdict gets a different name, and only the run that put it reads it.
"""

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from segmint.catalogs.parquet import table_bytes
from segmint.catalogs.reasons import Reason, RejectedError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.operators.child import Children, SuspectError, forbid_core_dumps
from segmint.operators.curate.fitness import MEASURES
from segmint.operators.curate.inspect import (
    ImageInspection,
    InspectionConfig,
    UndecodedError,
    build_looker,
    build_opt_out_reader,
)
from segmint.operators.prepare.read_image import ImageReader, checked_digest
from segmint.operators.rows import Row, faulted, named, to_rows, to_table

PART_ROWS = 256
"""Number of rows per part. An interrupted run loses at most one part per worker."""

FEATURES = pa.schema(
    [
        pa.field("ordinal", pa.int64(), nullable=False),
        pa.field("unread", pa.string()),  # why there are no features: the verdict that a build may issue, or `SKIPPED`
        pa.field("sha256", pa.binary(32)),  # hash of the image's bytes
        pa.field("width", pa.int32()),  # pixels of the upright source
        pa.field("height", pa.int32()),
        pa.field("hashes", pa.list_(pa.uint64())),  # hashes of the image's views
        pa.field("opt_out", pa.string()),  # a sentence on how the image's metadata forbids training
        pa.field("scores", pa.list_(pa.float64())),  # in the order of the scorers
        *(pa.field(name, pa.float64()) for name in MEASURES),
        pa.field("thumbnail", pa.binary(64 * 64)),  # gray levels
    ]
)
"""Schema of a part. The part contains one row for each row of the catalog, in order."""

SKIPPED = "skipped"
"""Value of `unread` for an image that the catalog itself rejects. Such an image isn't read."""

DONE = pa.schema(
    [
        pa.field("first", pa.int64()),  # first ordinal of the part
        pa.field("bytes", pa.int64()),  # number of bytes read
        pa.field("fault", pa.string()),  # why the part wasn't put, or null
        pa.field("suspect", pa.bool_()),  # true if the child died on an image: a fault, or a part for this run only
    ]
)
"""Schema of the row that the actor returns for a part."""

_THREADS_A_CHILD = 4


@dataclass(frozen=True)
class CurateTask:
    """Settings of a curation that its workers need."""

    config: InspectionConfig
    storage: Storage
    catalog_uri: str  # the source catalog; URIs in its rows may be relative to it
    folder: Location  # folder that contains the parts
    assets: str | None = None
    memory_limit: int | None = 4 * 2**30  # memory limit in bytes for one image in its child
    again: frozenset[int] = frozenset()  # ordinals of parts in which a child died; after another death, no features


def part_name(first: int, suspect: bool = False) -> str:
    """Return the name of the part that begins with ordinal `first`. A `suspect` part is valid only in one run."""
    return f"{first:012d}{'.suspect' if suspect else ''}.parquet"


def is_skipped(row: Row, opt_outs: bool) -> bool:
    """Return whether an image needn't be read, because the catalog rejects it or an earlier row has its image_id.

    Images that the catalog marks as opted out are always read, because their copies count as opted out as well. With
    `opt_outs`, all images are read. The metadata of any image may forbid training with it, and the catalog may contain
    copies of that image.
    """
    reason = row.get("refused_reason")
    if opt_outs or row.get("opt_out") or reason == Reason.OPTED_OUT:
        return False
    return row["duplicate_of"] is not None or reason is not None


class InspectImages:
    """Ray Data actor that maps the rows of one part to a row of `DONE` and puts the part.

    Threads read the images, and a child process decodes them. A row that can't be read or decoded gets no features. A
    fault isn't a verdict, and neither is the child's first death on an image. In both cases, the part isn't put, and
    the next round retries it.
    """

    def __init__(self, task: CurateTask) -> None:
        """Start the child."""
        forbid_core_dumps()
        self.task = task
        self.reader = ImageReader(task.storage, task.catalog_uri, task.config.ingest.max_bytes)
        self._threads = ThreadPoolExecutor(_THREADS_A_CHILD, thread_name_prefix="look")
        self._children: Children[ImageInspection] = Children(
            functools.partial(build_looker, task.config, task.storage, task.assets),
            timeout_s=task.config.ingest.timeout_s,
            memory_limit=task.memory_limit,
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        """Inspect the images of a part's rows and put the part."""
        first = table.column("ordinal")[0].as_py()
        row = functools.partial(self._row, again=first in self.task.again)
        rows = list(self._threads.map(row, to_rows(table, "curate")))
        fault = next((f"{named(row)}: {row['fault']}" for row in rows if row["fault"] is not None), None)
        suspect = any(row.get("suspect", False) for row in rows)
        if fault is None:
            data = table_bytes(to_table(rows, FEATURES), FEATURES)
            if suspect:
                (self.task.folder / part_name(first, suspect=True)).put(data)
            elif not (self.task.folder / part_name(first)).put_if_absent(data):
                fault = "the part exists with other bytes: another machine decodes an image to other pixels"
        size = sum(row.get("bytes", 0) for row in rows)
        return pa.table({"first": [first], "bytes": [size], "fault": [fault], "suspect": [suspect]}, schema=DONE)

    def close(self) -> None:
        """Stop the child and the threads."""
        self._threads.shutdown()
        self._children.close()

    def __del__(self) -> None:
        # Ray Data deletes this object when the actor ends gracefully; a killed actor's child exits on its own.
        if hasattr(self, "_children"):
            self.close()

    def _row(self, row: Row, *, again: bool) -> Row:
        if row["fault"] is not None:
            return row
        if is_skipped(row, self.task.config.opt_outs):
            return {**row, **_NOTHING, "unread": SKIPPED}
        try:
            return {**row, **_NOTHING, **self.reader.use(row, functools.partial(self._look, row, again))}
        except SuspectError as verdict:
            return {**faulted(row, "curate", verdict), "suspect": True}
        except UndecodedError as verdict:
            return {**row, **_NOTHING, "unread": str(verdict.reason), "opt_out": verdict.opt_out}
        except RejectedError as verdict:
            return {**row, **_NOTHING, "unread": str(verdict.reason)}
        except Exception as error:  # noqa: BLE001 - a fault affects only its own part
            return faulted(row, "curate", error)

    def _look(self, row: Row, again: bool, data: bytes) -> dict[str, Any]:
        digest = checked_digest(data, row["sha256"])
        try:
            look = self._children.run(data)
        except SuspectError as verdict:
            if not again:
                raise
            return {"unread": str(verdict.reason), "suspect": True, "opt_out": self._opt_out(data)}
        return {
            **{name: value for name, value in asdict(look).items() if name in FEATURES.names},
            **look.measures,
            "sha256": bytes.fromhex(digest),
            "hashes": look.hashes.tolist(),
            "scores": list(look.scores),
            "thumbnail": look.thumbnail.tobytes(),
            "bytes": len(data),
        }

    def _opt_out(self, data: bytes) -> str | None:
        """Return how an image's metadata forbids training. Since a child has died on this image, use a new child."""
        if not self.task.config.opt_outs:
            return None
        try:
            with Children(build_opt_out_reader, timeout_s=self.task.config.ingest.timeout_s) as child:
                return child.run(data)
        except SuspectError:
            return None


_NOTHING: dict[str, Any] = {name: None for name in FEATURES.names if name != "ordinal"}
