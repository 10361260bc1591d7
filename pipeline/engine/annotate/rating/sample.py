"""Draws the masks that people rate: as many of each source, at random, and in another order for each rater."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from segmint.catalogs.dataset.tables import DatasetTables
from segmint.infra.errors import UsageError
from segmint.pipeline.engine.annotate.selection import check_selection

LEAST_AREA = 24 * 24
"""Pixels of the smallest mask that is rated: smaller ones are hard to judge (SAM paper, appendix E)."""


class SampledMask(NamedTuple):
    """A mask to rate: its image and its annotation id."""

    image: int
    mask: int


@dataclass(frozen=True)
class SampleOptions:
    """How many masks, of which images, by which seed; `select` is a condition on the columns of `images`."""

    masks: int = 200
    seed: int = 0
    select: str | None = None


def quotas(counts: Mapping[str, int], wanted: int) -> dict[str, int]:
    """Return how many masks of each source are drawn: equal numbers, and more of others where there are not so many."""
    given: dict[str, int] = {}
    for place, source in enumerate(sorted(counts, key=lambda source: (counts[source], source))):
        share = (wanted - sum(given.values())) // (len(counts) - place)
        given[source] = min(counts[source], share)
    return given


def draw_sample(tables: DatasetTables, options: SampleOptions) -> list[SampledMask]:
    """Draw the masks, in order of their numbers; the same dataset, options and seed give the same ones.

    Raises `UsageError` for a condition that cannot be read, and if there is no mask to rate.
    """
    if options.masks < 1:
        raise UsageError(f"--masks {options.masks}: expected 1 or more")
    condition = "true" if options.select is None else check_selection(tables, options.select)
    among = f"area >= {LEAST_AREA} AND id IN (SELECT id FROM images WHERE {condition})"
    rows = tables.query(f"SELECT source, count(*) AS masks FROM masks WHERE {among} GROUP BY ALL")
    counts = {row["source"]: int(row["masks"]) for row in rows.to_pylist()}
    if not counts:
        raise UsageError(f"no mask to rate: none of {LEAST_AREA} pixels or more fits --select")
    drawn: list[SampledMask] = []
    for source, number in quotas(counts, options.masks).items():
        found = tables.query(
            f"SELECT id, annotation_id FROM masks WHERE {among} AND source = $1 "
            f"ORDER BY md5('{options.seed:d}:' || annotation_id), annotation_id LIMIT {number:d}",
            [source],
        )
        drawn += [SampledMask(row["id"], row["annotation_id"]) for row in found.to_pylist()]
    return sorted(drawn, key=lambda each: each.mask)


def order_for(sample: Sequence[SampledMask], rater: str, seed: int) -> list[SampledMask]:
    """Return the masks in a rater's own random order."""

    def key(each: SampledMask) -> bytes:
        return hashlib.sha256(f"{seed}:{each.mask}:{rater}".encode()).digest()

    return sorted(sample, key=key)
