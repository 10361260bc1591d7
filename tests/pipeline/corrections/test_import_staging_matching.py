"""Matching of a file's images with a dataset's rows."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmint.catalogs.source.normalize import normalize, open_database
from segmint.pipeline.corrections.import_staging import MatchMode, find_homes
from tests.support.locations import location_of


@pytest.mark.parametrize("name", ["ab", "a*", "[a]b?'", "submission=7", "uri=x"])
def test_names_of_folders_are_neither_patterns_nor_values(tmp_path: Path, name: str) -> None:
    catalog = tmp_path / "c.csv"
    catalog.write_text("uri,license\na/1.jpg,CC0-1.0\na/2.jpg,CC0-1.0\n")
    part = normalize(location_of(catalog), tmp_path / "part.parquet").path.name
    manifest = SimpleNamespace(catalog=[SimpleNamespace(path=part, first_shard=0, rows=2)], images_per_shard=2)
    for folder in ("ab", name):
        (tmp_path / folder).mkdir(exist_ok=True)
        keys = ["1.jpg", "2.jpg"] if folder == name else ["1.jpg", "none.jpg"]
        rows = [
            {"submission": row, "ordinal": row, "name": key, "keys": [key], "saved": None}
            for row, key in enumerate(keys)
        ]
        for file in ("answers", "masks"):
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / folder / f"read-{file}.parquet")
    for match in (MatchMode.NUMBER, MatchMode.URI):
        with open_database(tmp_path / name) as database:
            find_homes(tmp_path / name, cast(Any, manifest), match, location_of(tmp_path), database)
            assert database.execute("SELECT * FROM chosen ORDER BY ALL").fetchall() == [(0, 0), (1, 1)]


@pytest.mark.parametrize(
    ("match", "names", "chosen"),
    [
        (MatchMode.URI, ["cam1/1.jpg", "cam2/1.jpg", "cam1/2.jpg", "cam1/2.jpg"], [(2, 1)]),
        (MatchMode.IMAGE_ID, ["cam1/1.jpg", "1.png", "a/2.jpg"], [(2, 1)]),
        (MatchMode.NUMBER, ["cam1/1.jpg", "cam2/1.jpg", "a/2.jpg", "b/2.jpg"], [(0, 0), (2, 1)]),
    ],
)
def test_photographs_of_other_folders_are_not_taken_for_the_datasets(
    tmp_path: Path, match: MatchMode, names: list[str], chosen: list[tuple[int, int]]
) -> None:
    catalog = tmp_path / "c.csv"
    catalog.write_text("uri,license,image_id\na/1.jpg,CC0-1.0,1\na/2.jpg,CC0-1.0,2\n")
    part = normalize(location_of(catalog), tmp_path / "part.parquet").path.name
    manifest = SimpleNamespace(catalog=[SimpleNamespace(path=part, first_shard=0, rows=2)], images_per_shard=2)
    rows = []
    for number, name in enumerate(names):
        keys = [name.rpartition("/")[2]]
        if match is MatchMode.IMAGE_ID:
            keys.append(Path(name).stem)
        rows.append({"submission": number, "ordinal": int(Path(name).stem) - 1, "name": name, "keys": keys})
    for file in ("answers", "masks"):
        table = pa.Table.from_pylist(rows).append_column("saved", pa.nulls(len(rows), pa.float64()))
        pq.write_table(table, tmp_path / f"read-{file}.parquet")
    with open_database(tmp_path) as database:
        find_homes(tmp_path, cast(Any, manifest), match, location_of(tmp_path), database)
        assert database.execute("SELECT * FROM chosen ORDER BY ALL").fetchall() == chosen
        found = [status for (status,) in database.execute("SELECT status FROM found ORDER BY submission").fetchall()]
    if match is not MatchMode.NUMBER:
        assert found[:2] == ["ambiguous", "ambiguous"]
