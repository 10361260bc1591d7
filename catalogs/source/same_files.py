"""Rows of a catalog with the same image file but different image_ids, found by the given SHA-256 or by URI."""

from contextlib import AbstractContextManager
from pathlib import Path

import duckdb

from segmint.catalogs.source.normalize import MARK_ROWS, SortedPairs, open_database

# As in `segmint.catalogs.source.normalize`, only rows whose hash occurs twice are compared as text. A group's number is
# its first ordinal; for URIs, it is made negative to be distinct.
_GROUPS = """
WITH suspects AS (SELECT hash({column}) AS h FROM read_parquet($staged) WHERE {column} IS NOT NULL
                  GROUP BY h HAVING count(*) > 1),
     candidates AS (SELECT ordinal, {column} AS value FROM read_parquet($staged)
                    WHERE {column} IS NOT NULL AND hash({column}) IN (SELECT h FROM suspects)),
     grouped AS (SELECT ordinal, min(ordinal) OVER same AS first, count(*) OVER same AS rows
                 FROM candidates WINDOW same AS (PARTITION BY value))
SELECT ordinal, {number} AS number FROM grouped WHERE rows > 1
"""
_SAME = " UNION ALL ".join(
    f"({_GROUPS.format(column=column, number=number)})"
    for column, number in (("sha256", "first"), ("uri", "-first - 1"))
)


class SameFiles(AbstractContextManager["SameFiles"]):
    """Context manager for the groups of a staged catalog's rows with the same file, read in row order."""

    def __init__(self, staged: Path, folder: Path, memory_limit: str = "1GB") -> None:
        """`staged` is from `stage_catalog`; DuckDB spills into a folder in `folder`."""
        apart = folder / "same"  # another database may spill into `folder`
        apart.mkdir()
        self._database: duckdb.DuckDBPyConnection = open_database(apart, memory_limit)
        query = f"SELECT * FROM ({_SAME}) ORDER BY ordinal"
        self._groups = SortedPairs(self._database.sql(query, params={"staged": str(staged)}).to_arrow_reader(MARK_ROWS))

    def until(self, stop: int) -> dict[int, tuple[int, ...]]:
        """Return the group numbers of each row with an ordinal below `stop` that was not returned yet."""
        found: dict[int, tuple[int, ...]] = {}
        for ordinal, number in zip(*(values.tolist() for values in self._groups.until(stop)), strict=True):
            found[ordinal] = (*found.get(ordinal, ()), number)
        return found

    def __exit__(self, *_: object) -> None:
        self._database.close()
