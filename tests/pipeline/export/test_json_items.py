"""Arrays written item by item are JSON."""

import io
import json
from pathlib import Path

import pytest

from segmint.pipeline.export.coco import JsonItems


@pytest.mark.parametrize("batches", [[], [[]], [[1]], [[{"a": "Zoë\n"}], [], [None, [2.5]]]])
def test_it_reads_back(tmp_path: Path, batches: list[list[object]]) -> None:
    items = JsonItems(tmp_path / "items")
    for batch in batches:
        items.extend(batch)
    target = io.StringIO()
    items.copy_into(target)
    whole = [value for batch in batches for value in batch]
    assert json.loads(target.getvalue()) == whole
    assert items.count == len(whole)


def test_what_json_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        JsonItems(tmp_path / "items").extend([float("nan")])
