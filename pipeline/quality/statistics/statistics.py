"""Statistics of a dataset in the style of the Segment Anything paper, computed with SQL over its Parquet files.

docs/report.md defines each statistic. Masks and images are each read twice. Memory stays bounded: only the table of
per-image numbers grows with the dataset, and DuckDB spills it to disk once it exceeds the memory limit.

Drifting shards and outlier images, from the statistics that the build wrote for each image.

Sums about redaction over a dataset's images.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import duckdb

from segmint.catalogs.dataset.commits import MOST_REDACTED
from segmint.catalogs.dataset.regions import HIGH_SHARE, RedactionTotals
from segmint.catalogs.dataset.tables import DatasetTables, damage_named, read_query
from segmint.catalogs.licenses import INCOMES, REGIONS, Country, countries
from segmint.operators.audit.masks import near_duplicates
from segmint.operators.rows import FUNNEL_STEPS, Row
from segmint.pipeline.quality.statistics.comparison import MASKS_PER_IMAGE, PAPER, PaperGroup
from segmint.pipeline.quality.statistics.masks import mask_statistics, masks_by_label, masks_by_source
from segmint.pipeline.quality.statistics.values import (
    BinImages,
    Bins,
    Cleanup,
    CountryImages,
    DriftedShard,
    FunnelStep,
    Geography,
    GroupImages,
    Histogram,
    LabelMasks,
    LicenseImages,
    MasksPerImage,
    NearDuplicates,
    Outlier,
    ProviderImages,
    SimilarMasks,
    Statistics,
    as_counts,
    rounded,
)

METRICS = (
    "masks",
    "coverage",
    "mean_predicted_iou",
    "mean_stability_score",
    "mean_relative_size",
    "mean_concavity",
)
"""Columns of the table `image_numbers`, with one value per image."""

DRIFT_Z = 5.0
"""Robust z-score at which a shard is reported as drifting."""

LEAST_IMAGES = 30
"""Minimum number of images to judge a shard, or a dataset's images. Means of fewer images aren't normally
distributed."""

LEAST_SHARDS = 3

FENCES = 3.0
"""Distance from the nearest quartile, in interquartile ranges, beyond which an image is an outlier (Tukey's "far
out")."""

OUTLIERS = 5
"""Maximum number of images reported per metric and side."""

_MOST_DRIFTS = 100
_QUARTILE_IMAGES = 200_000
_NORMAL = 1.4826  # ratio of a normal distribution's standard deviation to its median absolute deviation


def drift(connection: duckdb.DuckDBPyConnection) -> tuple[DriftedShard, ...]:
    """Find the shards whose mean of a metric drifts from the other shards' means, furthest first.

    Reads the table `image_numbers`.
    """
    sums = ", ".join(f"count({m}) AS n_{m}, avg({m}) AS mean_{m}, var_samp({m}) AS var_{m}" for m in METRICS)
    rows = read_query(connection, f"SELECT shard, {sums} FROM image_numbers GROUP BY shard ORDER BY shard").to_pylist()
    found = [drifted for metric in METRICS for drifted in _drift_of(metric, rows)]
    return tuple(sorted(found, key=lambda one: -abs(one.z))[:_MOST_DRIFTS])


def _drift_of(metric: str, rows: Sequence[Row]) -> list[DriftedShard]:
    """Find the shards with a large robust z-score for a metric.

    The z-score is a shard's deviation from the median of all shards' means, divided by the spread that is expected for
    a shard of its size. The expected spread combines sampling error with the spread between shards. The latter is
    estimated from the median absolute deviation of the means, minus the sampling error of a typical mean. As a result,
    small shards don't raise a false alarm, and neither does a catalog whose shards differ naturally.
    """
    judged = [row for row in rows if row[f"n_{metric}"] >= LEAST_IMAGES]
    if len(judged) < LEAST_SHARDS:
        return []
    center = median(row[f"mean_{metric}"] for row in judged)
    within = median(row[f"var_{metric}"] for row in judged)
    spread = _NORMAL * median(abs(row[f"mean_{metric}"] - center) for row in judged)
    between = max(0.0, spread**2 - within / median(row[f"n_{metric}"] for row in judged))
    least = (1e-6 * center) ** 2 + 1e-18  # so that a difference in the last digits isn't drift if nothing else varies
    found = []
    for row in judged:
        mean = row[f"mean_{metric}"]
        z = (mean - center) / math.sqrt(between + within / row[f"n_{metric}"] + least)
        if abs(z) >= DRIFT_Z:
            found.append(DriftedShard(metric, row["shard"], rounded(mean), rounded(center), round(z, 2)))
    return found


def outliers(connection: duckdb.DuckDBPyConnection) -> tuple[Outlier, ...]:
    """Find each metric's outliers in the table `image_numbers`. Only the most extreme outliers are returned.

    Of equal values, the first images are returned.

    Quartiles are computed from at most about 200,000 images, spread evenly over the dataset.
    """
    fences = _fences(connection)
    if not fences:
        return ()
    picks = ", ".join(
        f"{pick}({{'ordinal': ordinal, 'id': id, 'shard': shard, 'value': {metric}}}, "
        f"{{'value': {metric}, 'order': {order}}}, {OUTLIERS}) "
        f"FILTER (WHERE {metric} {sign} {fences[metric][side]!r}) AS {side}_{metric}"
        for metric in fences
        for side, pick, sign, order in (("low", "min_by", "<", "ordinal"), ("high", "max_by", ">", "-ordinal"))
    )
    row = read_query(connection, f"SELECT {picks} FROM image_numbers").to_pylist()[0]
    found = []
    for metric, fence in fences.items():
        for side, word in (("low", "under"), ("high", "over")):
            for image in row[f"{side}_{metric}"] or []:
                reason = (
                    f"{word} {fence[side]:.4g}, {FENCES:g} interquartile ranges outside the images' middle half "
                    f"({fence['first']:.4g} to {fence['third']:.4g})"
                )
                found.append({**image, "metric": metric, "value": rounded(image["value"]), "reason": reason})
    return _named(connection, found)


def _fences(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, float]]:
    """Compute the quartiles of each metric that varies, and the bounds beyond which an image is an outlier."""
    images = read_query(connection, "SELECT count(*) AS n FROM image_numbers").to_pylist()[0]["n"]
    if images < LEAST_IMAGES:
        return {}
    every = -(-images // _QUARTILE_IMAGES)
    quartiles = ", ".join(f"quantile_cont({metric}::DOUBLE, [0.25, 0.75]) AS {metric}" for metric in METRICS)
    row = read_query(connection, f"SELECT {quartiles} FROM image_numbers WHERE ordinal % {every} = 0").to_pylist()[0]
    fences = {}
    for metric in METRICS:
        first, third = row[metric] or (0.0, 0.0)
        reach = FENCES * (third - first)
        if reach > 0:
            fences[metric] = {"first": first, "third": third, "low": first - reach, "high": third + reach}
    return fences


def _named(connection: duckdb.DuckDBPyConnection, found: Sequence[Mapping[str, Any]]) -> tuple[Outlier, ...]:
    """Add the `image_id` of each outlier's image."""
    if not found:
        return ()
    ordinals = sorted({image["ordinal"] for image in found})
    shards = sorted({image["shard"] for image in found})
    rows = read_query(
        connection,
        f"SELECT ordinal, image_id FROM images WHERE shard IN ({', '.join(map(str, shards))}) "
        f"AND ordinal IN ({', '.join(map(str, ordinals))})",
    ).to_pylist()
    names = {row["ordinal"]: row["image_id"] for row in rows}
    return tuple(
        Outlier(
            id=image["id"],
            shard=image["shard"],
            image_id=names.get(image["ordinal"]),
            metric=image["metric"],
            value=image["value"],
            reason=image["reason"],
        )
        for image in found
    )


COVERAGE = Bins(0, 1, 20)

_CLEANUP = ("cleaned", "removed_by_cleanup", "holes_filled", "islands_removed", "redaction_artifacts")
_REJECTS = "SELECT reason, count(*) AS n FROM rejects GROUP BY reason ORDER BY n DESC, reason"
_GROUPS = {"country": 0b011, "license": 0b101, "provider": 0b110, "": 0b111}


def compute_statistics(tables: DatasetTables, sample: int) -> Statistics:
    """Compute all statistics. A statistic is None if it is unknown, as many are for foreign data.

    Near-duplicate masks are searched in about `sample` images. Raises `DamagedDatasetError` for an unreadable file.
    """
    with tables.connection.cursor() as connection:
        _make_image_numbers(connection)
        groups = _groups(connection)
        whole = groups[""][0]
        by_shard = _counted(connection, "SELECT shard, count(*) AS n FROM image_numbers GROUP BY shard")
        by_masks = _counted(connection, "SELECT masks, count(*) AS n FROM image_numbers GROUP BY masks")
        rejects = rejected = sources = None
        labels: tuple[LabelMasks, ...] = ()
        if tables.kind == "segmint":
            rejects = _counted(connection, _REJECTS)
            rejected = sum(rejects.values())
            sources = masks_by_source(connection)
            labels = masks_by_label(connection)
        funnel, cleanup = _funnel(whole)
        return Statistics(
            **vars(mask_statistics(connection)),
            images=whole["images"],
            sources=sources,
            labels=labels,
            rejected=rejected,
            rejected_by_reason=rejects,
            masks_per_image=masks_per_image(by_masks),
            without_masks=by_masks.get(0, 0),
            coverage=_coverage(connection),
            funnel=funnel,
            cleanup=cleanup,
            near_duplicates=near_duplicate_statistics(connection, by_shard, sample),
            geography=geography({row["country"]: (row["images"], row["masks"]) for row in groups["country"]}),
            licenses=tuple(LicenseImages(name, images) for name, images in _ranked(groups, "license")),
            providers=tuple(ProviderImages(name, images) for name, images in _ranked(groups, "provider")),
            drift=drift(connection),
            outliers=outliers(connection),
        )


def masks_per_image(images_by_masks: Mapping[int, int]) -> MasksPerImage:
    """Compute the mean, the median, and the paper's bins from the number of images per number of masks."""
    images = sum(images_by_masks.values())
    total = sum(masks * count for masks, count in images_by_masks.items())
    bins = []
    for bin in MASKS_PER_IMAGE:
        held = sum(count for masks, count in images_by_masks.items() if bin.holds(masks))
        bins.append(BinImages(bin.label, held))
    return MasksPerImage(_ratio(total, images), _median(images_by_masks, images), tuple(bins))


def _ratio(part: int, of: int) -> float | None:
    if not of:
        return None
    return rounded(part / of)


def geography(images_and_masks: Mapping[str | None, tuple[int, int]]) -> Geography:
    """Count images and masks by country, by the paper's regions, and by income level, next to the paper's shares.

    Shares are relative to the images from countries with a known region or income level. A country that
    `segmint.catalogs.licenses` doesn't know is listed, but isn't part of any region or income level.
    """
    unknown = images_and_masks.get(None, (0, 0))[0]
    known = {code: counts for code, counts in images_and_masks.items() if code is not None}
    listed = sorted(known.items(), key=lambda item: (-item[1][0], item[0]))
    return Geography(
        known=sum(images for images, _ in known.values()),
        unknown=unknown,
        countries=tuple(CountryImages(code, images, rounded(masks / images)) for code, (images, masks) in listed),
        regions=_by_group(known, REGIONS, "region", PAPER.regions),
        income=_by_group(known, INCOMES, "income", PAPER.income),
    )


def _by_group(
    known: Mapping[str, tuple[int, int]], names: Sequence[str], kind: str, paper: Iterable[PaperGroup]
) -> tuple[GroupImages, ...]:
    shares = {group.name: group.share for group in paper}
    unlisted = Country("", "", None, None)
    sums = dict.fromkeys(names, (0, 0, 0))
    for code, (images, masks) in known.items():
        name = getattr(countries().get(code, unlisted), kind)
        if name is not None:
            sums[name] = sums[name][0] + images, sums[name][1] + masks, sums[name][2] + 1
    total = sum(images for images, _, _ in sums.values())
    return tuple(
        GroupImages(
            name=name,
            images=images,
            share=_ratio(images, total),
            masks_per_image=_ratio(masks, images),
            paper_share=shares[name],
            masks=masks,
            countries=many,
        )
        for name, (images, masks, many) in sums.items()
    )


def _make_image_numbers(connection: duckdb.DuckDBPyConnection) -> None:
    """Create the temporary table `image_numbers` with each image's numbers, so that the files are read only once."""
    statistics = ", ".join(
        f"CASE WHEN isfinite(statistics.{name}) THEN statistics.{name} END AS {name}" for name in METRICS[1:]
    )
    columns = f"shard, ordinal, id, coalesce(masks, 0) AS masks, {statistics}"
    with damage_named():
        connection.execute(f"CREATE TEMP TABLE image_numbers AS SELECT {columns} FROM images")


def _groups(connection: duckdb.DuckDBPyConnection) -> dict[str, list[dict[str, Any]]]:
    """Sum over images by country, by license, by provider, and over all images (with an empty name)."""
    sums = ", ".join(f"sum(funnel.{step})::BIGINT AS {step}" for step in FUNNEL_STEPS)
    rows = read_query(
        connection,
        f"""
        SELECT GROUPING(country, license, provider) AS level, country, license, provider,
            count(*) AS images, coalesce(sum(masks), 0)::BIGINT AS masks, {sums}
        FROM images GROUP BY GROUPING SETS ((country), (license), (provider), ())
        """,
    ).to_pylist()
    return {name: [row for row in rows if row["level"] == level] for name, level in _GROUPS.items()}


def _ranked(groups: Mapping[str, list[dict[str, Any]]], name: str) -> list[tuple[str | None, int]]:
    """Count images by license or provider, most frequent first. None stands for a missing value.

    Returns nothing if all values are missing.
    """
    rows = sorted(groups[name], key=lambda row: (-row["images"], row[name] or ""))
    if all(row[name] is None for row in rows):
        return []
    return [(row[name], row["images"]) for row in rows]


def _funnel(whole: Mapping[str, Any]) -> tuple[tuple[FunnelStep, ...], Cleanup] | tuple[None, None]:
    """Return the steps of mask generation in order, and the effect of cleanup, or None if no image records them."""
    if whole["predicted"] is None:
        return None, None
    cleaned, removed, before = whole["cleaned"], whole["removed_by_cleanup"], whole["after_nms2"]
    holes, islands, artifacts = whole["holes_filled"], whole["islands_removed"], whole["redaction_artifacts"]
    steps = tuple(FunnelStep(step, whole[step]) for step in FUNNEL_STEPS if step not in _CLEANUP)
    return steps, Cleanup(
        cleaned=cleaned,
        removed=removed,
        holes=holes,
        islands=islands,
        cleaned_share=_ratio(cleaned, before),
        removed_share=_ratio(removed, before),
        holes_share=_ratio(holes, before),
        islands_share=_ratio(islands, before),
        artifacts=artifacts,
        artifacts_share=_ratio(artifacts, before),
    )


def _coverage(connection: duckdb.DuckDBPyConnection) -> Histogram:
    index = COVERAGE.index("coverage")
    query = f"SELECT histogram({index}) AS counts, avg(coverage) AS mean FROM image_numbers"
    found = read_query(connection, query).to_pylist()[0]
    return Histogram(COVERAGE.edges, COVERAGE.counts(as_counts(found["counts"])), rounded(found["mean"]))


def _counted(connection: duckdb.DuckDBPyConnection, sql: str) -> dict[Any, int]:
    """Run a query, and map its first column to its second."""
    table = read_query(connection, sql)
    return dict(zip(table.column(0).to_pylist(), table.column(1).to_pylist(), strict=True))


def _median(images_by_value: Mapping[int, int], images: int) -> float | None:
    """Compute the median of values, given the number of images per value."""
    if not images:
        return None
    middle: list[int] = []
    seen = 0
    for value in sorted(images_by_value):
        before, seen = seen, seen + images_by_value[value]
        for place in ((images - 1) // 2, images // 2):
            if before <= place < seen:
                middle.append(value)
    return sum(middle) / 2


THRESHOLD = 0.9
"""Minimum pixel IoU of near-duplicate masks. For comparison, the paper's NMS compares boxes and uses 0.7."""

_MOST_SHARDS = 32
"""Maximum number of shards in the sample. Reading a little of every shard would require reading all of them."""

_EXAMPLES = 100


def near_duplicate_statistics(
    connection: duckdb.DuckDBPyConnection, images_by_shard: Mapping[int, int], sample: int
) -> NearDuplicates:
    """Find near-duplicate pairs of masks in at most `sample` images, spread evenly over the shards and within them."""
    sums = _DuplicateSums()
    shards = [shard for shard in sorted(images_by_shard) if images_by_shard[shard]]
    chosen = _spread(shards, min(_MOST_SHARDS, sample))
    for index, shard in enumerate(chosen):
        quota = sample * (index + 1) // len(chosen) - sample * index // len(chosen)
        _add_shard(connection, shard, quota, sums)
    return NearDuplicates(sums.images, THRESHOLD, sums.masks, sums.pairs, tuple(sums.examples))


@dataclass
class _DuplicateSums:
    images: int = 0
    masks: int = 0
    pairs: int = 0
    examples: list[SimilarMasks] = field(default_factory=list)


def _add_shard(connection: duckdb.DuckDBPyConnection, shard: int, quota: int, sums: _DuplicateSums) -> None:
    rows = read_query(connection, f"SELECT ordinal FROM image_numbers WHERE shard = {shard} ORDER BY ordinal")
    ordinals = _spread(rows.column("ordinal").to_pylist(), quota)
    if not ordinals:
        return
    sums.images += len(ordinals)
    for masks in _masks_of(connection, shard, ordinals).values():
        sums.masks += len(masks)
        size = masks[0]["size"]
        if not size or None in size or any(mask["size"] != size for mask in masks):
            continue  # the audit reports it as a finding
        pairs = near_duplicates((size[0], size[1]), [mask["counts"] or "" for mask in masks], THRESHOLD)
        sums.pairs += len(pairs)
        for pair in pairs[: _EXAMPLES - len(sums.examples)]:
            ids = masks[pair.first]["annotation_id"], masks[pair.second]["annotation_id"]
            sums.examples.append(SimilarMasks(masks[0]["id"], ids, round(pair.iou, 4)))


def _masks_of(connection: duckdb.DuckDBPyConnection, shard: int, ordinals: list[int]) -> dict[int, list[Any]]:
    """Read the masks of the sampled images in a shard, by ordinal and in order."""
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
    """Choose `wanted` values, spread evenly. If there are fewer, return all of them."""
    number = min(wanted, len(values))
    return [values[(2 * index + 1) * len(values) // (2 * number)] for index in range(number)]


_SUMS = f"""
SELECT coalesce(sum(len(unconfirmed_detections)), 0)::BIGINT AS unconfirmed,
       coalesce(sum(len(left_alone)), 0)::BIGINT AS left_alone,
       count(*) FILTER (redacted_share > {HIGH_SHARE}) AS highly_redacted
FROM images
"""
_WORST = f"""
SELECT image_id, redacted_share FROM images WHERE redacted_share > {HIGH_SHARE}
ORDER BY redacted_share DESC, id LIMIT {MOST_REDACTED}
"""


def sum_redactions(tables: DatasetTables) -> RedactionTotals:
    """Sum the redaction columns of `images`. Datasets of format 3 lack them, so all sums are 0."""
    (sums,) = tables.query(_SUMS).to_pylist()
    worst = [(row["image_id"], row["redacted_share"]) for row in tables.query(_WORST).to_pylist()]
    return RedactionTotals(**sums, worst=tuple(worst))
