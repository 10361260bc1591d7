"""Matching of a file's images with a dataset's rows."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmint.catalogs.source.normalize import normalize, open_database
from segmint.pipeline.corrections.imports.matching import MatchMode, find_homes
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
