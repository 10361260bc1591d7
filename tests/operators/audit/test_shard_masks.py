"""The masks of a shard by image: counts, rows, and which images nothing is wrong with."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from segmint.catalogs.findings import FindingLocation
from segmint.operators.audit.masks import MaskLimits
from segmint.operators.audit.rows import ShardTables
from segmint.operators.audit.shard_masks import ShardMasks
from segmint.operators.rows import MASKS, SCHEMAS, to_table
from segmint.operators.shards.put import annotations_json

LIMITS = MaskLimits(0.7, 0.8)


def tables_of(dataset: Path) -> ShardTables:
    """The tables of all shards together."""
    read = {
        kind: pa.concat_tables([pq.read_table(path, schema=schema) for path in sorted((dataset / kind).iterdir())])
        for kind, schema in SCHEMAS.items()
    }
    return ShardTables(**read, places={kind: FindingLocation(f"{kind}/all.parquet") for kind in SCHEMAS})


def with_masks(tables: ShardTables, rows: list) -> ShardTables:
    return ShardTables(tables.images, to_table(rows, MASKS), tables.rejects, tables.places)


def test_every_image_has_its_own_masks(small_dataset: Path) -> None:
    tables = tables_of(small_dataset)
    rows = tables.masks.to_pylist()
    images = tables.images.to_pylist()
    masks = ShardMasks(tables, LIMITS)
    assert sum(masks.count(image["ordinal"]) for image in images) == len(rows) > 6
    for image in images:
        own = [row for row in rows if row["ordinal"] == image["ordinal"]]
        assert masks.table_rows(image["ordinal"]) == own
        assert masks.count(image["ordinal"]) == len(own) == image["masks"]
        assert masks.sound(image["ordinal"])
        size = image["height"], image["width"]
        expected = annotations_json(image["id"], "a.jpg", size, own)
        assert annotations_json(image["id"], "a.jpg", size, masks.annotations(image["ordinal"])) == expected


def test_one_wrong_mask_is_its_image_s_alone(small_dataset: Path) -> None:
    tables = tables_of(small_dataset)
    ordinals = [image["ordinal"] for image in tables.images.to_pylist()]
    rows = tables.masks.to_pylist()
    for index, row in enumerate(rows):
        masks = ShardMasks(with_masks(tables, [*rows[:index], {**row, "bbox": None}, *rows[index + 1 :]]), LIMITS)
        assert [ordinal for ordinal in ordinals if not masks.sound(ordinal)] == [row["ordinal"]]
        assert {**row, "bbox": None} in masks.annotations(row["ordinal"])


def test_images_without_masks_are_sound(small_dataset: Path) -> None:
    tables = tables_of(small_dataset)
    rows = tables.masks.to_pylist()
    left = [row for row in rows if row["ordinal"] == rows[-1]["ordinal"]]
    for kept in (left, []):
        masks = ShardMasks(with_masks(tables, kept), LIMITS)
        for ordinal in tables.images.column("ordinal").to_pylist():
            own = [row for row in kept if row["ordinal"] == ordinal]
            assert (masks.count(ordinal), len(masks.annotations(ordinal))) == (len(own), len(own))
            assert masks.sound(ordinal)


def test_thresholds_and_sizes_count(small_dataset: Path) -> None:
    tables = tables_of(small_dataset)
    first = tables.images.column("ordinal")[0].as_py()
    assert not ShardMasks(tables, MaskLimits(1.4, 0.8)).sound(first)
    assert not ShardMasks(tables, MaskLimits(0.7, 0.9999)).sound(first)
    for width in (None, 239):
        images = [{**row, "width": width} for row in tables.images.to_pylist()]
        other = ShardTables(to_table(images, SCHEMAS["images"]), tables.masks, tables.rejects, tables.places)
        assert not ShardMasks(other, LIMITS).sound(first)
