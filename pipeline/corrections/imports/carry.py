"""Masks of people in one dataset for the images of another one with the same source, size and redactions."""

from collections import Counter
from collections.abc import Iterator, Mapping, Set
from typing import Any, NamedTuple

import pyarrow.compute as pc

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.infra.storage.location import Location
from segmint.operators.audit.mask_columns import of_people
from segmint.operators.rows import Row
from segmint.operators.shards.committed_rows import read_file
from segmint.operators.shards.revise import with_holding
from segmint.operators.shards.tables import read_table
from segmint.pipeline.corrections.imports.staging import Stage

NOT_THERE = "no image of the same source"
OTHER_RELEASE = "released in another size"
OTHER_REDACTIONS = "other redactions"

_PROMPTED = ("assisted", "corrected")
"""Sources of masks that a model answered to."""


class _Release(NamedTuple):
    """What must be equal for masks to be carried, besides the source."""

    size: tuple[int, int]  # (height, width)
    regions: tuple[tuple[Any, ...], ...]


class _Annotated(NamedTuple):
    """An image with masks of people."""

    release: _Release
    row: Row  # of `IMAGES`
    masks: list[Row]  # of `MASKS`, those of people alone


def carry_masks(source: Location, begun: DatasetManifest, into: Location, stage: Stage) -> dict[str, int]:
    """Stage the masks of people in `source`, whose manifest is `begun`, for `into`; return by reason how many are not.

    `source` is read twice and the images of `into` once, shard by shard; what is in memory are the sources of the
    images with such masks. Masks go to all images of the same bytes. A mask's model is named: in another dataset its
    absence means another one.
    """
    homes = _homes(into, frozenset(found.row["source_sha256"] for found in _annotated(source)))
    left: Counter[str] = Counter()
    for found in _annotated(source):
        reasons = []
        carried = False
        for ordinal, release in homes.get(found.row["source_sha256"], ()):
            if release.size != found.release.size:
                reasons.append(OTHER_RELEASE)
            elif release.regions != found.release.regions:
                reasons.append(OTHER_REDACTIONS)
            else:
                stage.carry(
                    ordinal, release.size, _elsewhere(found.row), [_with_model(mask, begun) for mask in found.masks]
                )
                carried = True
        if not carried:
            left[reasons[0] if reasons else NOT_THERE] += len(found.masks)
    return dict(left.most_common())


def _elsewhere(row: Row) -> Row:
    """Return an image's row for another dataset, whose lanes and numbers of answers are its own."""
    return row if row["answer"] is None else {**row, "answer": {**row["answer"], "lane": None, "n": None}}


def _with_model(mask: Row, begun: DatasetManifest) -> Row:
    return mask if mask["model"] or mask["source"] not in _PROMPTED else {**mask, "model": begun.weights.sha256}


def _annotated(dataset: Location) -> Iterator[_Annotated]:
    for shard in sorted(CommitLog(dataset).committed()):
        yield from with_holding(dataset, shard, lambda commit: _annotated_in(dataset, commit)) or ()


def _annotated_in(dataset: Location, commit: Commit) -> list[_Annotated]:
    masks = read_table(read_file(dataset, commit.file("masks")), "masks")
    masks = masks.filter(of_people(masks))
    by_image: dict[int, list[Row]] = {}
    for mask in masks.to_pylist():
        by_image.setdefault(mask["ordinal"], []).append(mask)
    if not by_image:
        return []
    images = read_table(read_file(dataset, commit.file("images")), "images")
    images = images.filter(pc.is_in(images.column("ordinal"), value_set=masks.column("ordinal").combine_chunks()))
    return [_Annotated(_release(row), row, by_image[row["ordinal"]]) for row in images.to_pylist()]


def _homes(dataset: Location, sources: Set[str]) -> Mapping[str, list[tuple[int, _Release]]]:
    """Return the images of a dataset that have these sources, by SHA-256."""
    homes: dict[str, list[tuple[int, _Release]]] = {}

    def read(commit: Commit) -> list[Row]:
        table = read_table(read_file(dataset, commit.file("images")), "images")
        rows: list[Row] = table.select(["ordinal", "source_sha256", "height", "width", "regions"]).to_pylist()
        return rows

    for shard in sorted(CommitLog(dataset).committed()):
        for row in with_holding(dataset, shard, read) or ():
            if row["source_sha256"] in sources:
                homes.setdefault(row["source_sha256"], []).append((row["ordinal"], _release(row)))
    return homes


def _release(row: Row) -> _Release:
    names = ("kind", "x", "y", "w", "h", "source")
    regions = sorted(tuple(region[name] for name in names) for region in row["regions"] or ())
    return _Release((row["height"], row["width"]), tuple(regions))
