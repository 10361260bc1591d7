"""The numbers in long form are those of the statistics, each once."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from segmint.pipeline.report.numbers import NUMBERS, numbers_table


def rows(statistics: dict[str, Any]) -> list[tuple[str, str, str | None, float]]:
    return [tuple(row.values()) for row in numbers_table(statistics).to_pylist()]


def test_each_shape_has_its_rows() -> None:
    assert rows(
        {
            "images": 6,
            "rejected": None,
            "rejected_by_reason": {"not_found": 2},
            "masks_per_image": {"mean": 3.5, "bins": [{"label": "<=10", "images": 6}]},
            "relative_size": {"edges": [0, 0.5, 1], "counts": [4, 1], "mean": 0.25},
            "concavity": {"edges": [0, 1], "counts": [5], "by_size": [{"size": "small", "counts": [5], "mean": 0.1}]},
            "centers": {"bins": 2, "counts": [[1, 2], [3, 4]]},
            "drift": [{"metric": "coverage", "shard": 3, "value": 0.5, "dataset": 0.2, "z": 6.5}],
        }
    ) == [
        ("dataset", "images", None, 6),
        ("rejected_by_reason", "not_found", None, 2),
        ("masks_per_image", "mean", None, 3.5),
        ("masks_per_image", "bins.images", "<=10", 6),
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
        ("drift", "value", "coverage, shard 3", 0.5),
        ("drift", "dataset", "coverage, shard 3", 0.2),
        ("drift", "z", "coverage, shard 3", 6.5),
    ]


def test_the_file_agrees_with_the_json(report_folder: Path) -> None:
    table = pq.read_table(io.BytesIO((report_folder / "statistics.parquet").read_bytes()))
    assert table.schema.equals(NUMBERS)
    statistics = json.loads((report_folder / "statistics.json").read_text())
    assert table.equals(numbers_table(statistics))
    plain = {row["statistic"]: row["value"] for row in table.to_pylist() if row["area"] == "dataset"}
    assert plain["images"] == statistics["images"] == 6
    assert plain["masks"] == statistics["masks"] == 10
