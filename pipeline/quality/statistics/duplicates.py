"""Masks that are nearly the same within an image, in a sample of the images."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import duckdb

from segmint.catalogs.dataset.tables import read_query
from segmint.operators.audit.near_duplicates import near_duplicates
from segmint.pipeline.quality.statistics.values import NearDuplicates, SimilarMasks

THRESHOLD = 0.9
"""IoU of pixels from which two masks are nearly the same; the paper's NMS compares boxes, at 0.7."""

_MOST_SHARDS = 32
"""The sample comes from so many shards: reading a little of every shard is reading all of them."""

_EXAMPLES = 100


def near_duplicate_statistics(
    connection: duckdb.DuckDBPyConnection, images_by_shard: Mapping[int, int], sample: int
) -> NearDuplicates:
    """Pairs of near-duplicates in about `sample` images, at most: evenly spread over shards, and within each."""
    sums = _Sums()
    shards = [shard for shard in sorted(images_by_shard) if images_by_shard[shard]]
    chosen = _spread(shards, min(_MOST_SHARDS, sample))
    for index, shard in enumerate(chosen):
        quota = sample * (index + 1) // len(chosen) - sample * index // len(chosen)
        _add_shard(connection, shard, quota, sums)
    return NearDuplicates(sums.images, THRESHOLD, sums.masks, sums.pairs, tuple(sums.examples))


@dataclass
class _Sums:
    images: int = 0
    masks: int = 0
    pairs: int = 0
    examples: list[SimilarMasks] = field(default_factory=list)


def _add_shard(connection: duckdb.DuckDBPyConnection, shard: int, quota: int, sums: _Sums) -> None:
    rows = read_query(connection, f"SELECT ordinal FROM image_numbers WHERE shard = {shard} ORDER BY ordinal")
    ordinals = _spread(rows.column("ordinal").to_pylist(), quota)
    if not ordinals:
        return
    sums.images += len(ordinals)
    for masks in _masks_of(connection, shard, ordinals).values():
        sums.masks += len(masks)
        size = masks[0]["size"]
        if any(mask["size"] != size for mask in masks):
            continue  # a finding of the audit
        pairs = near_duplicates((size[0], size[1]), [mask["counts"] for mask in masks], THRESHOLD)
        sums.pairs += len(pairs)
        for pair in pairs[: _EXAMPLES - len(sums.examples)]:
            one, other = (masks[place]["annotation_id"] for place in (pair.first, pair.second))
            sums.examples.append(SimilarMasks(masks[0]["id"], (one, other), round(pair.iou, 4)))


def _masks_of(connection: duckdb.DuckDBPyConnection, shard: int, ordinals: list[int]) -> dict[int, list[Any]]:
    """The sampled images' masks in a shard, by ordinal, in their order."""
    rows = read_query(
        connection,
        "SELECT ordinal, id, annotation_id, segmentation.size AS size, segmentation.counts AS counts FROM masks "
        f"WHERE shard = {shard} AND ordinal IN ({', '.join(map(str, ordinals))}) ORDER BY ordinal, annotation_id",
    )
    found: dict[int, list[Any]] = {}
    for row in rows.to_pylist():
        found.setdefault(row["ordinal"], []).append(row)
    return found


def _spread(values: list[int], wanted: int) -> list[int]:
    """`wanted` of the values, evenly spread; all of them where there are no more."""
    number = min(wanted, len(values))
    return [values[(2 * index + 1) * len(values) // (2 * number)] for index in range(number)]
