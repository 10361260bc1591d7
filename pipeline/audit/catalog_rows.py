"""Rows of a dataset's own catalog for the audit of its shards."""

import threading

import pyarrow as pa

from segmint.catalogs.dataset.manifest import CatalogPart, DatasetManifest
from segmint.catalogs.schema import NORMALIZED
from segmint.catalogs.source.rows import read_rows
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import join
from segmint.operators.rows import Row

_WINDOW = 65_536  # rows that are read together, and serve many shards


class CatalogRows:
    """Rows by their ordinals, for threads that go through them in about the same order; one window is in memory."""

    def __init__(self, storage: Storage, dataset_uri: str, manifest: DatasetManifest) -> None:
        self._storage = storage
        self._dataset_uri = dataset_uri
        self._images_per_shard = manifest.images_per_shard
        self._parts = list(manifest.catalog)
        self._lock = threading.Lock()
        self._window = NORMALIZED.empty_table()
        self._start = 0  # the window's first ordinal

    def leave_out(self, part: CatalogPart) -> None:
        """Gives no row of this part any more: it is not what was pinned."""
        self._parts.remove(part)

    def read(self, start: int, stop: int) -> dict[int, Row] | None:
        """The rows of the ordinals [start, stop) of one shard, by ordinal; None where their part was left out."""
        for part in self._parts:
            first = part.first_shard * self._images_per_shard
            if first <= start < first + part.rows:
                return {row["ordinal"]: row for row in self._slice(part, start, stop).to_pylist()}
        return None

    def _slice(self, part: CatalogPart, start: int, stop: int) -> pa.Table:
        with self._lock:
            if start < self._start or stop > self._start + self._window.num_rows:
                uri = join(self._dataset_uri, part.path)
                self._window = read_rows(Location(self._storage, uri), start, max(stop, start + _WINDOW))
                self._start = start
            return self._window.slice(start - self._start, stop - start)
