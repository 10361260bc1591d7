"""Files of regions: read whole, or refused with the row and column of each mistake."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmint.catalogs.dataset.regions import WantedRegion, read_regions, write_regions
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from tests.support.locations import location_of

GOOD = {"id": 2, "kind": "face", "x": 0, "y": 3, "w": 10, "h": 20}


def write(path: Path, *rows: object) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def test_json_lines_and_parquet_say_the_same(tmp_path: Path) -> None:
    rows = [GOOD, {**GOOD, "id": 7, "kind": "other", "note": "passed\u2028over"}]
    last = json.dumps(rows[1], ensure_ascii=False)
    text = read_regions(Location(Storage(), write(tmp_path / "regions.jsonl", rows[0], "", last)), WantedRegion)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "regions.parquet")
    table = read_regions(location_of(tmp_path / "regions.parquet"), WantedRegion)
    assert [region.model_dump(exclude={"where"}) for region in text] == [GOOD, {**GOOD, "id": 7, "kind": "other"}]
    assert [region.model_dump(exclude={"where"}) for region in table] == [
        region.model_dump(exclude={"where"}) for region in text
    ]
    assert [region.where.rpartition(", ")[2] for region in (*text, *table)] == ["row 1", "row 3", "row 1", "row 2"]
    assert text[0].ordinal == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"x": -1}, "row 2, x: Input should be greater than or equal to 0, got -1"),
        ({"w": 0}, "row 2, w: Input should be greater than or equal to 1, got 0"),
        ({"id": 0}, "row 2, id: "),
        ({"y": 1.5}, "row 2, y: "),
        ({"h": "10"}, "row 2, h: "),
        ({"kind": "nose"}, "row 2, kind: .*'face', 'plate' or 'other', got 'nose'"),
        ({"x": None}, "row 2, x: "),
    ],
)
def test_a_mistake_is_named_with_its_row_and_column(tmp_path: Path, change: dict[str, object], told: str) -> None:
    uri = write(tmp_path / "regions.jsonl", GOOD, {**GOOD, **change})
    with pytest.raises(UsageError, match=f"nothing was changed:\n  {uri}, {told}"):
        read_regions(location_of(uri), WantedRegion)


def test_many_mistakes_are_counted(tmp_path: Path) -> None:
    uri = write(tmp_path / "regions.jsonl", *[{"id": 1, "kind": "face", "x": 0, "y": 0, "w": 1}] * 12)
    with pytest.raises(UsageError, match="row 1, h: Field required") as caught:
        read_regions(location_of(uri), WantedRegion)
    assert "row 10, h" in str(caught.value)
    assert "row 11, h" not in str(caught.value)
    assert str(caught.value).endswith("and 2 more")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("empty.jsonl", b"\n\n", "contains no regions"),
        ("list.jsonl", b"[1, 2]", "row 1: expected an object"),
        ("text.jsonl", b"\nface here", "row 2: not JSON"),
        ("deep.jsonl", b"[" * 200_000, "row 1: not JSON"),
        ("latin.jsonl", b"\xff\xfe", "is not UTF-8 text"),
        ("text.parquet", b"PAR1", "is not a readable Parquet file"),
        ("footer.parquet", b"PAR1" + b"\xff" * 8 + b"\x08\0\0\0PAR1", "is not a readable Parquet file"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=told):
        read_regions(location_of(tmp_path / name), WantedRegion)
    with pytest.raises(UsageError, match="no such regions file"):
        read_regions(location_of(tmp_path / "absent.jsonl"), WantedRegion)


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_what_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    uri = str(tmp_path / name)
    write_regions(location_of(uri), [{**GOOD, "detector": "mtcnn", "score": 0.9}, {**GOOD, "id": 9}])
    one, other = read_regions(location_of(uri), WantedRegion)
    assert one.model_dump(exclude={"where"}) == GOOD
    assert other.id == 9
    write_regions(location_of(uri), [])
    with pytest.raises(UsageError, match="contains no regions"):
        read_regions(location_of(uri), WantedRegion)
