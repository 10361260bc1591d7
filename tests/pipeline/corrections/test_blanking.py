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
    value["download_url"] = "https://example.org/a.jpg"
    prompt = {"box": [1, 2, 3, 4], "points": [[5, 6]], "point_labels": [1], "label": "cup", "score": 0.5}
    value["prompts"] = {"width": 40, "height": 30, "prompts": [prompt]}
    lines = [json.dumps({**value, "uri": f"{i}.jpg", "image_id": f"i{i % 8}"}) for i in range(rows)]
    (folder / "catalog.jsonl").write_text("\n".join(lines))
    normalize(location_of(folder / "catalog.jsonl"), folder / "part.parquet")
    return folder / "part.parquet"


def test_nothing_but_ordinal_and_id_is_left(tmp_path: Path) -> None:
    whole = part(tmp_path)
    licenses = blank_part(whole, [8, 2], tmp_path / "blank.parquet")
    before, after = (pq.read_table(path) for path in (whole, tmp_path / "blank.parquet"))
    assert after.schema == before.schema == STAGED
    empty = dict.fromkeys(STAGED.names) | {"image_id": "", "uri": ""}
    for ordinal, (old, new) in enumerate(zip(before.to_pylist(), after.to_pylist(), strict=True)):
        assert new == (old if ordinal not in (2, 8) else {**empty, "ordinal": ordinal, "id": ordinal + 1})
    assert licenses == {"CC0-1.0": 2}


def test_one_after_the_other_gives_the_bytes_of_both_at_once(tmp_path: Path) -> None:
    whole = part(tmp_path)
    first, second, both, again = (tmp_path / name for name in ("first", "second", "both", "again"))
    blank_part(whole, [2], first)
    assert blank_part(first, [2, 8], second) == {"CC0-1.0": 1}
    blank_part(whole, [2, 8], both)
    assert second.read_bytes() == both.read_bytes() != first.read_bytes()
    assert blank_part(both, [8, 2], again).total() == 0
    assert again.read_bytes() == both.read_bytes()


def test_blanking_nothing_keeps_the_bytes(tmp_path: Path) -> None:
    whole = part(tmp_path)
    blank_part(whole, [], tmp_path / "same.parquet")
    assert (tmp_path / "same.parquet").read_bytes() == whole.read_bytes()
