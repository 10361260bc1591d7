"""A dataset's Parquet as DuckDB views, and SQL conditions on them.

A query reads only its columns, in place and in constant memory.
"""

import json
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.dataset.manifest import read_manifest
from segmint.catalogs.findings import FindingCollector
from segmint.catalogs.layout import ADDED_COLUMNS, DamagedDatasetError, shard_name
from segmint.catalogs.lineage import StageColumn
from segmint.catalogs.parquet import Row
from segmint.infra.errors import UsageError, last_line
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.errors import NotFoundError, StorageFaultError
from segmint.infra.storage.location import Location, StorageFiles
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import LOCAL, local_path, only_path, scheme

MEMORY_LIMIT = "2GB"
"""Default memory limit of DuckDB. If a query needs more, DuckDB spills to the scratch folder."""

Kind = Literal["segmint", "sa1b", "coco", "yolo"]

_DAMAGE = (
    duckdb.IOException,
    duckdb.InvalidInputException,
    duckdb.BinderException,  # a missing column, or one of another type
    duckdb.ConversionException,
    duckdb.OutOfRangeException,
)
_TYPES = {
    pa.int64(): "BIGINT",
    pa.int32(): "INTEGER",
    pa.int8(): "TINYINT",
    pa.float64(): "DOUBLE",
    pa.float32(): "FLOAT",
    pa.string(): "VARCHAR",
    pa.bool_(): "BOOLEAN",
    pa.date32(): "DATE",
}
_NAME = r"sa_([0-9]+)-[0-9a-f]{12}\.parquet$"
_SHARD = f"regexp_extract(filename, '{_NAME}', 1)::BIGINT"
_ALLOWED = frozenset(
    {"COLUMN_REF", "CONSTANT", "COMPARISON", "CONJUNCTION", "OPERATOR", "BETWEEN", "CASE", "CAST", "TYPE"}
)
_OPERATORS = {"+", "-", "*", "/", "//", "%", "^", "**", "~~", "!~~", "~~*", "!~~*"}
_PLAIN = {"abs", "ceil", "floor", "round", "sqrt", "greatest", "least", "isfinite", "isnan"}
_TEXT = {"lower", "upper", "length", "contains", "starts_with", "ends_with", "prefix", "suffix"}
_PATTERNS = {"regexp_matches", "regexp_full_match"}
_NESTED = {"list_contains", "len", "struct_extract", "array_extract", "list_value", "element_at"}
_FUNCTIONS = frozenset(_OPERATORS | _PLAIN | _TEXT | _PATTERNS | _NESTED)
_SHOWN = 200  # maximum length of a condition in an error
_EXAMPLE = "as in --select 'masks < 10' or --select \"country = 'FR' AND faces = 0\""


class TableFile(NamedTuple):
    """Parquet file of a view. Its name contains the number of its shard, as in `segmint.catalogs.layout.data_path`."""

    uri: str
    size: int  # bytes


@dataclass
class Foreign:
    """Layout of data that segmint did not write, and what was found while listing and measuring it.

    `boxes` is the number of boxes without a mask, `unlisted` the number of image files that it doesn't list, which
    nobody looked at, and `notes` contains further remarks for the user.
    """

    kind: Kind = "sa1b"
    findings: FindingCollector = field(default_factory=FindingCollector)
    boxes: int = 0
    unlisted: int = 0
    notes: list[str] = field(default_factory=list)


class DatasetTables(AbstractContextManager["DatasetTables"]):
    """Context manager that opens a dataset's Parquet as the views `images`, `masks`, and `rejects`.

    The views have the columns that docs/dataset.md describes, and a column `shard` (int64). For data that segmint
    didn't write, `kind` is its layout, `foreign` is set, and there is another view, `jpegs` (see
    `segmint.operators.foreign.layouts`). `query` is thread-safe. To use `connection` directly, create a `cursor()` in
    each thread.
    """

    def __init__(
        self,
        location: Location,
        files: Mapping[str, Sequence[TableFile]],
        schemas: Mapping[str, pa.Schema],
        folder: ScratchFolder,
        memory_limit: str = MEMORY_LIMIT,
        foreign: Foreign | None = None,
        applied: Sequence[StageColumn] = (),
    ) -> None:
        """Create the views, whose names are the keys of `files` and `schemas`. Files may lack the `applied` columns.

        Raises `DamagedDatasetError` if a file that DuckDB opens is missing or isn't valid Parquet.
        """
        self.location = location
        self.kind: Kind = "segmint" if foreign is None else foreign.kind
        self.foreign = foreign
        self._folder = folder
        self._files = files
        self._schemas = schemas
        self._added = dict[str, str]()  # SQL that adds the columns that files of a view may lack, with nulls
        self.connection = duckdb.connect(
            config={"temp_directory": str(Path(folder.name) / "spill"), "memory_limit": memory_limit}
        )
        try:
            self.connection.execute("SET enable_progress_bar = false")  # otherwise it is printed to standard output
            self.connection.execute("SET python_enable_replacements = false")  # no Python variables in queries
            self._register(files, location.storage)
            _refuse_special_files(files)
            for kind, schema in schemas.items():
                entries = list(files.get(kind, ())) or [self._empty(kind, schema)]
                own = [column.arrow_field for column in applied if column.table == kind]
                source = _select(entries, alike=not own)
                with damage_named():
                    self.connection.execute(f"CREATE VIEW {kind} AS {source}")
                found = self._check_types(kind, schema)
                if kind == "images":
                    own += [field for field in schema if field.name in ADDED_COLUMNS and field.name not in found]
                if own:
                    missing = _select([self._empty(f"added_{kind}", pa.schema(own))])
                    self._added[kind] = f" UNION ALL BY NAME {missing}"
                    self.connection.execute(f"CREATE OR REPLACE VIEW {kind} AS {source}{self._added[kind]}")
        except BaseException:
            self.close()
            raise

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> pa.Table:
        """Run a query, and return its result as an Arrow table.

        Raises `DamagedDatasetError` if a file is missing or isn't valid Parquet, and `StorageFaultError` if the store
        fails.
        """
        with self.connection.cursor() as cursor:
            return read_query(cursor, sql, parameters)

    def query_shard(self, shard: int, view: str, sql: str, parameters: Sequence[Any] = ()) -> pa.Table:
        """Run a query over the rows of a single shard in one view. This opens only that shard's files.

        Raises the errors of `query`.
        """
        files = self._shards.get(view, {}).get(shard) or [self._empty(view, self._schemas[view])]
        with self.connection.cursor() as cursor:
            rows = f"{_select(files)}{self._added.get(view, '')}"
            return read_query(cursor, f"WITH {view} AS ({rows}) {sql}", parameters)

    def rows(self, sql: str, size: int) -> Iterator[Row]:
        """Yield the rows of a query's result, with at most `size` rows in memory at a time."""
        with self.connection.cursor() as cursor:
            for batch in cursor.sql(sql).to_arrow_reader(size):
                yield from batch.to_pylist()

    def close(self) -> None:
        """Close the database and delete its scratch folder."""
        self.connection.close()
        self._folder.cleanup()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _register(self, files: Mapping[str, Sequence[TableFile]], storage: Storage) -> None:
        """Make DuckDB read remote files through our storage."""
        sizes: dict[str, dict[str, int]] = {}
        for entry in (entry for entries in files.values() for entry in entries):
            sizes.setdefault(scheme(entry.uri), {})[entry.uri] = entry.size
        for protocol in sizes.keys() - {LOCAL}:
            self.connection.register_filesystem(StorageFiles(storage, protocol, sizes[protocol]))

    @cached_property
    def _shards(self) -> Mapping[str, Mapping[int, Sequence[TableFile]]]:
        """Files of each view, keyed by shard."""
        return {kind: _by_shard(entries) for kind, entries in self._files.items()}

    def _empty(self, kind: str, schema: pa.Schema) -> TableFile:
        path = Path(self._folder.name) / "empty" / scratch_path(kind, 0)  # the folder may contain foreign tables
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(schema.empty_table(), path)
        return TableFile(str(path), path.stat().st_size)

    def _check_types(self, kind: str, schema: pa.Schema) -> Container[str]:
        """Return a view's columns.

        Raises `DamagedDatasetError` if the type of a column of plain values differs from `schema`.
        DuckDB takes the type from the first file, and converts the values in all other files to it. If a value can't be
        converted, DuckDB's error names that file.
        """
        types = dict(self.connection.execute(f"SELECT column_name, column_type FROM (DESCRIBE {kind})").fetchall())
        wrong = [
            f"{field.name} is {types[field.name]}, expected {_TYPES[field.type]}"
            for field in schema
            if field.type in _TYPES and types.get(field.name, _TYPES[field.type]) != _TYPES[field.type]
        ]
        if wrong:
            raise DamagedDatasetError(f"the tables of {kind} in {self.location} have other columns: {'; '.join(wrong)}")
        return types


def _refuse_special_files(files: Mapping[str, Sequence[TableFile]]) -> None:
    """Raise `DamagedDatasetError` if a local file is a pipe or a device, which DuckDB would read without end.

    DuckDB itself reports a missing file when it opens it.
    """
    for entry in (entry for entries in files.values() for entry in entries):
        if scheme(entry.uri) == LOCAL:
            path = local_path(entry.uri)
            if path.exists() and not path.is_file():
                raise DamagedDatasetError(f"the dataset's Parquet cannot be read: {path} isn't a regular file")


def read_query(connection: duckdb.DuckDBPyConnection, sql: str, parameters: Sequence[Any] = ()) -> pa.Table:
    """Run a query like `DatasetTables.query` on another connection, which may contain temporary tables."""
    with damage_named():
        return connection.sql(sql, params=list(parameters)).to_arrow_table()


@contextmanager
def damage_named() -> Iterator[None]:
    """Convert DuckDB's errors to `DamagedDatasetError` and `StorageFaultError`.

    `DamagedDatasetError` means that a file is missing or isn't valid Parquet, or that its columns are wrong.
    `StorageFaultError` means that the store failed.
    """
    try:
        yield
    except _DAMAGE as error:
        raise DamagedDatasetError(f"the dataset's Parquet cannot be read: {error}") from error
    except duckdb.Error as error:
        if type(error) is not duckdb.Error:
            raise
        # DuckDB raises this type for exceptions of our storage, with the traceback as text, and for damaged footers.
        text, _, _ = str(error).partition("\n\nLINE ")
        is_fault = text.startswith("Traceback") and NotFoundError.__name__ not in text
        kind = StorageFaultError if is_fault else DamagedDatasetError
        raise kind(f"the dataset's Parquet cannot be read: {last_line(Exception(text))}") from error


def open_committed(
    dataset: Location,
    schemas: Mapping[str, pa.Schema],
    memory_limit: str = MEMORY_LIMIT,
    scratch: Path | None = None,
    leave_out: frozenset[int] = frozenset(),
    commits: Iterable[Commit] | None = None,
) -> DatasetTables:
    """Open the tables of a segmint dataset: exactly the files that `commits` name.

    By default, these are the latest commits. `schemas` maps the folder of each table to its schema. Shards in
    `leave_out`, which are known to be damaged, are skipped. Raises `DamagedDatasetError` if a commit can't be read.
    """
    files: dict[str, list[TableFile]] = {kind: [] for kind in schemas}
    if commits is None:
        log = CommitLog(dataset)
        commits = log.read_all(only=log.committed().keys() - leave_out if leave_out else None)
    for commit in commits:
        for kind, found in files.items():
            entry = commit.file(kind)
            found.append(TableFile(str(dataset / entry.path), entry.size))
    manifest = read_manifest(dataset)
    applied = [] if manifest is None else [column for column in manifest.applied_columns if not column.removed]
    return DatasetTables(dataset, files, schemas, ScratchFolder(dir=scratch), memory_limit, applied=applied)


def scratch_path(view: str, shard: int) -> str:
    """Return the path in a scratch folder for a Parquet file that no commit names.

    The file's name contains the shard.
    """
    return f"{view}/sa_{shard_name(shard)}-{'0' * 12}.parquet"


def _select(files: Sequence[TableFile], *, alike: bool = True) -> str:
    """Return the SQL that selects a view's rows from these files, with the number of their shard.

    If the files aren't `alike` in their columns, DuckDB reads the footers of all of them first. By default, DuckDB
    would turn a folder such as `license=CC0` in a file's path into a column. The SQL disables this.
    A store's URI isn't a pattern (see `segmint.infra.storage.location`), and a local path is escaped.
    """
    paths = ", ".join(_quoted(_path(entry.uri)) for entry in files)
    options = "filename = true, hive_partitioning = false" + ("" if alike else ", union_by_name = true")
    source = f"read_parquet([{paths}], {options})"
    return f"SELECT * EXCLUDE (filename), {_SHARD} AS shard FROM {source}"


def _by_shard(files: Sequence[TableFile]) -> Mapping[int, Sequence[TableFile]]:
    shards: dict[int, list[TableFile]] = defaultdict(list)
    for entry in files:
        if (name := re.search(_NAME, entry.uri)) is not None:
            shards[int(name[1])].append(entry)
    return shards


def _path(uri: str) -> str:
    return only_path(local_path(uri).absolute()) if scheme(uri) == LOCAL else uri


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def check_selection(tables: DatasetTables, text: str) -> str:
    """Return a condition if it is safe to embed in a query of `images`.

    A safe condition is a boolean expression of columns, constants, operators, and plain functions, without queries.
    Raises `UsageError` for anything else.
    """
    if not text.strip():
        raise UsageError(f"--select {text!r}: expected a condition, {_EXAMPLE}")
    with tables.connection.cursor() as cursor:
        try:
            # Parse the text between SELECT and FROM, where it can only be an expression.
            found = cursor.execute("SELECT json_serialize_sql($1)", [f"SELECT ({text}\n) FROM images"]).fetchone()
            parsed = json.loads(found[0]) if found else {}
            _check(parsed, text)
            described = cursor.execute(f"DESCRIBE SELECT ({text}\n) AS condition FROM images").fetchall()
        except RecursionError as error:
            raise UsageError(
                f"--select {text[:_SHOWN]!r}…: nested too deeply; list values, as in id IN (1, 2, 3)"
            ) from error
        except duckdb.Error as error:
            raise UsageError(f"--select {text!r}: {str(error).splitlines()[0]}; {_EXAMPLE}") from error
    if described[0][1] != "BOOLEAN":
        raise UsageError(f"--select {text!r}: its type is {described[0][1]}, expected BOOLEAN; {_EXAMPLE}")
    return f"({text}\n)"


def _check(parsed: dict[str, Any], text: str) -> None:
    if parsed.get("error"):
        raise UsageError(f"--select {text!r}: {parsed.get('error_message')}; {_EXAMPLE}")
    statements = parsed["statements"]
    node = statements[0]["node"] if len(statements) == 1 else {}
    plain = (
        node.get("type") == "SELECT_NODE"
        and len(node["select_list"]) == 1
        and node["from_table"].get("table_name") == "images"
        and node["where_clause"] is None
        and not node["modifiers"]
        and not node["cte_map"]["map"]
    )
    if not plain:
        raise UsageError(f"--select {text!r}: expected one condition; {_EXAMPLE}")
    _check_expression(node["select_list"][0], text)


def _check_expression(expression: Any, text: str) -> None:
    """Reject queries, windows, parameters, and any function that could read more than the current row."""
    waiting = [expression]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
            continue
        if not isinstance(value, dict):
            continue
        kind = value.get("class")
        if kind == "FUNCTION":
            name = str(value.get("function_name")).lower()
            if name not in _FUNCTIONS:
                raise UsageError(f"--select {text!r}: the function {name} isn't allowed in a condition")
        elif kind is not None and kind not in _ALLOWED:
            raise UsageError(f"--select {text!r}: {kind.lower()} isn't allowed in a condition; {_EXAMPLE}")
        waiting += value.values()
