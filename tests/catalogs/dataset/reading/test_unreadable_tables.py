"""A table of images that can't be read ends a training loop with its error, however the loop reads."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from segmint.catalogs.dataset.reading.torch_dataset import BatchLoader, open_dataset
from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.storage.errors import AccessRefusedError, NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from tests.support.everything import upload
from tests.support.faulty_proxy import answer, faulty_proxy
from tests.support.s3_server import S3Server

EXPECTED = {"gone": DamagedDatasetError, "damaged": DamagedDatasetError, "text": DamagedDatasetError}
LOADERS = ("batch loader", "batches", "samples")


@dataclass(frozen=True)
class BreakTables:
    """A loop's `collate_fn`: makes all tables of images unreadable once the first sample or batch was read."""

    folder: Path
    kind: str

    def __call__(self, read: Any) -> Any:
        for path in self.folder.glob("images/*.parquet"):
            if self.kind == "gone":
                path.unlink(missing_ok=True)  # another worker may be first
            elif self.kind == "damaged":
                path.write_bytes(bytes(path.stat().st_size))
            elif self.kind == "text":
                table = pq.read_table(path)
                place = table.schema.get_field_index("license")
                texts = pa.array([b"\xff"] * len(table))
                broken = pa.Array.from_buffers(pa.string(), len(table), texts.buffers())
                written = path.with_suffix(f".{os.getpid()}")  # another worker may read the table now
                pq.write_table(table.set_column(place, "license", broken), written)
                written.replace(path)
        (self.folder / "broken").touch()
        return read


def rows_of(loader: str, opened: Any, broken: BreakTables, workers: int, start: str) -> Iterator[dict[str, Any]]:
    """All rows of a loop; a loop that waits for ten seconds fails with another error."""
    options: dict[str, Any] = {"collate_fn": broken, "num_workers": workers}
    if workers:
        options |= {"multiprocessing_context": start, "timeout": 10 if start == "fork" else 60}
    if loader == "samples":
        batches: Any = ([sample] for sample in DataLoader(opened, batch_size=None, **options))
    elif loader == "batches":
        batches = DataLoader(opened.batches(2), batch_size=None, **options)
    else:
        batches = BatchLoader(opened.batches(2), **options)
    return (dict(sample.row) for batch in batches for sample in batch)


FAST = [("batch loader", "gone", 1, "fork"), ("batches", "text", 0, "fork"), ("batch loader", "damaged", 0, "fork")]
ALL = [
    (loader, kind, workers, start)
    for loader in LOADERS
    for kind in EXPECTED
    for workers, start in ((0, "fork"), (1, "fork"), (2, "fork"), (1, "spawn"), (2, "spawn"))
]


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    ("loader", "kind", "workers", "start"),
    [*FAST, *(pytest.param(*each, marks=pytest.mark.long) for each in ALL if each not in FAST)],
)
def test_a_table_that_breaks_ends_the_loop(dataset: str, loader: str, kind: str, workers: int, start: str) -> None:
    expected = NotFoundError if (loader, kind) == ("samples", "gone") else EXPECTED[kind]
    with pytest.raises(expected, match=r"images/sa_00000\d-"):
        list(rows_of(loader, open_dataset(dataset), BreakTables(Path(dataset), kind), workers, start))


@pytest.mark.s3
@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    ("loader", "workers", "start"),
    [
        ("batch loader", 1, "fork"),
        *(
            pytest.param(loader, workers, start, marks=pytest.mark.long)
            for loader in LOADERS
            for workers, start in ((0, "fork"), (2, "fork"), (1, "spawn"), (2, "spawn"))
        ),
    ],
)
def test_a_store_that_refuses_a_table_ends_the_loop(
    dataset: str, s3_server: S3Server, s3_bucket: str, tmp_path: Path, loader: str, workers: int, start: str
) -> None:
    broken = BreakTables(tmp_path, "refused")
    with faulty_proxy(s3_server.port) as proxy:
        proxy.policy = lambda _, target: (
            answer(403, "AccessDenied") if "/images/" in target and (tmp_path / "broken").exists() else b""
        )
        storage = Storage({"s3://": {"endpoint_url": proxy.url}})
        upload(Path(dataset), Location(storage, f"s3://{s3_bucket}/dataset"))
        opened = open_dataset(f"s3://{s3_bucket}/dataset", storage, cache=tmp_path / "cache")
        with pytest.raises(AccessRefusedError, match=r"images/sa_00000\d-"):
            list(rows_of(loader, opened, broken, workers, start))
