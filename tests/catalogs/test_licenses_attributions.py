"""Which licenses require credit, and files of attributions, read back with common readers."""

import csv
import json
from pathlib import Path

import pytest

from segmint.catalogs.licenses import (
    ATTRIBUTION_FAMILIES,
    COLUMNS,
    asks_for_attribution,
    license_url,
    spdx_identifiers,
    write_attributions,
)
from segmint.infra.errors import UsageError
from tests.support.locations import location_of

ROWS = [
    {
        "id": 1,
        "image_id": "a_b[1]",
        "attribution": 'Zoë, "the\n<b>author</b>"',
        "provider": "Acme",
        "license": "CC-BY-SA-3.0",
        "source_url": "https://example.org/a_(1)",
    },
    {
        "id": 2,
        "image_id": "two",
        "attribution": None,
        "provider": None,
        "license": "LicenseRef-acme",
        "source_url": "javascript:alert(1)",
    },
]


@pytest.mark.parametrize(
    ("license", "asks"),
    [
        ("CC-BY-4.0", True),
        ("cc-by-4.0", True),
        ("CC-BY-NC-SA-2.0", True),
        ("CC-BY-3.0-DE", True),
        ("ODC-By-1.0", True),
        ("OGL-UK-3.0", True),
        ("etalab-2.0", True),
        ("CC0-1.0", False),
        ("CC-PDM-1.0", False),
        ("DL-DE-ZERO-2.0", False),
        ("LicenseRef-CC-BY-like", False),
        ("CC-BY", False),
        ("", False),
        (None, False),
    ],
)
def test_licenses_that_require_attribution(license: str | None, asks: bool) -> None:
    assert asks_for_attribution(license) is asks


@pytest.mark.parametrize("family", ATTRIBUTION_FAMILIES)
def test_every_family_is_of_listed_identifiers(family: str) -> None:
    assert any(identifier.startswith(family) for identifier in spdx_identifiers().values())


@pytest.mark.parametrize(
    ("license", "url"),
    [
        ("CC-BY-4.0", "https://creativecommons.org/licenses/by/4.0/"),
        ("cc-by-nc-sa-2.0", "https://creativecommons.org/licenses/by-nc-sa/2.0/"),
        ("CC-BY-NC-ND-3.0-DE", "https://creativecommons.org/licenses/by-nc-nd/3.0/de/"),
        ("CC0-1.0", "https://creativecommons.org/publicdomain/zero/1.0/"),
        ("CC-PDM-1.0", "https://creativecommons.org/publicdomain/mark/1.0/"),
        ("OGL-UK-3.0", "https://spdx.org/licenses/OGL-UK-3.0.html"),
        ("LicenseRef-acme", None),
        ("free", None),
        (None, None),
    ],
)
def test_license_urls(license: str | None, url: str | None) -> None:
    assert license_url(license) == url


def written(tmp_path: Path, name: str) -> str:
    uri = str(tmp_path / name)
    assert write_attributions(iter(ROWS), location_of(uri)) == 2
    return Path(uri).read_text(encoding="utf-8")


def test_csv_and_json_lines_say_the_same(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in written(tmp_path, "a.jsonl").splitlines()]
    table = list(csv.DictReader(written(tmp_path, "a.CSV").splitlines(keepends=True)))
    assert [list(line) for line in lines] == [list(COLUMNS)] * 2
    assert table == [{name: "" if line[name] is None else str(line[name]) for name in COLUMNS} for line in lines]
    assert lines[0]["image"] == "sa_1.jpg"
    assert lines[0]["attribution"] == ROWS[0]["attribution"]
    assert lines[0]["license_url"] == "https://creativecommons.org/licenses/by-sa/3.0/"


def test_markdown_shows_a_catalogs_text_verbatim_and_links_only_web_pages(tmp_path: Path) -> None:
    lines = written(tmp_path, "a.md").splitlines()
    assert lines[0] == "# Attributions"
    one, other = (line for line in lines if line.startswith("- "))
    assert one == (
        r'- `sa_1.jpg`: [a\_b\[1\]](<https://example.org/a_(1)>) by Zoë, "the \<b\>author\</b\>", from Acme, '
        r"[CC-BY-SA-3.0](<https://creativecommons.org/licenses/by-sa/3.0/>)"
    )
    assert other == "- `sa_2.jpg`: two, LicenseRef-acme"


def test_an_unknown_ending_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.csv, \.jsonl, \.md; got .*a\.txt"):
        write_attributions([], location_of(tmp_path / "a.txt"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"])
def test_a_cell_of_csv_is_no_formula(tmp_path: Path, start: str) -> None:
    text = f"{start}HYPERLINK(1)"
    names = ("image_id", "attribution", "provider", "license", "source_url")
    write_attributions([{"id": 1, **dict.fromkeys(names, text)}], location_of(tmp_path / "all.csv"))
    with (tmp_path / "all.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert {name: row[name] for name in names} == dict.fromkeys(names, f"'{text}")
    assert row["id"] == "1"
    write_attributions([{"id": 1, **dict.fromkeys(names, text)}], location_of(tmp_path / "all.jsonl"))
    assert json.loads((tmp_path / "all.jsonl").read_text())["attribution"] == text


@pytest.mark.parametrize("separator", [";", "|", "\t", "; "])
def test_no_cell_of_csv_is_a_formula_for_another_separator(tmp_path: Path, separator: str) -> None:
    row = {"id": 1, "image_id": "a", "provider": None, "license": None, "source_url": None}
    text = f"Jane{separator}=HYPERLINK(1){separator}x-y; z"
    write_attributions([{**row, "attribution": text}], location_of(tmp_path / "all.csv"))
    with (tmp_path / "all.csv").open(encoding="utf-8", newline="") as file:
        (found,) = csv.DictReader(file)
    assert found["attribution"] == f"Jane{separator}'=HYPERLINK(1){separator}x-y; z"
