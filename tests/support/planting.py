"""Faults to plant in a dataset: bytes that changed on disk, and content committed as a writer with a fault would."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.manifest import CatalogPart, DatasetManifest
from segmint.catalogs.layout import part_path
from segmint.catalogs.parquet import normalized_schema, table_bytes
from segmint.operators.rows import Row
from tests.support.committed_shard import CommittedShard, change_manifest, write_commit
from tests.support.locations import location_of

LATER = datetime.now(UTC) + timedelta(days=2)
"""A time when every file of a test is old."""


def flip(path: Path) -> None:
    """Turn one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def commit_path(dataset: Path, shard: int) -> Path:
    """The file of a shard's first commit."""
    return dataset / "commits" / f"00000{shard}.g1.json"


def change_commit(dataset: Path, shard: int, **changes: Any) -> None:
    """Rewrite a shard's commit with other values of these fields."""
    commit = CommitLog(location_of(dataset)).latest(shard)
    assert commit is not None
    write_commit(dataset, replace(commit, **changes))


def first_part(dataset: Path) -> CatalogPart:
    """The manifest's entry for the catalog's first part."""
    return DatasetManifest.from_json((dataset / "dataset.json").read_bytes()).catalog[0]


def rewrite_catalog(dataset: Path, edit: Callable[[list[Row]], list[Row]]) -> None:
    """Another part of the catalog, pinned as if it had always been that."""
    part = first_part(dataset)
    rows = edit(pq.read_table(dataset / part.path).to_pylist())
    (dataset / part.path).unlink()
    schema = normalized_schema({name for row in rows for name in row})
    data = table_bytes(pa.Table.from_pylist(rows, schema=schema), schema)
    digest = hashlib.sha256(data).hexdigest()
    path = part_path(0, digest)
    (dataset / path).write_bytes(data)
    change_manifest(dataset, catalog=(part.model_copy(update={"path": path, "sha256": digest}),))


def edit_catalog(dataset: Path, ordinal: int, **values: Any) -> None:
    """Other values in a row of the catalog, pinned as if it had always had them."""
    rewrite_catalog(dataset, lambda rows: [{**row, **(values if row["ordinal"] == ordinal else {})} for row in rows])


@dataclass(frozen=True)
class ShardEdit:
    """Other content in a shard: called, it is committed with right names, digests and counts; `raw` writes it alone."""

    shard: int
    edit: Callable[[CommittedShard], None]

    def __call__(self, dataset: Path) -> None:
        """Plant it as a writer with a fault would."""
        taken = CommittedShard(dataset, self.shard)
        self.edit(taken)
        taken.write()

    def raw(self, dataset: Path, folder: str) -> str:
        """Write one of the files that change, that in `folder` if it does, over the old one; returns its path."""
        taken = CommittedShard(dataset, self.shard)
        self.edit(taken)
        files = taken.files()
        paths = {kind: taken.commit.file(kind).path for kind in files}
        changed = [kind for kind, data in files.items() if data != (dataset / paths[kind]).read_bytes()]
        kind = folder if folder in changed else changed[0]
        (dataset / paths[kind]).write_bytes(files[kind])
        return paths[kind]


def edit_row(kind: str, shard: int, index: int, **values: Any) -> ShardEdit:
    """A writer's fault in one row of a table."""
    return ShardEdit(shard, lambda taken: taken.rows[kind][index].update(values))
