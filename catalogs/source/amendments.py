"""Corrections of a dataset's catalog from a source catalog: the credits and origins of images.

Rows with the same image_id belong together. As in `segmint.catalogs.source.normalize`, every step either streams the
rows or runs in DuckDB.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segmint.catalogs.parquet import AMENDABLE, RowGroupWriter, normalized_schema, together
from segmint.catalogs.source.conform import shown
from segmint.catalogs.source.normalize import MARK_ROWS, open_database, stage_catalog, write_marked
from segmint.infra.storage.location import Location
from segmint.infra.uris import only_path

FIXED = ("license", "uri", "sha256", "redistributable", "valid_until", "opt_out", "prompts")
"""Pinned columns. If a source catalog contains a value in one of them, the value must equal the dataset's value."""

SHOWN = 20
"""Maximum number of changes that are listed. All changes are counted."""

# A catalog may repeat a row often. Therefore, only the first of the rows with the same image_id and uri is joined.
_HEADS = """
CREATE TEMP TABLE heads AS SELECT image_id, uri, min(ordinal) AS row FROM rows_of($asked) GROUP BY image_id, uri
"""

# An image matches the rows with its image_id. But if the dataset rejected a row as a duplicate, source rows with the
# same image_id and uri match that row instead of the image. The corrected catalog thus includes the rejected row.
_NAMED = """
CREATE TEMP TABLE named AS
WITH pinned AS (SELECT ordinal, image_id, uri, duplicate_of FROM rows_of($part)),
     other AS (SELECT DISTINCT image_id, uri FROM pinned WHERE duplicate_of IS NOT NULL)
SELECT pinned.ordinal AS place, heads.row
FROM pinned JOIN heads USING (image_id) LEFT JOIN other ON other.image_id = heads.image_id AND other.uri = heads.uri
WHERE pinned.duplicate_of IS NULL AND (heads.uri = pinned.uri OR other.uri IS NULL)
UNION ALL
SELECT pinned.ordinal, heads.row
FROM pinned JOIN heads USING (image_id, uri)
WHERE pinned.duplicate_of IS NOT NULL
"""

# As in a build, the first match is used. All other matches must have the same values.
_CHOSEN = "CREATE TEMP TABLE chosen AS SELECT place, min(row) AS row FROM named GROUP BY place"

# All rows of an image_id except the first are marked as its duplicates.
_OTHERS = """
CREATE TEMP TABLE others AS
WITH matched AS (SELECT DISTINCT chosen.row AS first, named.row AS head FROM named JOIN chosen USING (place)),
     again AS (SELECT ordinal, image_id, uri FROM rows_of($asked) WHERE duplicate_of IS NOT NULL)
SELECT matched.first, again.ordinal AS row
FROM again JOIN heads USING (image_id, uri) JOIN matched ON matched.head = heads.row
WHERE again.ordinal <> matched.first
"""

_CONTRADICTING = """
SELECT first.ordinal + 1, other.ordinal + 1, first.image_id, {one}, {another}
FROM others JOIN rows_of($asked) first ON first.ordinal = others.first
JOIN rows_of($asked) other ON other.ordinal = others.row
WHERE {one} IS DISTINCT FROM {another} ORDER BY others.row LIMIT 1
"""

_PAIRS = """rows_of($part) pinned JOIN chosen ON pinned.ordinal = chosen.place
JOIN rows_of($asked) asked ON asked.ordinal = chosen.row"""

_DIFFERS = {
    name: f"asked.{name} IS NOT NULL AND asked.{name} IS DISTINCT FROM pinned.{name}"
    for name in ("uri", "sha256", "redistributable", "valid_until", "prompts")
} | {
    "license": "asked.license IS NOT NULL AND lower(asked.license) IS DISTINCT FROM lower(pinned.license)",
    "opt_out": "asked.opt_out AND NOT coalesce({pinned}, false)",  # false adds no information
}

_DIFFERENT = f"""
SELECT count(*), min(chosen.row) + 1, arg_min(pinned.image_id, chosen.row),
       arg_min(coalesce({{pinned}}::VARCHAR, ''), chosen.row), arg_min(asked.{{column}}::VARCHAR, chosen.row)
FROM {_PAIRS} WHERE {{differs}}
"""

_VALUES = """
SELECT {columns} FROM rows_of($part) pinned LEFT JOIN chosen ON pinned.ordinal = chosen.place
LEFT JOIN rows_of($asked) asked ON asked.ordinal = chosen.row ORDER BY pinned.ordinal
"""

_UNKNOWN = """
SELECT count(*), arg_min(asked.image_id, asked.ordinal) FROM rows_of($asked) asked
ANTI JOIN rows_of($parts) pinned USING (image_id)
"""


@dataclass(frozen=True)
class PinnedDifference:
    """Rows that differ from the dataset in a pinned column. `row` is the first of them, counted from 1."""

    rows: int
    row: int
    image_id: str
    pinned: str
    found: str


@dataclass(frozen=True)
class AmendedValue:
    """Correction of a single value. None means that there is no value."""

    image_id: str
    column: str
    before: str | None
    now: str | None


@dataclass
class Amendments:
    """Corrections of a dataset's catalog that a source catalog requests."""

    rows: int = 0  # number of rows with a changed value
    values: dict[str, int] = field(default_factory=dict)  # number of changed values, by column
    examples: list[AmendedValue] = field(default_factory=list)  # the first `SHOWN` changes
    matched: int = 0  # rows of the dataset that the source catalog names
    shards: set[int] = field(default_factory=set)  # shards that contain a changed row
    unknown: int = 0  # rows of the source catalog that don't match a row of the dataset
    first_unknown: str | None = None  # image_id of the first of these rows
    different: dict[str, PinnedDifference] = field(default_factory=dict)  # by column of `FIXED`
    contradiction: str | None = None  # the first two rows for the same image with different values, as text
    parts: dict[int, Path] = field(default_factory=dict)  # amended parts on the local disk, by number


def stage_amendments(catalog: Location, folder: Path, *, ignored: Collection[str] = ()) -> Path:
    """Write the rows of a source catalog to a file in `folder`, mark duplicates, and return the path of the file.

    `ignored` has the same meaning as in `stage_catalog`. Raises the errors of `normalize`.
    """
    staged, _ = stage_catalog(catalog, folder, ignored=ignored)
    return write_marked(staged, folder / "asked.parquet", folder).path


def amend_parts(
    asked: Path,
    parts: Sequence[Path],
    folder: Path,
    *,
    images_per_shard: int,
    clear: Collection[str] = (),
) -> Amendments:
    """Compare the rows from `stage_amendments` with the parts of a dataset's catalog, and write the parts that change.

    `parts` are local files. If `asked` omits a value or leaves it blank, the dataset's value stays. In the columns in
    `clear`, it is removed instead. The bytes of an amended part depend only on its rows, so a repeated amendment
    produces the same file.
    """
    found = Amendments()
    with open_database(folder) as database:
        source = {"asked": only_path(asked)}
        database.execute(_HEADS, source)
        for number, part in enumerate(parts):
            target = {"part": only_path(part)}
            for table in ("named", "chosen", "others"):
                database.execute(f"DROP TABLE IF EXISTS {table}")
            database.execute(_NAMED, target)
            database.execute(_CHOSEN)
            database.execute(_OTHERS, source)
            if found.contradiction is None and one_row(database, "SELECT count(*) FROM others", {})[0]:
                found.contradiction = _contradiction(database, source)
            found.matched += one_row(database, "SELECT count(*) FROM chosen", {})[0]
            _compare_fixed(database, asked, part, found)
            destination = folder / f"amended-{number}.parquet"
            if _write_amended(database, part, source | target, destination, clear, images_per_shard, found):
                found.parts[number] = destination
        known = source | {"parts": [only_path(part) for part in parts]}
        found.unknown, found.first_unknown = one_row(database, _UNKNOWN, known)
    return found


def given(column: str) -> str:
    """Return an SQL expression for a text column that turns text with only spaces into null."""
    return f"CASE WHEN regexp_matches({column}, '[^\\s\\pZ]') THEN {column} END"


def said(value: str | None) -> str:
    """Return a value for a message. None means that there is no value."""
    return "nothing" if value is None else shown(value)


def _contradiction(database: duckdb.DuckDBPyConnection, source: Mapping[str, Any]) -> str | None:
    """Describe the first two rows for the same image with different values in an amendable column, counted from 1."""
    for name in AMENDABLE:
        query = _CONTRADICTING.format(one=given(f"first.{name}"), another=given(f"other.{name}"))
        for one, other, image_id, first, second in database.execute(query, source).fetchall():
            rows = f"rows {one} and {other} have the image_id {shown(image_id)}"
            return f"{rows}, but {name} {said(first)} and {said(second)}"
    return None


def _compare_fixed(database: duckdb.DuckDBPyConnection, asked: Path, part: Path, found: Amendments) -> None:
    parameters = {"asked": only_path(asked), "part": only_path(part)}
    asked_columns, part_columns = (set(pq.read_schema(path).names) for path in (asked, part))
    for column in FIXED:
        if column not in asked_columns:
            continue  # an added column
        pinned = f"pinned.{column}" if column in part_columns else "NULL"
        query = _DIFFERENT.format(column=column, pinned=pinned, differs=_DIFFERS[column].format(pinned=pinned))
        rows, *first = one_row(database, query, parameters)
        if rows:
            earlier = found.different.get(column)
            now = PinnedDifference(rows, *first)
            found.different[column] = now if earlier is None else replace(earlier, rows=earlier.rows + rows)


def _write_amended(
    database: duckdb.DuckDBPyConnection,
    part: Path,
    parameters: Mapping[str, Any],
    destination: Path,
    clear: Collection[str],
    images_per_shard: int,
    found: Amendments,
) -> bool:
    """Write a part with its corrections, and return whether it contains any."""
    pinned = {
        name: f"CASE WHEN chosen.row IS NULL THEN pinned.{name} END" if name in clear else f"pinned.{name}"
        for name in AMENDABLE
    }
    columns = ", ".join(
        f"coalesce({given(f'asked.{name}')}, {otherwise}) AS {name}" for name, otherwise in pinned.items()
    )
    reader = database.sql(_VALUES.format(columns=columns), params=dict(parameters)).to_arrow_reader(MARK_ROWS)
    before = found.rows
    schema = normalized_schema(pq.read_schema(part).names)
    with pq.ParquetFile(part) as file, RowGroupWriter(destination, schema) as writer:
        for batch, amended in together(file.iter_batches(batch_size=MARK_ROWS), iter(reader)):
            _count(batch, amended, images_per_shard, found)
            arrays = [
                (amended if name in AMENDABLE else batch).column(name).cast(schema.field(name).type)
                for name in schema.names
            ]
            writer.add([pa.RecordBatch.from_arrays(arrays, schema=schema)])
    return found.rows > before


def _count(batch: pa.RecordBatch, amended: pa.RecordBatch, images_per_shard: int, found: Amendments) -> None:
    changed = pa.array([False] * batch.num_rows)
    for name in AMENDABLE:
        one, other = batch.column(name), amended.column(name)
        same = pc.or_(pc.equal(one, other).fill_null(False), pc.and_(pc.is_null(one), pc.is_null(other)))
        different = pc.indices_nonzero(pc.invert(same))
        if not len(different):
            continue
        changed = pc.or_(changed, pc.invert(same))
        found.values[name] = found.values.get(name, 0) + len(different)
        for index in different.to_pylist()[: SHOWN - len(found.examples)]:
            values = (column[index].as_py() for column in (one, other))
            found.examples.append(AmendedValue(batch.column("image_id")[index].as_py(), name, *values))
    found.rows += pc.sum(changed).as_py() or 0
    found.shards |= set(pc.divide(batch.column("ordinal").filter(changed), images_per_shard).unique().to_pylist())


def one_row(database: duckdb.DuckDBPyConnection, query: str, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
    """Run a query whose result has exactly one row, and return that row."""
    (row,) = database.execute(query, dict(parameters)).fetchall()
    return tuple(row)
