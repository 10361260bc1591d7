"""Drifting shards and outlier images, from the statistics that the build wrote for each image."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import duckdb

from segmint.catalogs.dataset.tables import read_query
from segmint.pipeline.quality.statistics.histograms import rounded
from segmint.pipeline.quality.statistics.values import DriftedShard, Outlier

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


def _drift_of(metric: str, rows: Sequence[Mapping[str, Any]]) -> list[DriftedShard]:
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

    Quartiles are computed from at most about 200,000 images, spread evenly over the dataset.
    """
    fences = _fences(connection)
    if not fences:
        return ()
    picks = ", ".join(
        f"{pick}({{'ordinal': ordinal, 'id': id, 'shard': shard, 'value': {metric}}}, {metric}, {OUTLIERS}) "
        f"FILTER (WHERE {metric} {sign} {fences[metric][side]!r}) AS {side}_{metric}"
        for metric in fences
        for side, pick, sign in (("low", "min_by", "<"), ("high", "max_by", ">"))
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
