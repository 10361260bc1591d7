"""Blanking rows of a catalog's part: no data of them is left, and the same rows give the same bytes."""

import json
from pathlib import Path

import pyarrow.parquet as pq

from segmint.catalogs.parquet import STAGED
from segmint.catalogs.source.normalize import normalize
from segmint.pipeline.corrections.takedown import blank_part
from tests.support.locations import location_of


def part(folder: Path, rows: int = 10) -> Path:
    """A normalized catalog with every column filled in."""
    value = {
        "license": "CC0-1.0",
        "attribution": "Zoë",
        "provider": "P",
        "source_url": "https://example.org",
        "sha256": "a" * 64,
    }
    value |= {"redistributable": True, "valid_until": "2030-01-01", "country": "DE"}
    value |= {"opt_out": True, "refused_reason": "unfit", "refused_detail": "blurred", "license_asserted": "Jo"}
    prompt = {"box": [1, 2, 3, 4], "points": [[5, 6]], "point_labels": [1], "label": "cup", "score": 0.5}
    value["prompts"] = {"width": 40, "height": 30, "prompts": [prompt]}
    lines = [json.dumps({**value, "uri": f"{i}.jpg", "image_id": f"i{i % 8}"}) for i in range(rows)]
    (folder / "catalog.jsonl").write_text("\n".join(lines))
    normalize(location_of(folder / "catalog.jsonl"), folder / "part.parquet")
    return folder / "part.parquet"


def test_nothing_but_ordinal_and_id_is_left(tmp_path: Path) -> None:
    whole = part(tmp_path)
    blanked = blank_part(whole, [8, 2], tmp_path / "blank.parquet")
    before, after = (pq.read_table(path) for path in (whole, blanked.path))
    assert after.schema == before.schema == STAGED
    empty = dict.fromkeys(STAGED.names) | {"image_id": "", "uri": ""}
    for ordinal, (old, new) in enumerate(zip(before.to_pylist(), after.to_pylist(), strict=True)):
        assert new == (old if ordinal not in (2, 8) else {**empty, "ordinal": ordinal, "id": ordinal + 1})
    assert blanked.licenses == {"CC0-1.0": 2}


def test_one_after_the_other_gives_the_bytes_of_both_at_once(tmp_path: Path) -> None:
    whole = part(tmp_path)
    first = blank_part(whole, [2], tmp_path / "first.parquet")
    second = blank_part(first.path, [2, 8], tmp_path / "second.parquet")
    both = blank_part(whole, [2, 8], tmp_path / "both.parquet")
    assert second.sha256 == both.sha256 != first.sha256
    assert second.licenses == {"CC0-1.0": 1}
    again = blank_part(both.path, [8, 2], tmp_path / "again.parquet")
    assert (again.sha256, again.licenses.total()) == (both.sha256, 0)


def test_blanking_nothing_keeps_the_bytes(tmp_path: Path) -> None:
    whole = part(tmp_path)
    assert blank_part(whole, [], tmp_path / "same.parquet").path.read_bytes() == whole.read_bytes()
