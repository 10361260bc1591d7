"""Catalogs in several files: which files count, what their folders say, and what is refused instead of being lost."""

import hashlib
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmint.catalogs.parquet import SOURCE
from segmint.catalogs.source.check import check
from segmint.catalogs.source.conform import InvalidValue
from segmint.catalogs.source.files import catalog_files, catalog_sha256, require_catalog, unchanged
from segmint.catalogs.source.readers import read_catalog
from segmint.catalogs.source.sampling import WholeCatalog, count_rows, read_rows_at
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import ObjectChangedError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import absolute_catalog, plain_forms, relative_to
from tests.support.locations import location_of


def put(path: Path, **columns: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def catalog(folder: Path) -> Location:
    return Location(Storage(), f"{folder}/")


def rows_of(folder: Location) -> list[dict[str, Any]]:
    return pa.Table.from_batches(list(read_catalog(folder)), schema=SOURCE).to_pylist()


@pytest.fixture
def spark(tmp_path: Path) -> Path:
    """A folder as Spark's `partitionBy("license", "valid_until")` leaves it."""
    folder = tmp_path / "rows"
    put(folder / "license=CC0-1.0" / "valid_until=2030-01-02" / "part-1.snappy.parquet", uri=["b.jpg", "c.jpg"])
    put(folder / "license=CC0-1.0" / "valid_until=__HIVE_DEFAULT_PARTITION__" / "part-0.parquet", uri=["d.jpg"])
    put(folder / "license=LicenseRef-a%2Fb" / "valid_until=2030-01-02" / "part-0.PARQUET", uri=["e.jpg"])
    put(folder / "a.parquet", uri=["a.jpg"], license=["MIT"])
    put(folder / "_tmp" / "x.parquet", uri=["hidden.jpg"], license=["MIT"])
    put(folder / ".x.parquet", uri=["hidden.jpg"], license=["MIT"])
    (folder / "_SUCCESS").touch()
    (folder / ".a.parquet.crc").write_bytes(b"crc")
    (folder / "license=CC0-1.0_$folder$").touch()
    (folder / "a.jpg").write_bytes(b"a photograph")
    (folder / "a.jpg.json").write_text("{}")
    (folder / "0001.tar").write_bytes(b"photographs")
    return folder


def test_all_files_are_one_catalog_in_order_of_name(spark: Path) -> None:
    found = [(row["uri"], row["license"], row["valid_until"]) for row in rows_of(catalog(spark))]
    day = date(2030, 1, 2)
    assert found == [
        ("a.jpg", "MIT", None),
        ("b.jpg", "CC0-1.0", day),
        ("c.jpg", "CC0-1.0", day),
        ("d.jpg", "CC0-1.0", None),
        ("e.jpg", "LicenseRef-a/b", day),
    ]
    assert count_rows(catalog(spark)) == 5
    assert read_rows_at(catalog(spark), [0, 2, 4])["uri"].to_pylist() == ["a.jpg", "c.jpg", "e.jpg"]
    assert read_rows_at(catalog(spark), [2, 4])["ordinal"].to_pylist() == [2, 4]
    assert check(catalog(spark)).rows == 5


def test_the_hash_is_of_the_names_and_contents(spark: Path, s3_bucket: str, s3_options: dict[str, Any]) -> None:
    names = sorted(str(path.relative_to(spark)) for path in spark.rglob("*") if path.suffix.lower() == ".parquet")
    names = [name for name in names if not name.startswith((".", "_"))]
    lines = [f"{hashlib.sha256((spark / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    first = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert len(names) == 4
    assert catalog_sha256(catalog(spark)) == first

    bucket = Location(Storage(s3_options), f"s3://{s3_bucket}/spark/")
    for path in spark.rglob("*"):
        if path.is_file():
            (bucket / str(path.relative_to(spark))).put(path.read_bytes())
    assert catalog_sha256(bucket) == first
    assert rows_of(bucket) == rows_of(catalog(spark))

    with pytest.raises(ObjectChangedError), unchanged(bucket):
        (bucket / "b.parquet").put((spark / "a.parquet").read_bytes())
    (spark / "a.parquet").rename(spark / "b.parquet")
    assert catalog_sha256(catalog(spark)) != first


def test_a_single_file_is_pinned_as_before(tmp_path: Path) -> None:
    put(tmp_path / "c.parquet", uri=["a"], license=["MIT"])
    assert catalog_sha256(location_of(tmp_path / "c.parquet")) == (
        hashlib.sha256((tmp_path / "c.parquet").read_bytes()).hexdigest()
    )


def test_relative_uris_are_relative_to_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("rows/", "./rows//", f"{tmp_path}/rows/", absolute_catalog("rows/")):
        assert relative_to(folder, "photos/a.jpg") == f"{tmp_path}/rows/photos/a.jpg"
    assert relative_to("s3://bucket/rows/", "photos/a.jpg") == "s3://bucket/rows/photos/a.jpg"
    assert relative_to("s3://bucket/", "a.jpg") == "s3://bucket/a.jpg"
    assert plain_forms("s3://bucket/rows/a.jpg", "s3://bucket/rows/") == {"s3://bucket/rows/a.jpg", "a.jpg"}
    assert absolute_catalog("rows/") == f"{tmp_path}/rows/"
    assert absolute_catalog("s3://bucket/rows") == "s3://bucket/rows"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("more.csv", "'more.csv' can't be read: a catalog in several files consists of files whose names end in"),
        ("part-00000", "'part-00000' can't be read"),
        ("sub/more.jsonl", "'sub/more.jsonl' can't be read"),
        ("rows.json", "'rows.json' can't be read"),
        ("_temporary/0/task/part-0.parquet", "a job is still writing it"),
        ("_delta_log/0000.json", "is a table of Delta Lake, whose folder also contains files of earlier versions"),
        ("metadata/v1.metadata.json", "is a table of Iceberg"),
        (".hoodie/hoodie.properties", "is a table of Hudi"),
        ("license=MIT/license=CC0-1.0/x.parquet", "two folders of .* give it the column 'license'"),
        ("license=%FF/x.parquet", "the folder 'license=%FF' of .* is not UTF-8"),
    ],
)
def test_what_would_lose_or_confuse_rows_is_refused(spark: Path, name: str, why: str) -> None:
    (spark / name).parent.mkdir(parents=True, exist_ok=True)
    (spark / name).touch()
    for use in (catalog_files, count_rows, rows_of, catalog_sha256, check):
        with pytest.raises(UsageError, match=why):
            use(catalog(spark))


def test_links_to_folders_are_refused_and_links_to_files_are_read(spark: Path, tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "z.parquet", uri=["z.jpg"], license=["MIT"])
    (spark / "z.parquet").symlink_to(tmp_path / "elsewhere" / "z.parquet")
    assert [row["uri"] for row in rows_of(catalog(spark))][-1] == "z.jpg"
    (spark / "_logs").symlink_to(tmp_path / "elsewhere")
    assert len(catalog_files(catalog(spark))) > 0
    (spark / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="'more' can't be read: a link to a folder"):
        catalog_files(catalog(spark))
    (spark / "more").unlink()
    (spark / "loop.parquet").symlink_to("loop.parquet")
    with pytest.raises(UsageError, match=r"'loop\.parquet' can't be read: a circular link"):
        catalog_files(catalog(spark))


def test_an_empty_or_absent_folder_is_refused(tmp_path: Path) -> None:
    for name in ("absent", "."):
        with pytest.raises(UsageError, match="does not exist, or contains no Parquet files"):
            require_catalog(catalog(tmp_path / name))
    with pytest.raises(UsageError, match="or in / if it is a folder of Parquet files"):
        read_catalog(location_of(tmp_path))
    (tmp_path / "rows.parquet").mkdir()
    with pytest.raises(UsageError, match="If it is a folder of Parquet files, end its name with /"):
        require_catalog(location_of(tmp_path / "rows.parquet"))


def test_a_file_that_is_not_complete_is_named(spark: Path) -> None:
    whole = (spark / "a.parquet").read_bytes()
    for data in (b"", whole[:-10]):
        (spark / "a.parquet").write_bytes(data)
        with pytest.raises(UsageError, match=r"rows/a\.parquet cannot be read as Parquet"):
            rows_of(catalog(spark))


def test_columns_may_differ_but_not_be_given_twice(spark: Path) -> None:
    put(spark / "license=CC0-1.0" / "z.parquet", uri=["z.jpg"], opt_out=[True])
    assert [(row["uri"], row["opt_out"]) for row in rows_of(catalog(spark))][-2:] == [("z.jpg", True), ("e.jpg", None)]
    put(spark / "license=CC0-1.0" / "z.parquet", uri=["z.jpg"], license=["MIT"])
    said = r"z\.parquet: the column 'license' occurs 2 times, including folders named license=…"
    with pytest.raises(UsageError, match=said):
        rows_of(catalog(spark))
    put(spark / "license=CC0-1.0" / "z.parquet", license=["MIT"])
    with pytest.raises(UsageError, match=said):
        rows_of(catalog(spark))
    (spark / "license=CC0-1.0" / "z.parquet").unlink()
    put(spark / "License=MIT" / "z.parquet", uri=["z.jpg"])
    with pytest.raises(UsageError, match="'License' would be ignored, because the column is 'license'"):
        rows_of(catalog(spark))


def test_an_invalid_value_is_named_by_its_row_in_the_catalog_and_in_its_file(spark: Path) -> None:
    put(spark / "b.parquet", uri=["x.jpg", "y.jpg"], license=["MIT", "MIT"], country=["SE", "Sweden"])
    problems: list[InvalidValue] = []
    list(read_catalog(catalog(spark), problems.append))
    (problem,) = problems
    assert problem.row == 3
    assert str(problem).startswith(f"{spark}/ (row 2 of b.parquet), row 3, column country: found 'SWEDEN'")
    assert check(catalog(spark)).bad_values.rows == [3]
    with pytest.raises(UsageError, match=r"row 2 of b\.parquet"):
        read_rows_at(catalog(spark), [2])


def test_the_whole_catalog_has_the_columns_of_all_files(tmp_path: Path) -> None:
    put(tmp_path / "day=3" / "a.parquet", uri=[b"a"], license=["MIT"], size=[3], note=pa.nulls(1))
    put(tmp_path / "b.parquet", uri=["b"], license=["MIT"], note=["seen"], image_id=[7])
    whole = WholeCatalog(catalog(tmp_path))
    found = [row for batch in whole.batches() for row in batch.to_pylist()]
    assert found == [
        {"uri": "b", "license": "MIT", "image_id": "7", "note": "seen", "size": None, "day": None},
        {"uri": "a", "license": "MIT", "image_id": None, "note": None, "size": 3, "day": "3"},
    ]
    put(tmp_path / "c.parquet", uri=["c"], license=["MIT"], size=["large"])
    with pytest.raises(UsageError, match=r"have different types: .*size.*(string|int64).*(string|int64)"):
        WholeCatalog(catalog(tmp_path))


def test_binary_text_integer_ids_and_timestamps_are_converted(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    berlin = timezone(timedelta(hours=1))
    moments = [datetime(2030, 1, 2), datetime(2030, 1, 2, 23, 59, 59), datetime(9999, 12, 31), None]
    table = pa.table(
        {
            "uri": pa.array([b"a", "å".encode(), b"c", b"d"], pa.large_binary()),
            "license": pa.array([b" CC0-1.0 "] * 4).dictionary_encode(),
            "image_id": pa.array([1, None, 2**64 - 1, 0], pa.uint64()),
            "valid_until": pa.array(moments, pa.timestamp("us")),
        }
    )
    for options in ({}, {"use_deprecated_int96_timestamps": True}):
        pq.write_table(table, path, **options)
        (batch,) = read_catalog(location_of(path))
        assert batch["uri"].to_pylist() == ["a", "å", "c", "d"]
        assert batch["license"].to_pylist() == ["CC0-1.0"] * 4
        assert batch["image_id"].to_pylist() == ["1", None, str(2**64 - 1), "0"]
        days = [date(2030, 1, 2), date(2030, 1, 2), date(9999, 12, 31), None]
        assert batch["valid_until"].to_pylist() == days

    zoned = pa.array([datetime(2030, 1, 2, tzinfo=berlin)], pa.timestamp("ms", "Europe/Berlin"))
    pq.write_table(pa.table({"uri": ["a"], "license": ["MIT"], "valid_until": zoned}), path)
    (batch,) = read_catalog(location_of(path))
    assert batch["valid_until"].to_pylist() == [date(2030, 1, 1)]  # its day in UTC, a day too early rather than late


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("license", pa.array([4]), "column license, from row 1: its type is int64; expected string"),
        ("image_id", pa.array([4.0]), "column image_id, from row 1: its type is double; expected string or an integer"),
        ("sha256", pa.array([bytes(32)], pa.binary(32)), r"column sha256.*fixed_size_binary\[32\]; expected string"),
        ("caption", pa.array([b"\xff"]), "column caption, rows 1 to 1: the text is not UTF-8"),
        ("caption", pa.array([datetime(2030, 1, 2)]), "column caption.*timestamp.*; expected string"),
        ("opt_out", pa.array([1]), "column opt_out.*int64; expected bool"),
        ("valid_until", pa.array([20300102]), "column valid_until.*int64; expected a date, a timestamp, or text"),
    ],
)
def test_other_types_are_refused_with_the_column(tmp_path: Path, column: str, values: pa.Array, said: str) -> None:
    columns = {"uri": pa.array(["a"]), "license": pa.array(["MIT"]), column: values}
    pq.write_table(pa.table(columns), tmp_path / "c.parquet")
    with pytest.raises(UsageError, match=said):
        list(read_catalog(location_of(tmp_path / "c.parquet")))
