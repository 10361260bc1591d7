"""The numbers in long form are those of the statistics, each once."""

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
from pydantic import TypeAdapter

from segmint.pipeline.quality.report.report import NUMBERS, numbers_table
from segmint.pipeline.quality.statistics.values import (
    BinImages,
    Centers,
    Concavity,
    DriftedShard,
    Histogram,
    MasksPerImage,
    Outlier,
    SizeConcavity,
    Statistics,
)
from tests.support.statistics import statistics_of


def rows(statistics: Statistics) -> list[tuple[str, str, str | None, float]]:
    return [tuple(row.values()) for row in numbers_table(statistics).to_pylist()]


def test_each_shape_has_its_rows() -> None:
    nothing = set(rows(statistics_of()))
    found = rows(
        statistics_of(
            images=6,
            rejected_by_reason={"not_found": 2},
            masks_per_image=MasksPerImage(3.5, None, (BinImages("<=10", 6),)),
            relative_size=Histogram((0, 0.5, 1), (4, 1), 0.25),
            concavity=Concavity((0, 1), (5,), None, (SizeConcavity("small", (5,), 0.1),)),
            centers=Centers(2, ((1, 2), (3, 4))),
            drift=(DriftedShard("coverage", 3, 0.5, 0.2, 6.5),),
            outliers=(Outlier(5, 3, "x", "masks", 7.0, "why"),),
        )
    )
    assert [row for row in found if row not in nothing] == [
        ("dataset", "images", None, 6),
        ("relative_size", "count", "0 to 0.5", 4),
        ("relative_size", "count", "0.5 to 1", 1),
        ("relative_size", "mean", None, 0.25),
        ("concavity", "count", "0 to 1", 5),
        ("concavity", "by_size.counts", "small, 0", 5),
        ("concavity", "by_size.mean", "small", 0.1),
        ("centers", "bins", None, 2),
        ("centers", "counts", "0, 0", 1),
        ("centers", "counts", "0, 1", 2),
        ("centers", "counts", "1, 0", 3),
        ("centers", "counts", "1, 1", 4),
        ("rejected_by_reason", "not_found", None, 2),
        ("masks_per_image", "mean", None, 3.5),
        ("masks_per_image", "bins.images", "<=10", 6),
        ("drift", "value", "coverage, shard 3", 0.5),
        ("drift", "dataset", "coverage, shard 3", 0.2),
        ("drift", "z", "coverage, shard 3", 6.5),
        ("outliers", "value", "masks, shard 3, id 5", 7),
    ]


def test_the_file_agrees_with_the_json(report_folder: Path) -> None:
    table = pq.read_table(io.BytesIO((report_folder / "statistics.parquet").read_bytes()))
    assert table.schema.equals(NUMBERS)
    statistics = json.loads((report_folder / "statistics.json").read_text())
    assert table.equals(numbers_table(TypeAdapter(Statistics).validate_python(statistics)))
    plain = {row["statistic"]: row["value"] for row in table.to_pylist() if row["area"] == "dataset"}
    assert plain["images"] == statistics["images"] == 6
    assert plain["masks"] == statistics["masks"] == 10
