"""Rows of the same image file under other names."""

import json
from pathlib import Path

from segmint.catalogs.source.normalize import stage_catalog
from segmint.catalogs.source.same_files import SameFiles
from tests.support.locations import location_of


def test_rows_with_the_same_digest_or_uri_share_a_group(tmp_path: Path) -> None:
    rows = [
        {"uri": "a.jpg", "sha256": "0" * 64},
        {"uri": "b.jpg"},
        {"uri": "c.jpg", "sha256": "0" * 64},
        {"uri": "a.jpg", "image_id": "another", "sha256": "1" * 64},
        {"uri": "d.jpg"},
    ]
    catalog = tmp_path / "c.jsonl"
    catalog.write_text("".join(json.dumps({"license": "CC0-1.0", **row}) + "\n" for row in rows))
    staged, _ = stage_catalog(location_of(catalog), tmp_path)
    with SameFiles(staged, tmp_path) as same:
        first, rest = same.until(2), same.until(5)
    assert {ordinal: sorted(groups) for ordinal, groups in first.items()} == {0: [-1, 0]}
    assert rest == {2: (0,), 3: (-1,)}
