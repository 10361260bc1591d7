"""Tables of both formats: read with the newest columns, and refused where they are of none."""

import pyarrow as pa
import pytest

from segmint.catalogs.layout import SCHEMA_VERSIONS, DamagedDatasetError
from segmint.catalogs.parquet import table_bytes
from segmint.operators.schemas import IMAGES, MASKS, SCHEMAS, SCHEMAS_OF
from segmint.operators.shards.files import build_shard_files
from segmint.operators.shards.tables import read_table, read_versioned, shard_version
from tests.support.described_rows import accepted_row, described, rejected_row

ROWS = described([accepted_row(0), rejected_row(1)]).to_pylist()


@pytest.mark.parametrize("version", SCHEMA_VERSIONS)
def test_each_format_is_read_with_the_newest_columns(version: int) -> None:
    files = build_shard_files(ROWS, with_images=True, schema_version=version)
    for kind, schema in SCHEMAS.items():
        found = read_versioned(getattr(files, kind), kind)
        assert found.table.schema.equals(schema)
        assert found.schema_version == (1 if kind == "rejects" else version)
    (image,), masks = read_table(files.images, "images").to_pylist(), read_table(files.masks, "masks").to_pylist()
    assert image["next_mask"] == (2 if version == 2 else None)
    assert [image["funnel"][step] for step in ("written", "holes_filled")] == [2, 2 if version == 2 else None]
    assert {mask["source"] for mask in masks} == {"automatic" if version == 2 else None}


def test_both_formats_have_the_same_tar() -> None:
    one, two = (build_shard_files(ROWS, with_images=True, schema_version=version) for version in SCHEMA_VERSIONS)
    assert (one.tar, one.rejects, one.counts) == (two.tar, two.rejects, two.counts)
    assert one.masks != two.masks


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (MASKS.remove(MASKS.get_field_index("label")), "other columns: label"),
        (MASKS.set(MASKS.get_field_index("source"), pa.field("source", pa.int64())), "other columns: source"),
        (SCHEMAS_OF[1]["masks"].set(5, pa.field("bbox", pa.string())), "other columns: bbox"),
        (SCHEMAS_OF[1]["masks"].append(pa.field("mine", pa.string())), "other columns: mine"),
        (pa.schema([*MASKS][::-1]), "in another order"),
    ],
)
def test_a_table_of_no_format_is_refused_with_what_differs_from_the_nearest(schema: pa.Schema, says: str) -> None:
    with pytest.raises(DamagedDatasetError, match=says):
        read_table(table_bytes(schema.empty_table(), schema), "masks")


def test_the_tables_of_a_shard_have_one_format() -> None:
    assert shard_version({"images": 2, "masks": 2, "rejects": 1}) == 2
    with pytest.raises(DamagedDatasetError, match="its images are of format 2 and its masks of format 1"):
        shard_version({"images": 2, "masks": 1, "rejects": 1})


def test_added_columns_may_be_null() -> None:
    for newest, oldest in ((IMAGES, SCHEMAS_OF[1]["images"]), (MASKS, SCHEMAS_OF[1]["masks"])):
        assert newest.names[: len(oldest.names)] == oldest.names
        assert all(newest.field(name).nullable for name in newest.names[len(oldest.names) :])
