"""Masks as arrays, and back: the very rows that Arrow gives, and the very JSON."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segmint.operators.audit.masks import MaskColumns
from segmint.operators.rows import MASK, MASKS, Row, to_table
from segmint.operators.shards.put import annotations_json

KEYS = [*(field.name for field in MASK), "container"]


def real_rows(small_dataset: Path) -> list[Row]:
    return [row for path in sorted((small_dataset / "masks").iterdir()) for row in pq.read_table(path).to_pylist()]


def masks_alone(rows: list[Row]) -> list[Row]:
    return [{key: row[key] for key in KEYS} for row in rows]


def test_rows_come_back_as_arrow_gives_them(small_dataset: Path) -> None:
    rows = real_rows(small_dataset)
    rows[2]["point_coords"] = [[1.5, 2.0], [3.25, 4.0], [0.1, 1e-7]]
    rows[0]["output"], rows[4]["output"], rows[1]["container"] = None, -1, None
    rows[3]["segmentation"]["counts"] += "\\\\"  # of COCO's alphabet alone a backslash is escaped in JSON
    columns = MaskColumns.of(to_table(rows, MASKS))
    assert len(columns) == len(rows)
    for start, stop in [(0, len(rows)), (0, 0), (2, 3), (3, 5), (len(rows), len(rows))]:
        found = list(columns.rows(start, stop))
        assert found == masks_alone(rows[start:stop])
        assert columns.text(start, stop) == [row["segmentation"]["counts"].encode() for row in rows[start:stop]]
        assert annotations_json(7, "sa_7.jpg", (180, 240), found) == annotations_json(
            7, "sa_7.jpg", (180, 240), rows[start:stop]
        )


def test_tables_in_pieces_and_slices_are_the_same(small_dataset: Path) -> None:
    rows = real_rows(small_dataset)
    pieces = pa.concat_tables([to_table(rows[:2], MASKS), to_table([], MASKS), to_table(rows[2:], MASKS)])
    assert list(MaskColumns.of(pieces).rows(0, len(rows))) == masks_alone(rows)
    assert list(MaskColumns.of(pieces.slice(1, 3)).rows(0, 3)) == masks_alone(rows[1:4])
    assert list(MaskColumns.of(to_table(rows, MASKS).slice(2)).rows(1, 2)) == masks_alone(rows[3:4])
    assert len(MaskColumns.of(MASKS.empty_table())) == 0


def test_what_is_not_there_is_wrong_in_its_column_and_moves_nothing_beside_it(small_dataset: Path) -> None:
    rows = real_rows(small_dataset)[:4]
    changes: dict[str, Any] = {
        "segmentation": None,
        "bbox": [1.0, None, 2.0, 3.0],
        "area": None,
        "predicted_iou": None,
        "crop_box": [1.0],
        "point_coords": [[1.0], None, [1.0, 2.0, 3.0]],
    }
    rows[1] = {**rows[1], **changes}
    columns = MaskColumns.of(to_table(rows, MASKS))
    assert columns.size[1].tolist() == [-1, -1]
    assert columns.text(1, 2) == [b""]
    np.testing.assert_array_equal(columns.bbox[1], [1.0, np.nan, 2.0, 3.0])
    assert columns.area[1] == -1
    assert np.isnan(columns.predicted_iou[1])
    assert np.isnan(columns.crop_box[1]).all()
    first, end = columns.points_ends[:2]
    assert np.isnan(columns.points[first:end]).all()
    assert end - first == 3
    assert list(columns.rows(0, 1)) + list(columns.rows(2, 4)) == masks_alone([rows[0], *rows[2:]])

    rows[1]["point_coords"], rows[1]["segmentation"] = None, {"size": [None, 3], "counts": None}
    columns = MaskColumns.of(to_table(rows, MASKS))
    assert columns.points_ends[1] == columns.points_ends[0]
    assert columns.size[1].tolist() == [-1, 3]
    assert columns.text(1, 2) == [b""]
