"""Conditions on images: what is one, and what is refused."""

from pathlib import Path

import pytest

from segmint.infra.errors import UsageError
from segmint.pipeline.engine.annotate.selection import check_selection
from segmint.pipeline.quality.statistics.open_tables import open_tables
from tests.support.locations import location_of
from tests.support.viewed import image_rows

GOOD = (
    "masks < 10",
    "masks < 10 -- few",
    "statistics.coverage < 0.5 AND country IS NULL",
    "image_id LIKE '%a%' OR id IN (1, 2)",
    "id BETWEEN 2 AND 5 AND NOT faces > 3",
    "CASE WHEN masks > 1 THEN true ELSE false END",
    "id::VARCHAR = '1' AND regexp_matches(image_id, '.')",
)
BAD = {
    "": "expected a condition",
    "masks": "its type is INTEGER",
    "1": "its type is INTEGER",
    "nowhere < 1": "nowhere",
    "masks <": "syntax error",
    "true), (false": "one condition",
    "true) FROM images UNION SELECT (true": "one condition",
    "true) FROM images; DROP VIEW images; SELECT (true": "SELECT",
    "true) FROM masks WHERE (true": "syntax error",
    "EXISTS (SELECT 1)": "subquery isn't allowed",
    "masks IN (SELECT 1)": "subquery isn't allowed",
    "read_text('/etc/passwd') = 'x'": "function read_text",
    "getenv('HOME') = 'x'": "function getenv",
    "sum(masks) > 1": "function sum",
    "row_number() OVER () > 1": "isn't allowed",
    "masks = $1": "isn't allowed",
    "masks = ?": "isn't allowed",
    "id" + " + 1" * 400 + " > 0": "nested too deeply",
    "(" * 3_000 + "true" + ")" * 3_000: "depth",
}


def test_conditions(small_dataset: Path) -> None:
    rows = image_rows(small_dataset)
    with open_tables(location_of(small_dataset)) as tables:
        for text in GOOD:
            condition = check_selection(tables, text)
            found = tables.query(f"SELECT id FROM images WHERE {condition} ORDER BY id").column("id").to_pylist()
            if text.startswith("masks < 10"):
                assert found == [row["id"] for row in rows if row["masks"] < 10]
        many = " OR ".join(f"id = {number}" for number in range(2, 2_000))
        assert check_selection(tables, many) == f"({many}\n)"
        for text, told in BAD.items():
            with pytest.raises(UsageError, match=told) as error:
                check_selection(tables, text)
            assert "--select" in str(error.value)
