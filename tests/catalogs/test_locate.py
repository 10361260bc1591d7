"""Countries from captions, in each format of a catalog."""

import csv
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmint.catalogs.locate import country_in, locate, place_names
from segmint.infra.errors import UsageError
from tests.catalogs.captions import CAPTIONS, LATER
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


def test_types_stay_in_every_format(tmp_path: Path) -> None:
    """In CSV there is text only: JSON's, not Python's."""
    fields: list[dict[str, Any]] = [
        {"n": 1, "id": 2**60 + 1, "price": 2, "ok": True, "tags": ["a", {"b": None}], "mixed": "7", "text": "1"},
        {"n": -4, "id": 3, "price": 0.5, "ok": False, "tags": {}, "mixed": 7, "text": "true"},
    ]
    rows = [
        {"uri": f"{n}.jpg", "license": "MIT", "caption": "A cat", "opt_out": False, **row}
        for n, row in enumerate(fields)
    ]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for source, output in (("c.jsonl", "1.jsonl"), ("c.jsonl", "2.parquet"), ("2.parquet", "3.jsonl")):
        locate(location_of(tmp_path / source), location_of(tmp_path / output))
    for name in ("1.jsonl", "3.jsonl"):
        assert [json.loads(line) for line in (tmp_path / name).read_text().splitlines()] == rows
    table = pq.read_table(tmp_path / "2.parquet", columns=["n", "id", "price", "ok", "tags", "mixed"])
    assert [str(kind) for kind in table.schema.types] == ["int64", "int64", "double", "bool", "string", "string"]

    when = datetime(2026, 1, 2, 3, tzinfo=UTC)
    nested = {"day": when.date(), "n": [1]}  # sorted, as older versions of pyarrow order them
    columns = {"uri": ["a"], "license": [None], "caption": ["é"], "opt_out": [True], "when": [when], "in": [nested]}
    raw = {"raw": [b"\xff\x00"], "sum": [Decimal("1.50")], "took": [timedelta(seconds=90)]}
    pq.write_table(pa.table(columns | raw, schema=None), tmp_path / "p.parquet")
    for output in ("4.jsonl", "5.csv"):
        locate(location_of(tmp_path / "p.parquet"), location_of(tmp_path / output))
    expected = {
        "uri": "a",
        "license": None,
        "opt_out": True,
        "caption": "é",
        "when": "2026-01-02T03:00:00+00:00",
        "in": {"day": "2026-01-02", "n": [1]},
        "raw": "/wA=",
        "sum": "1.50",
        "took": 90.0,
    }
    assert json.loads((tmp_path / "4.jsonl").read_text()) == expected
    (row,) = csv.DictReader((tmp_path / "5.csv").open(encoding="utf-8", newline=""))
    assert {name: value for name, value in row.items() if value} == {
        name: value if isinstance(value, str) else json.dumps(value) for name, value in expected.items() if value
    }


def test_what_is_there_is_not_overwritten_and_stays_beside_its_images(tmp_path: Path) -> None:
    catalog = location_of(write(tmp_path / "c.jsonl"))
    with pytest.raises(UsageError, match="already exists"):
        locate(catalog, catalog)
    with pytest.raises(UsageError, match="is not in the folder of"):
        locate(catalog, location_of(tmp_path / "x" / "d.jsonl"))
    pq.write_table(pa.table({"uri": ["a.jpg"], "license": ["MIT"]}), tmp_path / "bare.parquet")
    with pytest.raises(UsageError, match="has no column 'caption'"):
        locate(location_of(tmp_path / "bare.parquet"), location_of(tmp_path / "d.jsonl"))
    numbers = {"uri": ["a.jpg"], "license": ["MIT"], "caption": ["Paris, France"], "country_source": [1]}
    pq.write_table(pa.table(numbers), tmp_path / "numbers.parquet")
    with pytest.raises(UsageError, match=r"the column 'country_source'.* must be text"):
        locate(location_of(tmp_path / "numbers.parquet"), location_of(tmp_path / "d.parquet"))


def tried(captions: dict[str, str | None]) -> tuple[int, int, list[str]]:
    """Return how many captions name their country, how many of these were found, and the captions found wrongly."""
    answers = {caption: country_in(caption) for caption in captions}
    found = [caption for caption, country in answers.items() if country is not None]
    right = [caption for caption in found if answers[caption] == captions[caption]]
    return sum(country is not None for country in captions.values()), len(right), sorted({*found} - {*right})


def test_the_trial_is_as_the_documentation_says() -> None:
    """Nothing is found wrongly; docs/catalogs.md has these numbers."""
    assert (len(CAPTIONS), tried(CAPTIONS)) == (90, (49, 44, []))
    assert (len(LATER), tried(LATER)) == (62, (38, 36, []))


@pytest.mark.parametrize(
    ("caption", "country"),
    [
        ("In Bath, England", "GB"),
        ("A café in Portland, OR", "US"),
        ("Choose tea, OR coffee", None),
        ("IN A BAR IN BERLIN", "DE"),
        ("A tower in Köln", "DE"),
        ("A tower in Cologne", "DE"),
        ("In Port-au-Prince", "HT"),
        ("In Xi’an", "CN"),
        ("A market in Abidjan, Côte d'Ivoire", "CI"),
        ("Near Spain and Portugal", None),
        ("Tokyo's streets", None),
        ("Fans in Brazil shirts", None),
        ("A boy in Boston baseball cap", None),
        ("She smiles at Sofia", None),
        ("A dog looks at Jordan", None),
        ("A child in Turkey costume", None),
        ("Ruins in Jordan at dusk", "JO"),
        ("Soldiers in the U.S.", "US"),
        ("in Paris, " * 50_000, "FR"),
    ],
)
def test_single_cases(caption: str, country: str | None) -> None:
    assert country_in(caption) == country


def test_a_name_of_several_large_cities_says_no_country_alone() -> None:
    names = place_names()
    assert {"barcelona", "valencia", "hyderabad", "orange", "nice", "reading", "of", "van"}.isdisjoint(names.certain)
    assert (names.certain["london"], names.certain["bern"]) == ("GB", "CH")
    assert {country for country, _ in names.cities["paris"]} == {"FR", "US"}


def test_a_folder_is_copied_to_a_file_next_to_it_if_its_uris_are_absolute(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    source, output = location_of(f"{tmp_path}/rows/"), location_of(tmp_path / "located.parquet")
    for name, uri in (("a", "s3://bucket/a.jpg"), ("b", "b.jpg")):
        table = pa.table({"uri": [uri], "license": ["MIT"], "caption": ["Norway: a fjord"]})
        pq.write_table(table, tmp_path / "rows" / f"{name}.parquet")
    with pytest.raises(UsageError, match=r"found 'b\.jpg', which is relative to the folder"):
        locate(source, output)
    (tmp_path / "rows" / "b.parquet").unlink()
    with pytest.raises(UsageError, match="is not in the folder of"):
        locate(source, location_of(tmp_path / "rows" / "located.parquet"))
    assert locate(source, output).countries == {"NO": 1}
    assert pq.read_table(tmp_path / "located.parquet")["uri"].to_pylist() == ["s3://bucket/a.jpg"]
