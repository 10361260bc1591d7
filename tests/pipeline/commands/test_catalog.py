"""`segmint catalog`: what it writes and says, and what it refuses."""

import json
from pathlib import Path

from typer.testing import CliRunner

from segmint.pipeline.commands.cli import app
from tests.support.tars import member_uris, tar_of


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["catalog", *words])
    return result.exit_code, result.stdout, result.stderr


def test_a_scan_says_what_is_unusable_and_overwrites_nothing(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    code, _, said = run("scan", str(photos), "-o", str(tmp_path / "c.jsonl"))
    assert (code, said) == (2, f"error: {photos} does not exist: expected a folder or tar with images\n")
    photos.mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (photos / name).touch()
    (photos / "a.jpg.license").write_text("CC-BY-4.0")
    (photos / "b.jpg.json").write_text('{"license": "CC0-1.0", "image_id": "a.jpg"}')
    catalog = tmp_path / "c.jsonl"
    code, _, said = run("scan", str(photos), "-o", str(catalog))
    assert code == 0
    assert "a build would reject 2 of 3 rows:" in said
    assert "license_missing: 1 (row 3), such as photos/c.jpg" in said
    assert "duplicate_id: 1 (row 2), such as photos/b.jpg" in said
    assert "an audit will find missing_attribution: 1 (row 1)" in said
    before = catalog.read_bytes()
    code, _, said = run("scan", str(photos), "-o", str(catalog))
    assert (code, catalog.read_bytes()) == (2, before)
    assert "already exists and is not overwritten: choose another file, or delete it first" in said
    other = str(tmp_path / "other.jsonl")
    code, out, _ = run("scan", str(photos), "-o", other, "--absolute", "--attribution", "Ann", "--json")
    found = json.loads(out)
    assert (code, found["rows"], found["unusable"], found["findings"]["audit"]) == (0, 3, 2, {})
    assert found["findings"]["notices"]["local_path"]["count"] == 3
    assert json.loads(Path(other).read_text().splitlines()[0])["uri"] == str(photos / "a.jpg")


def test_a_scan_of_tars_says_which_it_could_not_list(tmp_path: Path) -> None:
    whole = tar_of({"a.jpg": b"a", "b.jpg": b"b"})
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "0.tar").write_bytes(whole)
    (photos / "cut.tar").write_bytes(whole[:3000])
    words = ("--license", "CC0-1.0", "--hash")
    code, out, said = run("scan", str(photos), "-o", str(tmp_path / "c.jsonl"), *words)
    assert (code, out.startswith("not checked: cut.tar: not a whole, uncompressed tar")) == (3, True)
    assert "c.jsonl: 2 rows" in said
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert [row["uri"] for row in rows] == member_uris("photos/0.tar", whole)
    assert [row["image_id"] for row in rows] == ["0.tar/a.jpg", "0.tar/b.jpg"]
    assert {len(row["sha256"]) for row in rows} == {64}
    code, _, _ = run("scan", str(photos / "0.tar"), "-o", str(tmp_path / "one.jsonl"), *words)
    assert (code, (tmp_path / "one.jsonl").read_bytes()) == (0, (tmp_path / "c.jsonl").read_bytes())
    code, _, said = run("scan", str(photos / "cut.tar"), "-o", str(tmp_path / "none.jsonl"))
    assert (code, "can be listed: cut.tar: not a whole" in said) == (3, True)
    assert not (tmp_path / "none.jsonl").exists()
