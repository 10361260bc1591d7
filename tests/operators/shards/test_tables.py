"""Tables of a shard: read as they were written, and refused with other columns."""

import pyarrow as pa
import pytest

from segmint.catalogs.layout import DamagedDatasetError
from segmint.catalogs.parquet import table_bytes
from segmint.operators.rows import MASKS, SCHEMAS
from segmint.operators.shards.put import build_shard_files
from segmint.operators.shards.revise import read_table
from tests.support.described_rows import accepted_row, described, rejected_row

ROWS = described([accepted_row(0), rejected_row(1)]).to_pylist()


def test_tables_are_read_with_the_columns_that_were_written() -> None:
    files = build_shard_files(ROWS, with_images=True)
    for kind, schema in SCHEMAS.items():
        assert read_table(getattr(files, kind), kind).schema.equals(schema)
    (image,), masks = read_table(files.images, "images").to_pylist(), read_table(files.masks, "masks").to_pylist()
    assert image["next_mask"] == 2
    assert [image["funnel"][step] for step in ("written", "holes_filled")] == [2, 2]
    assert {mask["source"] for mask in masks} == {"automatic"}


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (MASKS.remove(MASKS.get_field_index("label")), "other columns: label"),
        (MASKS.set(MASKS.get_field_index("source"), pa.field("source", pa.int64())), "other columns: source"),
        (MASKS.append(pa.field("mine", pa.string())), "other columns: mine"),
        (pa.schema([*MASKS][::-1]), "in another order"),
    ],
)
def test_a_table_with_other_columns_is_refused_with_what_differs(schema: pa.Schema, says: str) -> None:
    with pytest.raises(DamagedDatasetError, match=says):
        read_table(table_bytes(schema.empty_table(), schema), "masks")
