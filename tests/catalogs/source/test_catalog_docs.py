"""`docs/catalogs.md` against the code: columns, endings, schemes, and every reason for a refusal."""

import re
from pathlib import Path

from segmint.catalogs.findings import Reason
from segmint.catalogs.parquet import SOURCE
from segmint.catalogs.source.files import FORMATS
from segmint.infra.uris import ALLOWED_SCHEMES

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "catalogs.md").read_text(encoding="utf-8")


def first_cells(title: str) -> list[str]:
    match = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert match is not None, title
    return [line.split("|")[1].strip(" `") for line in match[1].splitlines() if line.startswith("| `")]


def test_every_column_is_documented_in_order() -> None:
    assert first_cells("Columns") == SOURCE.names


def test_every_reason_is_documented_once() -> None:
    assert sorted(first_cells("Rejection reasons")) == sorted(Reason)


def test_every_ending_and_scheme_is_documented() -> None:
    for word in (*(ending for endings in FORMATS.values() for ending in endings), *ALLOWED_SCHEMES):
        assert f"`{word}`" in PAGE, word
