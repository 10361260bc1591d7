"""A dataset's Parquet by SQL: the files that the latest commits name, on a disk and on S3, however many."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.tables import DatasetTables, TableFile, check_selection, open_committed
from segmint.catalogs.layout import DamagedDatasetError, data_path
from segmint.infra.errors import UsageError
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.operators.rows import SCHEMAS
from segmint.pipeline.quality.statistics.masks import open_tables
from tests.support.committed import write_dataset, write_generation
from tests.support.locations import location_of
from tests.support.viewed import image_rows

OVERVIEW = """
    SELECT shard, count(*) AS images, sum(masks)::BIGINT AS masks, min(id) AS first
    FROM images GROUP BY shard ORDER BY shard
"""


@pytest.fixture
def tables(dataset: str, tmp_path: Path) -> Iterator[DatasetTables]:
    with open_committed(location_of(dataset), SCHEMAS, scratch=tmp_path) as opened:
        yield opened


def test_the_views_have_the_documented_columns_and_the_shard(tables: DatasetTables) -> None:
    for kind, schema in SCHEMAS.items():
        found = tables.query(f"SELECT * FROM {kind} LIMIT 0").schema
        assert found.names == [*schema.names, "shard"]
        assert found.field("shard").type == pa.int64()
        for name in schema.names:
            assert pa.types.is_nested(found.field(name).type) == pa.types.is_nested(schema.field(name).type), name


def test_rows_are_those_of_the_files(tables: DatasetTables) -> None:
    rows = tables.query(OVERVIEW).to_pylist()
    assert rows == [{"shard": i, "images": 2, "masks": 4, "first": 3 * i + 1} for i in range(3)]
    assert tables.query("SELECT reason FROM rejects WHERE shard = ?", [2]).to_pylist() == [{"reason": "not_an_image"}]
    areas = tables.query("SELECT area FROM masks WHERE id = 1 ORDER BY annotation_id").column("area").to_pylist()
    assert areas[0] == 600
    assert tables.kind == "segmint"


def test_the_highest_commit_names_the_files(dataset: str) -> None:
    storage = Storage()
    write_generation(Location(storage, dataset), shard=1, generation=2, refuse=2)
    Path(dataset, "commits/000002.g1.json").unlink()
    with open_committed(Location(storage, dataset), SCHEMAS) as tables:
        assert tables.query("SELECT id FROM images ORDER BY id").column("id").to_pylist() == [1, 2, 4]
        assert tables.query("SELECT count(*) AS n FROM rejects").to_pylist() == [{"n": 3}]


def test_shards_may_be_left_out_whose_commits_nobody_can_read(dataset: str) -> None:
    Path(dataset, "commits/000002.g1.json").write_text("{}")
    with open_committed(location_of(dataset), SCHEMAS, leave_out=frozenset({0, 2})) as tables:
        assert tables.query("SELECT id FROM images ORDER BY id").column("id").to_pylist() == [4, 5]


def test_a_dataset_without_a_commit_has_empty_views(dataset: str) -> None:
    shutil.rmtree(Path(dataset, "commits"))
    with open_committed(location_of(dataset), SCHEMAS) as tables:
        for kind, schema in SCHEMAS.items():
            found = tables.query(f"SELECT * FROM {kind}")
            assert (found.num_rows, found.column_names) == (0, [*schema.names, "shard"])


def test_names_of_folders_are_neither_patterns_nor_values(dataset: str, tmp_path: Path) -> None:
    moved = tmp_path / "license=it's [a] *?" / "shard=7"
    moved.parent.mkdir()
    Path(dataset).rename(moved)
    for uri in (str(moved), f"file://{str(moved).replace(' ', '%20').replace('?', '%3F')}"):
        with open_committed(location_of(uri), SCHEMAS) as tables:
            rows = tables.query("SELECT license, count(*) AS n, max(shard) AS last FROM images GROUP BY ALL")
            assert rows.to_pylist() == [{"license": "CC-BY-4.0", "n": 6, "last": 2}]


@pytest.mark.parametrize("name", ["ds?1", "ds*1", "ds[!a]1", "ds[a-z]1", "d**1", "ds\\*1"])
def test_a_folder_whose_name_is_a_pattern_is_read_without_its_neighbors(
    dataset: str, tmp_path: Path, name: str
) -> None:
    shutil.copytree(dataset, tmp_path / name)
    for other in ("dsx1", "ds-1", "ds_*1"):
        shutil.copytree(dataset, tmp_path / other)
        for file in (tmp_path / other / "images").iterdir():
            rows = pq.read_table(file)
            pq.write_table(pa.concat_tables([rows, rows]), file)
    with open_committed(location_of(tmp_path / name), SCHEMAS) as tables:
        assert [row["images"] for row in tables.query(OVERVIEW).to_pylist()] == [2, 2, 2]
        assert tables.query_shard(1, "images", "SELECT count(*) AS n FROM images").to_pylist() == [{"n": 2}]
        gone = min((tmp_path / name / "images").iterdir())
        gone.unlink()
        with pytest.raises(DamagedDatasetError, match=gone.name):
            tables.query("SELECT sum(width) AS n FROM images")


def test_a_folder_that_no_pattern_can_name_is_refused(dataset: str, tmp_path: Path) -> None:
    moved = Path(dataset).rename(tmp_path / "a\\b*")
    with pytest.raises(UsageError, match=r"contains a backslash and one of \* \? \[.*: rename its folder"):
        open_committed(location_of(moved), SCHEMAS)


def test_a_damaged_and_a_missing_file_are_named(dataset: str, tables: DatasetTables) -> None:
    commit = CommitLog(location_of(dataset)).latest(1)
    assert commit is not None
    path = Path(dataset, commit.file("images").path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DamagedDatasetError, match=path.name):
        tables.query("SELECT sum(width) AS n FROM images")
    path.unlink()
    with pytest.raises(DamagedDatasetError, match=path.name):
        tables.query("SELECT sum(width) AS n FROM images")


def test_a_file_that_is_damaged_before_it_is_opened_is_named(dataset: str) -> None:
    commit = CommitLog(location_of(dataset)).latest(0)
    assert commit is not None
    path = Path(dataset, commit.file("masks").path)
    data = path.read_bytes()
    footer = data[: -8 - 40] + b"\xff" * 40 + data[-8:]
    for damaged in (b"", b"PAR1", data[: len(data) // 2], footer):
        path.write_bytes(damaged)
        with pytest.raises(DamagedDatasetError):
            open_committed(location_of(dataset), SCHEMAS).close()


def test_a_pipe_in_place_of_a_file_is_named_and_not_waited_for(dataset: str) -> None:
    """Whoever published the dataset may have put it there, and DuckDB would read it for ever."""
    path = min((Path(dataset) / "images").iterdir())
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DamagedDatasetError, match=rf"{path.name} isn't a regular file"):
        open_committed(location_of(dataset), SCHEMAS)


def test_columns_of_other_types_or_names_are_damage(dataset: str) -> None:
    commit = CommitLog(location_of(dataset)).latest(0)
    assert commit is not None
    path = Path(dataset, commit.file("images").path)
    table = pq.read_table(path)
    place = table.schema.get_field_index("width")
    pq.write_table(table.set_column(place, "width", pa.array(["wide"] * len(table))), path)
    with pytest.raises(DamagedDatasetError, match="width is VARCHAR, expected INTEGER"):
        open_committed(location_of(dataset), SCHEMAS)
    pq.write_table(table.drop_columns(["width"]), path)
    with open_committed(location_of(dataset), SCHEMAS) as tables, pytest.raises(DamagedDatasetError, match="width"):
        tables.query("SELECT sum(width) AS n FROM images")


def test_the_scratch_folder_goes_with_the_tables(dataset: str, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with open_committed(location_of(dataset), SCHEMAS, scratch=scratch):
        assert len(list(scratch.iterdir())) == 1
    assert list(scratch.iterdir()) == []


def test_a_shard_asked_for_is_the_only_one_read(dataset: str, tables: DatasetTables) -> None:
    commit = CommitLog(location_of(dataset)).latest(2)
    assert commit is not None
    path = Path(dataset, commit.file("masks").path)
    path.write_bytes(b"damaged" + path.read_bytes()[7:-4] + b"DAMA")
    found = tables.query("SELECT count(DISTINCT area) AS n FROM masks WHERE shard = 1 AND ordinal = 3").to_pylist()
    assert found == [{"n": 2}]
    with pytest.raises(DamagedDatasetError):
        tables.query("SELECT count(DISTINCT area) AS n FROM masks")


def test_a_shard_alone_is_read_without_the_files_of_others(dataset: str, tables: DatasetTables) -> None:
    sql = "SELECT * FROM masks WHERE ordinal = ? ORDER BY annotation_id"
    there = tables.query("SELECT * FROM masks WHERE shard = 1 AND ordinal = 3 ORDER BY annotation_id")
    for path in Path(dataset, "masks").glob("sa_00000[02]-*"):
        path.unlink()
    assert tables.query_shard(1, "masks", sql, [3]).equals(there)
    assert tables.query_shard(1, "masks", sql, [0]).num_rows == 0
    assert tables.query_shard(7, "masks", sql, [3]).schema.equals(there.schema)
    with pytest.raises(DamagedDatasetError, match="sa_000002"):
        tables.query_shard(2, "masks", sql, [6])


def test_thousands_of_files_are_one_view(tmp_path: Path) -> None:
    schema = pa.schema([("ordinal", pa.int64())])
    files = []
    for shard in range(1000):
        path = tmp_path / data_path("images", shard, f"{shard:064x}")
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"ordinal": [2 * shard, 2 * shard + 1]}, schema=schema), path)
        files.append(TableFile(str(path), path.stat().st_size))
    with DatasetTables(location_of(tmp_path), {"images": files}, {"images": schema}, ScratchFolder()) as tables:
        found = tables.query("SELECT count(*) AS n, max(shard) AS last, sum(ordinal)::BIGINT AS total FROM images")
        assert found.to_pylist() == [{"n": 2000, "last": 999, "total": 2000 * 1999 // 2}]


@pytest.mark.s3
def test_tables_come_from_s3_with_the_options_of_the_storage(
    s3_bucket: str, s3_options: dict[str, dict[str, str]]
) -> None:
    storage, uri = Storage(s3_options), f"s3://{s3_bucket}/some [odd] prefix"
    dataset = Location(storage, uri)
    write_dataset(dataset, shards=3)
    with open_committed(dataset, SCHEMAS) as tables:
        rows = tables.query(OVERVIEW).to_pylist()
        assert rows == [{"shard": i, "images": 2, "masks": 4, "first": 3 * i + 1} for i in range(3)]
        counts = tables.query("SELECT segmentation.counts AS code FROM masks WHERE shard = 2").column("code")
        assert len(counts.to_pylist()) == 4
        commit = CommitLog(dataset).latest(1)
        assert commit is not None
        storage.delete(f"{uri}/{commit.file('masks').path}")
        with pytest.raises(DamagedDatasetError, match="it is not there"):
            tables.query("SELECT sum(area) AS n FROM masks")


CONDITIONS = (
    "masks < 10",
    "masks < 10 -- few",
    "statistics.coverage < 0.5 AND country IS NULL",
    "image_id LIKE '%a%' OR id IN (1, 2)",
    "id BETWEEN 2 AND 5 AND NOT faces > 3",
    "CASE WHEN masks > 1 THEN true ELSE false END",
    "id::VARCHAR = '1' AND regexp_matches(image_id, '.')",
)
NO_CONDITIONS = {
    "": "expected a condition",
    "masks": "its type is INTEGER",
    "1": "its type is INTEGER",
    "nowhere < 1": "nowhere",
    "masks <": "syntax error",
    "true), (false": "one condition",
    "true) FROM images UNION SELECT (true": "one condition",
    "true) FROM images; DROP VIEW images; SELECT (true": "SELECT",
    "true) FROM masks WHERE (true": "syntax error",
    "EXISTS (SELECT 1)": "subquery isn't allowed",
    "masks IN (SELECT 1)": "subquery isn't allowed",
    "read_text('/etc/passwd') = 'x'": "function read_text",
    "getenv('HOME') = 'x'": "function getenv",
    "sum(masks) > 1": "function sum",
    "row_number() OVER () > 1": "isn't allowed",
    "masks = $1": "isn't allowed",
    "masks = ?": "isn't allowed",
    "id" + " + 1" * 400 + " > 0": "nested too deeply",
    "(" * 3_000 + "true" + ")" * 3_000: "depth",
}


def test_conditions(small_dataset: Path) -> None:
    rows = image_rows(small_dataset)
    with open_tables(location_of(small_dataset)) as tables:
        for text in CONDITIONS:
            condition = check_selection(tables, text)
            found = tables.query(f"SELECT id FROM images WHERE {condition} ORDER BY id").column("id").to_pylist()
            if text.startswith("masks < 10"):
                assert found == [row["id"] for row in rows if row["masks"] < 10]
        many = " OR ".join(f"id = {number}" for number in range(2, 2_000))
        assert check_selection(tables, many) == f"({many}\n)"
        for text, told in NO_CONDITIONS.items():
            with pytest.raises(UsageError, match=told) as error:
                check_selection(tables, text)
            assert "--select" in str(error.value)
