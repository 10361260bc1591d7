"""The format of datasets is frozen: names and types of columns, JSON keys, and file names."""

import json
import re
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest

from segmint.catalogs import layout
from segmint.catalogs.dataset.commits import Commit, CommitSums, Reservation, summary_json
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.operators import rows
from segmint.operators.segment import numerics
from segmint.operators.segment.numerics import Numerics
from tests.support import format_description
from tests.support.format_description import COMMAND, changes, describe, frozen_path, main, misfits, refusal


@pytest.fixture(scope="module")
def frozen() -> dict[str, Any]:
    """The frozen description of the format that the code has."""
    path = frozen_path()
    assert path.is_file(), f"a new format needs its description: run `{COMMAND}`"
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def test_the_code_has_the_frozen_format(frozen: dict[str, Any]) -> None:
    found = changes(frozen, describe())
    assert not found, refusal(found)


class OwnedManifest(DatasetManifest):
    owner: str | None = None


@dataclass(frozen=True)
class MoreNumerics(Numerics):
    blas: str = field(default="", kw_only=True)


def renamed(schema: pa.Schema, old: str, new: str) -> pa.Schema:
    return pa.schema([each.with_name(new) if each.name == old else each for each in schema])


def test_additions_and_all_other_changes_are_named(frozen: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    images, masks, rejects = rows.IMAGES, rows.MASKS, rows.REJECTS
    hashes = images.get_field_index("hashes")
    images = images.set(hashes, pa.field("hashes", pa.list_(pa.int64()))).append(pa.field("blur", pa.float64()))
    monkeypatch.setitem(rows.SCHEMAS, "images", images)
    monkeypatch.setitem(rows.SCHEMAS, "masks", renamed(masks, "container", "inside"))
    monkeypatch.setitem(rows.SCHEMAS, "rejects", pa.schema([*rejects][::-1]))
    monkeypatch.setattr(layout, "PATTERNS", (*layout.PATTERNS, r"notes\.json"))
    monkeypatch.setattr(format_description, "DatasetManifest", OwnedManifest)
    monkeypatch.setattr(format_description, "Numerics", MoreNumerics)
    to_json = Commit.to_json
    monkeypatch.setattr(Commit, "to_json", lambda commit: to_json(commit).replace(b'"numerics"', b'"numeric"'))
    found = changes(frozen, describe())
    assert found == [
        'columns: images: hashes: was "list<uint64>", is "list<int64>"',
        "columns: images: blur: added",
        "columns: masks: container: removed",
        "columns: masks: inside: added",
        "columns: rejects: in another order",
        "json: dataset.json: owner: added",
        "json: commits: numerics: removed",
        "json: commits: numeric: added",
        "numerics: blas: added",
        r"names: notes\.json: added",
    ]
    assert refusal(found[1:2]).splitlines()[1:] == [
        "  columns: images: blur: added",
        "Even an addition needs a new schema_version. Undo the change, or raise SCHEMA_VERSION in catalogs/layout.py, "
        f"run `{COMMAND}`, and change docs/dataset.md",
    ]


def test_numerics_may_get_a_field_with_the_value_that_older_datasets_have(
    frozen: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(format_description, "Numerics", MoreNumerics)
    monkeypatch.setattr(numerics, "ADDED", {"blas": "mkl"})
    assert changes(frozen, describe()) == []


def test_reservations_and_summaries_have_the_frozen_forms(frozen: dict[str, Any]) -> None:
    counts = {"images": 1, "rejected:x": 2}
    sums = CommitSums(bytes=1, counts=counts, files=4, numerics={"0a": 1}, shards=1, most_redacted=((1, 0.25),))
    for paths in (("shards/sa_000000-0123456789ab.tar", "images/x.parquet"), ()):
        assert re.fullmatch(frozen["forms"]["reservations"], Reservation(0, 9, paths).to_json().decode())
    for each in (sums, CommitSums(**{**vars(sums), "most_redacted": ()})):
        assert re.fullmatch(frozen["forms"]["summaries"], summary_json(each).decode())


def test_a_frozen_description_is_never_written_again() -> None:
    with pytest.raises(SystemExit, match="never changes"):
        main()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"blur": 1}, ".blur: not in the description"),
        ({"score": True}, '.score: true, expected "int | null"'),
        ({"format": "segmint submission"}, '.format: "segmint submission", expected "\\"segmint rating\\""'),
        ({"rater": None}, '.rater: null, expected "str"'),
        ({"image": [1]}, '.image: [1], expected "int"'),
        ({"score": None, "seconds": 2.5}, None),
    ],
)
def test_a_file_with_other_keys_or_values_does_not_fit(
    frozen: dict[str, Any], change: dict[str, Any], line: str | None
) -> None:
    rating = {
        "format": "segmint rating", "schema_version": 1, "image": 1, "mask": 10_000, "n": 1, "counts_sha256": "0" * 64,
        "rater": "Ada", "score": 7, "seconds": 1.0, "saved_at": "2026-11-22T10:00:00Z",
    }  # fmt: skip
    kind = frozen["json"]["annotations/ratings"]
    assert list(misfits({**rating, **change}, kind)) == ([] if line is None else [line])
    assert list(misfits({name: rating[name] for name in rating if name != "n"}, kind)) == [".n: missing"]
