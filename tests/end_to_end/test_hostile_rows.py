"""Whatever a catalog says in any column, each of its rows is in its place in the end, from normalization to accounting.

Every step is the real one except `segment`, which finds no mask here: it takes no value of a catalog's row.
"""

import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segmint.catalogs.dataset.manifest import CatalogPart, DatasetManifest, ModelWeights
from segmint.catalogs.licenses import LicensePolicy
from segmint.catalogs.parquet import SOURCE
from segmint.catalogs.source.check import check
from segmint.catalogs.source.conform import InvalidValue
from segmint.catalogs.source.files import read_rows
from segmint.catalogs.source.normalize import stage_catalog, write_marked
from segmint.infra.errors import UsageError
from segmint.infra.metrics import RunMetrics
from segmint.infra.storage.storage import Storage
from segmint.operators.describe import describe_table
from segmint.operators.prepare.deidentify import DeidentifyConfig, FacesConfig, PlatesConfig
from segmint.operators.prepare.ingest import IngestConfig
from segmint.operators.prepare.prepare import Prepare, PrepareConfig
from segmint.operators.prepare.release import ReleaseConfig
from segmint.operators.rows import FUNNEL_STEPS, SEGMENTED, Row
from segmint.operators.shards.write import ShardTask, write_shard
from segmint.pipeline.building.dataset import BuildDataset
from segmint.pipeline.building.execution.accounting import Outages, RunRecord, account
from tests.support.bad_images import encode, photograph, retagged_tiff
from tests.support.locations import handle_of, location_of
from tests.support.stages import map_rows

POLICY = LicensePolicy(frozenset({"CC0-1.0"}), require_redistributable=False, policy_date=date(2026, 1, 1))
CONFIG = PrepareConfig(
    ingest=IngestConfig(),
    deidentify=DeidentifyConfig(faces=FacesConfig(detector="none"), plates=PlatesConfig(detector="none")),
    release=ReleaseConfig(short_side=64),
    crops=None,
)

HOSTILE = [
    "", " ", "\x00", "a\nb\r\n", "\x1b[2J", "%00%0A", "\ud800", "\ufeff", "\u202e", "é" * 3000, "x" * 100_000,
    "-" * 9000, "=1+1", "'; DROP TABLE", "../..", "nan", "Infinity", "9999-99-99", "10000-01-01", "0000-00-00",
    "-0001-01-01", "https://user:hunter2@host/?token=hunter2", "LicenseRef-" + "a" * 2000, "Permission is " * 8000,
]  # fmt: skip
URIS = [
    "good.jpg", "good.jpg", "tag.tif", "absent.jpg", "good%0A.jpg", "good\n.jpg", "file:///etc/%00", "file://host/x",
    "/dev/zero", "..", "../good.jpg", "s3://vendor/../x", "s3://vendor/%2e%2e/x", "s3:///x", "s3://user:hunter2@b/x",
    "http://169.254.169.254/", "unheard-of://x", "zip://a::file:///b", "x" * 8192, "%", "~", "good.jpg/",
]  # fmt: skip

texts = st.one_of(st.text(max_size=20), st.sampled_from(HOSTILE))
others = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.lists(st.text(max_size=3), max_size=2),
    st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
)  # fmt: skip
usual: dict[str, st.SearchStrategy[Any]] = {
    "uri": st.sampled_from(URIS),
    "license": st.sampled_from(["CC0-1.0", "cc0-1.0", " CC0-1.0 ", "MIT"]),
    "redistributable": st.sampled_from([True, False, None]),
    "valid_until": st.sampled_from(["2030-01-01", "2020-01-01", None]),
    "country": st.sampled_from(["NO", "no", None]),
    "sha256": st.sampled_from(["ab" * 32, None]),
}


def values(name: str, odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what the column should hold, so that rows come as far as they can."""
    plain = usual.get(name, st.sampled_from(["a", "b", None]))
    return st.integers(0, 5).flatmap(lambda chance: plain if chance else odd)


def rows_of(odd: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Row]]:
    return st.lists(st.fixed_dictionaries({name: values(name, odd) for name in SOURCE.names}), min_size=1, max_size=8)


days = st.one_of(
    st.none(), st.sampled_from([2**31 - 1, -(2**31), 0, 20_000, 2932896, 2932897]), st.integers(-(2**31), 2**31 - 1)
)
catalogs = st.one_of(
    st.tuples(st.just("jsonl"), rows_of(st.one_of(texts, others))),
    st.tuples(st.just("csv"), rows_of(texts)),
    st.tuples(st.just("parquet"), rows_of(texts.filter(lambda text: text.isprintable() or "\x00" in text))),
)


def write(path: Path, rows: list[Row], kind: str, dates: list[int | None]) -> None:
    """Write a catalog as a careless or hostile program would: nothing is checked."""
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        with path.open("w", encoding="utf-8", errors="surrogatepass", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([SOURCE.names, *([row[name] for name in SOURCE.names] for row in rows)])
    else:
        columns = {name: pa.array([_text(row[name]) for row in rows], pa.string()) for name in SOURCE.names}
        columns["redistributable"] = pa.array([row["redistributable"] is True for row in rows])
        columns["valid_until"] = pa.array(dates, pa.int32()).cast(pa.date32())
        pq.write_table(pa.table(columns), path)


def _text(value: object) -> str | None:
    return None if value is None else str(value).encode(errors="replace").decode()


class CatalogLine:
    """A folder with a few photographs, and the stages that a catalog next to them goes through."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "good.jpg").write_bytes(encode(photograph().resize((96, 72)), "JPEG"))
        (folder / "tag.tif").write_bytes(retagged_tiff(254, 2, b"1\x00"))
        self.prepare = Prepare(CONFIG, Storage(), POLICY, str(folder / "catalog"))
        self.outages = Outages(Storage(), str(folder / "catalog"), [str(folder)], timeout_s=1)

    def run(self, catalog: Path) -> None:
        """Take a catalog to its end; or it is refused before the start, by name."""
        work = self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        problems: list[InvalidValue] = []
        try:
            staged, count = stage_catalog(location_of(catalog), work, problems.append)
        except UsageError as error:
            assert catalog.name in str(error)  # noqa: PT017 - a catalog may also be accepted
            return
        assert all(problem.column in SOURCE.names and 1 <= problem.row <= count for problem in problems)
        found = check(location_of(catalog), POLICY)
        assert (found.rows, found.bad_values.count) == (count, len({problem.row for problem in problems}))
        assert "hunter2" not in "\n".join(found.lines())
        pinned = write_marked(staged, work / "part.parquet", work)
        rows = read_rows(location_of(pinned.path), 0, count)
        self.outages.expect(rows.column("uri").to_pylist)
        assert self.outages.silent() == []
        described = describe_table(map_rows(self.prepare(rows), "segment", _without_masks, SEGMENTED))
        self._write(described, count)

    def _write(self, described: pa.Table, count: int) -> None:
        dataset_folder = self.folder / "work" / "dataset"
        dataset = location_of(dataset_folder)
        task = ShardTask(0, 0, count, handle_of(dataset), "numerics", max_reject_ratio=1.0)
        result = write_shard(task, [(0, count)], described)
        assert (result.status, result.detail) == ("committed", "")
        part = CatalogPart(path="part.parquet", rows=count, sha256="", source_sha256="", first_shard=0)
        manifest = DatasetManifest(
            name="hostile", config={}, config_sha256="", numerics={}, code_version="", licenses={}, catalog=(part,),
            weights=ModelWeights(name="", sha256=""), images_per_shard=1000, policy_date=POLICY.policy_date,
        )  # fmt: skip
        run = RunRecord(RunMetrics("hostile"))
        run.note(result)
        accounting = account(BuildDataset(dataset, manifest, Path()), range(1), run, seconds=1)
        assert accounting.complete
        assert accounting.rows == count == accounting.written + sum(accounting.rejected.values())
        tables = [
            pq.read_table(path) for kind in ("images", "rejects") for path in (Path(str(dataset)) / kind).iterdir()
        ]
        ordinals = [ordinal for table in tables for ordinal in table.column("ordinal").to_pylist()]
        assert sorted(ordinals) == list(range(count))
        details = tables[1].column("detail").to_pylist()
        assert all(0 < len(detail) < 20_000 and "hunter2" not in detail for detail in details)


def _ordinals(table: pa.Table) -> list[pa.Array]:
    chunks: list[pa.Array] = table.column("ordinal").chunks
    return chunks


def _without_masks(row: Row) -> Row:
    return {**row, "masks": [], "funnel": dict.fromkeys(FUNNEL_STEPS, 0)}


@pytest.fixture(scope="module")
def line(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CatalogLine]:
    line = CatalogLine(tmp_path_factory.mktemp("hostile"))
    yield line
    line.prepare.close()


def drive(line: CatalogLine, catalog: tuple[str, list[Row]], dates: Sequence[int | None] = (None,)) -> None:
    kind, rows = catalog
    path = line.folder / f"catalog.{kind}"
    write(path, rows, kind, [dates[index % len(dates)] for index in range(len(rows))])
    line.run(path)


unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


@given(catalog=catalogs, dates=st.lists(days, min_size=1, max_size=8))
@settings(unhurried, max_examples=10)
def test_every_row_ends_in_its_place(
    line: CatalogLine, catalog: tuple[str, list[Row]], dates: list[int | None]
) -> None:
    drive(line, catalog, dates)


@pytest.mark.long
@pytest.mark.timeout(2400)
@given(catalog=catalogs, dates=st.lists(days, min_size=1, max_size=8))
@settings(unhurried, max_examples=2000)
def test_every_row_of_many_catalogs_ends_in_its_place(
    line: CatalogLine, catalog: tuple[str, list[Row]], dates: list[int | None]
) -> None:
    drive(line, catalog, dates)


@pytest.mark.parametrize("kind", ["jsonl", pytest.param("csv", marks=pytest.mark.long), "parquet"])
def test_every_hostile_text_in_every_column_ends_in_its_place(line: CatalogLine, kind: str) -> None:
    usual_row = {**dict.fromkeys(SOURCE.names), "uri": "good.jpg", "license": "CC0-1.0"}
    odd = [(name, value) for name in SOURCE.names for value in (URIS if name == "uri" else HOSTILE)]
    writable = [(name, value) for name, value in odd if kind == "jsonl" or value != "\ud800"]
    rows = [{**usual_row, "image_id": str(index), name: value} for index, (name, value) in enumerate(writable)]
    drive(line, (kind, rows))
