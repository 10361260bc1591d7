"""Planted drift and outliers are told; small shards, and shards that differ by nature, are not."""

from collections.abc import Callable

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from segmint.pipeline.quality.statistics.statistics import METRICS, drift, outliers

SHARDS, IMAGES = 20, 60


def pictures(plant: Callable[[dict[str, np.ndarray]], None], sizes: list[int] | None = None, seed: int = 0) -> pa.Table:
    """Values of images that vary as real ones do; `plant` changes them."""
    shard = np.repeat(np.arange(len(sizes or [0] * SHARDS)), sizes or [IMAGES] * SHARDS)
    draws = np.random.default_rng(seed)
    columns: dict[str, np.ndarray] = {"shard": shard}
    for metric in METRICS:
        columns[metric] = draws.beta(8, 3, shard.size)
    columns["masks"] = np.round(draws.lognormal(4, 0.7, shard.size))
    plant(columns)
    number = np.arange(shard.size)
    return pa.table({"ordinal": number, "id": number + 1, "image_id": [f"image-{i}" for i in number], **columns})


def connect(table: pa.Table) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.register("images", table)
    connection.execute("CREATE TEMP TABLE image_numbers AS SELECT * EXCLUDE (image_id) FROM images")
    return connection


@pytest.mark.parametrize("seed", range(10))
def test_no_false_alarm_whatever_the_sizes_of_shards(seed: int) -> None:
    sizes = [IMAGES] * 10 + [35] * 10 + [3, 1, 2]
    assert drift(connect(pictures(lambda _: None, sizes, seed))) == ()


def test_a_planted_drift_is_named() -> None:
    def darken(columns: dict[str, np.ndarray]) -> None:
        columns["coverage"][columns["shard"] == 7] *= 0.7

    (found,) = drift(connect(pictures(darken)))
    assert (found.metric, found.shard) == ("coverage", 7)
    assert found.value == pytest.approx(0.7 * found.dataset, rel=0.1)
    assert found.z < -5


def test_a_small_shard_is_not_judged() -> None:
    def plant(columns: dict[str, np.ndarray]) -> None:
        columns["coverage"][columns["shard"] == SHARDS] = 0

    assert drift(connect(pictures(plant, [IMAGES] * SHARDS + [29]))) == ()
    assert len(drift(connect(pictures(plant, [IMAGES] * SHARDS + [30])))) == 1


def test_the_mean_of_a_small_shard_may_lie_further_off() -> None:
    sizes = [400] * 10 + [40] * 2

    def shift(columns: dict[str, np.ndarray]) -> None:
        sign = np.where(np.arange(columns["shard"].size) % 2, 1, -1)
        columns["coverage"] = 0.5 + 0.1 * sign
        columns["coverage"][columns["shard"] == 9] += 0.05  # 10 standard errors of the mean of 400 images
        columns["coverage"][columns["shard"] == 10] += 0.05  # 3 of the mean of 40

    assert [found.shard for found in drift(connect(pictures(shift, sizes)))] == [9]


def test_shards_that_differ_by_nature_are_no_drift() -> None:
    def by_provider(columns: dict[str, np.ndarray]) -> None:
        columns["coverage"] *= np.random.default_rng(1).uniform(0.4, 1, SHARDS)[columns["shard"]]

    assert drift(connect(pictures(by_provider))) == ()


def test_what_never_varies_does_not_drift() -> None:
    def constant(columns: dict[str, np.ndarray]) -> None:
        columns["coverage"] = np.full(columns["coverage"].size, 0.1)

    assert drift(connect(pictures(constant))) == ()


def test_images_far_from_the_others_are_named() -> None:
    def plant(columns: dict[str, np.ndarray]) -> None:
        columns["masks"] = np.random.default_rng(2).normal(100, 10, columns["masks"].size)
        columns["masks"][[5, 700]] = [900, 1]

    found = [row for row in outliers(connect(pictures(plant))) if row.metric == "masks"]
    assert [(row.id, row.shard, row.image_id, row.value) for row in found] == [
        (701, 11, "image-700", 1.0),
        (6, 0, "image-5", 900.0),
    ]
    assert found[0].reason.startswith("under ")
    assert found[1].reason.startswith("over ")


@pytest.mark.parametrize("threads", [1, 4])
def test_of_equal_outliers_the_first_are_named(threads: int) -> None:
    """DuckDB gives each thread other rows, so the largest of many equal values would be any of them."""

    def plant(columns: dict[str, np.ndarray]) -> None:
        columns["coverage"][3::50] = 0.0
        columns["coverage"][7::50] = 9.0

    connection = connect(pictures(plant, [100_000] * 4))
    connection.execute(f"SET threads = {threads}")
    found = [row.id - 1 for row in outliers(connection) if row.metric == "coverage"]
    assert sorted(found) == sorted([*range(3, 250, 50), *range(7, 250, 50)])


def test_few_images_have_no_outliers() -> None:
    def plant(columns: dict[str, np.ndarray]) -> None:
        columns["coverage"][0] = 99

    assert outliers(connect(pictures(plant, [29]))) == ()
