"""Countries from captions, in each format of a catalog."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmint.catalogs.locate import locate
from segmint.infra.errors import UsageError
from tests.support.locations import location_of

ROWS = [
    {"uri": "a.jpg", "license": "CC0-1.0", "caption": "A tram in Vienna", "valid_until": "2030-01-31", "camera": "X1"},
    {"uri": "b.jpg", "license": None, "caption": "A tram in Vienna", "country": "DE"},
    {"uri": "c.jpg", "license": "CC0-1.0"},
    {"uri": "d.jpg", "license": "CC0-1.0", "caption": "A cat"},
]


def write(path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_countries_are_filled_in_and_all_else_stays(tmp_path: Path, ending: str) -> None:
    output = tmp_path / f"located.{ending}"
    done = locate(location_of(write(tmp_path / "c.jsonl")), location_of(output))
    assert (done.rows, done.given, done.filled, done.without_caption, done.unknown) == (4, 1, 1, 1, 2)
    assert done.countries == {"AT": 1}
    again = tmp_path / "again.jsonl"
    same = locate(location_of(output), location_of(again))
    assert (same.given, same.filled) == (2, 0)
    rows = [json.loads(line) for line in again.read_text().splitlines()]
    assert rows == [{**ROWS[0], "country": "AT", "country_source": "caption"}, *ROWS[1:]]


def test_what_is_there_is_not_overwritten_and_stays_beside_its_images(tmp_path: Path) -> None:
    catalog = location_of(write(tmp_path / "c.jsonl"))
    with pytest.raises(UsageError, match="already exists"):
        locate(catalog, catalog)
    with pytest.raises(UsageError, match="is not in the folder of"):
        locate(catalog, location_of(tmp_path / "x" / "d.jsonl"))
    pq.write_table(pa.table({"uri": ["a.jpg"], "license": ["MIT"]}), tmp_path / "bare.parquet")
    with pytest.raises(UsageError, match="has no column 'caption'"):
        locate(location_of(tmp_path / "bare.parquet"), location_of(tmp_path / "d.jsonl"))
