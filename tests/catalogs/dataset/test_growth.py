"""Comparing a source catalog with a pinned one: new rows are numbered, missing and changed ones are named."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segmint.catalogs.dataset.growth import CatalogGrowth, ColumnChange, compare_catalog
from segmint.catalogs.dataset.tombstones import RemovedImage
from segmint.catalogs.source.files import read_rows
from segmint.catalogs.source.normalize import normalize
from segmint.catalogs.source.scan import write_catalog
from segmint.infra.storage.location import Location
from tests.support.locations import location_of


def row(image_id: str, **changes: Any) -> dict[str, Any]:
    return {"uri": f"{image_id}.jpg", "license": "CC0-1.0", "image_id": image_id, **changes}


def compare(folder: Path, *catalogs: list[dict[str, Any]]) -> CatalogGrowth:
    """Compare the last catalog with the others, which are pinned one after another, 100 ordinals each."""
    parts: list[Location] = []
    for number, rows in enumerate(catalogs):
        source = folder / f"source-{number}.parquet"
        source.unlink(missing_ok=True)
        write_catalog(iter(rows), location_of(source))
        growth = (
            compare_catalog(
                location_of(source),
                folder / f"part-{number}.parquet",
                parts=parts,
                first_ordinal=100 * number,
            )
            if parts
            else None
        )
        if growth is None:
            normalize(location_of(source), folder / "part-0.parquet")
        parts.append(location_of(folder / f"part-{number}.parquet"))
    assert growth is not None
    return growth


def new_rows(growth: CatalogGrowth) -> list[tuple[int, int, str, int | None]]:
    rows = read_rows(location_of(growth.new.path), 0, 10_000).to_pylist()
    return [(r["ordinal"], r["id"], r["image_id"], r["duplicate_of"]) for r in rows]


def test_only_new_ids_are_taken_and_numbered_on(tmp_path: Path) -> None:
    """Wherever they are, and whatever the order of the known rows."""
    growth = compare(tmp_path, [row(i) for i in ("a", "b", "a")], [row(i) for i in ("b", "c", "a", "d", "c")])
    assert growth.keeps_all
    assert growth.new.rows == 3
    assert new_rows(growth) == [(100, 101, "c", None), (101, 102, "d", None), (102, 103, "c", 100)]


def test_all_parts_are_known(tmp_path: Path) -> None:
    growth = compare(
        tmp_path, [row("a"), row("b")], [row(i) for i in "abc"], [row(i) for i in "dcba"], [row(i) for i in "bcad"]
    )
    assert growth.keeps_all
    assert growth.new.rows == 0
    assert new_rows(growth) == []
    assert not [path for path in tmp_path.iterdir() if path.is_dir()], "intermediate files are gone"


def test_parts_with_and_without_an_added_column_are_compared_alike(tmp_path: Path) -> None:
    """The first part has no `opt_out`, the second has."""
    catalogs = [[row("a")], [row("a"), row("b", opt_out=True)]]
    growth = compare(tmp_path, *catalogs, [row("b", opt_out=True), row("a"), row("c")])
    assert (growth.keeps_all, growth.new.rows) == (True, 1)
    changed = compare(tmp_path, *catalogs, [row("a", opt_out=True), row("b")]).changed
    assert changed == {"opt_out": ColumnChange(2, "a", "", "true")}


def test_what_is_gone_is_counted_and_the_first_named(tmp_path: Path) -> None:
    growth = compare(tmp_path, [row(i) for i in "abcd"], [row(i) for i in "xad"])
    assert not growth.keeps_all
    assert (growth.gone, growth.first_gone, dict(growth.changed)) == (2, "b", {})
    assert growth.new.rows == 1


@pytest.mark.parametrize(
    ("column", "before", "now", "told"),
    [
        ("license", "CC0-1.0", "CC-BY-4.0", ("CC0-1.0", "CC-BY-4.0")),
        ("uri", "b.jpg", "elsewhere/b.jpg", ("b.jpg", "elsewhere/b.jpg")),
        ("attribution", None, "someone", ("", "someone")),
        ("redistributable", True, None, ("true", "")),
        ("sha256", "0" * 64, "f" * 64, ("0" * 64, "f" * 64)),
    ],
)
def test_what_changed_is_named_by_column(
    tmp_path: Path, column: str, before: Any, now: Any, told: tuple[str, str]
) -> None:
    pinned = [row("a"), row("b", **{column: before}), row("c", **{column: before})]
    changed = [row("c", **{column: now}), row("b", **{column: now}), row("a"), row("d")]
    if column == "uri":
        pinned[2]["uri"] = changed[0]["uri"]
    growth = compare(tmp_path, pinned, changed)
    rows = 1 if column == "uri" else 2
    assert growth.changed == {column: ColumnChange(rows, "b", *told)}
    assert growth.gone == 0


def test_a_duplicate_that_is_gone_is_a_change(tmp_path: Path) -> None:
    """Both rows of an id were pinned, and one of them is gone."""
    growth = compare(tmp_path, [row("a"), row("a", uri="other.jpg")], [row("a"), row("b")])
    assert growth.changed == {"uri": ColumnChange(1, "a", "other.jpg", "a.jpg")}


ids = st.lists(st.sampled_from(["a", "b", "é", "e\u0301", "1", "01", "A"]), max_size=12)


@given(pinned=ids.filter(bool), now=ids)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_is_what_sets_would_say(tmp_path: Path, pinned: list[str], now: list[str]) -> None:
    growth = compare(tmp_path, [row(i) for i in pinned], [row(i) for i in now])
    assert growth.gone == sum(i not in now for i in pinned)
    assert growth.changed == {}
    assert [image_id for _, _, image_id, _ in new_rows(growth)] == [i for i in now if i not in pinned]


def test_rows_of_what_was_taken_down_are_not_new_whatever_names_them(tmp_path: Path) -> None:
    image = RemovedImage(ordinal=0, id=1, image_id="a", uri="a.jpg", sha256="AB" * 32)
    fresh = [
        row("a", uri="other.jpg"),
        row("p", uri="./a.jpg"),
        row("q", uri=f"{tmp_path}/a.jpg"),
        row("r", sha256="ab" * 32),
        row("s", sha256="cd" * 32),
        row("b"),
    ]
    for name, rows in (("known", [row("b")]), ("grown", fresh)):
        write_catalog(iter(rows), location_of(tmp_path / f"{name}.parquet"))
    normalize(location_of(tmp_path / "known.parquet"), tmp_path / "part-0.parquet")
    growth = compare_catalog(
        location_of(tmp_path / "grown.parquet"),
        tmp_path / "part-1.parquet",
        parts=[location_of(tmp_path / "part-0.parquet")],
        first_ordinal=100,
        taken=[image],
    )
    assert growth.keeps_all
    assert new_rows(growth) == [(100, 101, "s", None)]


def test_what_the_catalog_refuses_is_pinned(tmp_path: Path) -> None:
    refused = {"refused_reason": "unfit", "refused_detail": "flat"}
    plain = compare(tmp_path, [row("a"), row("b")], [row("a"), row("b"), row("c", **refused)])
    assert plain.keeps_all
    assert [r["refused_reason"] for r in read_rows(location_of(plain.new.path), 0, 1000).to_pylist()] == ["unfit"]
    now = compare(tmp_path, [row("a")], [row("b", **refused)], [row("a", **refused), row("b", **refused), row("c")])
    assert list(now.changed) == ["refused_reason"]
    assert (now.changed["refused_reason"].image_id, now.changed["refused_reason"].now) == ("a", "unfit")
    assert new_rows(now) == [(200, 201, "c", None)]


@pytest.mark.parametrize("name", ["image_id=a", "license=MIT", "ordinal=0", "[a]*?"])
def test_names_of_folders_are_neither_patterns_nor_values(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    growth = compare(folder, [row("a"), row("b")], [row(i) for i in "bcad"])
    assert growth.keeps_all
    assert new_rows(growth) == [(100, 101, "c", None), (101, 102, "d", None)]
