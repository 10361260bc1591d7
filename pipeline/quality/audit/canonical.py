"""Audit of the bytes of tables and JSON files, which must be those that segmint writes for their rows and fields."""

import json
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow.parquet as pq

from segmint.catalogs.dataset.manifest import parse_manifest_name
from segmint.catalogs.dataset.marks import MARKS
from segmint.catalogs.dataset.outputs import OUTPUTS
from segmint.catalogs.dataset.tombstones import TOMBSTONES, Tombstone
from segmint.catalogs.findings import Code, Finding, FindingLocation
from segmint.catalogs.layout import RESERVATIONS, SHARDS_INDEX, SUMMARIES, canonical_json, is_known
from segmint.catalogs.parquet import ROW_GROUP_ROWS
from segmint.catalogs.schema import normalized_schema
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.infra.wording import counted
from segmint.operators.audit.parquet_parts import ParquetCheck, check_parquet
from segmint.pipeline.quality.audit.result import CheckedCounts


class BytesAsked(NamedTuple):
    """Bytes to compare on request: the ends of all JPEGs' image data, and every byte of tables."""

    all_bytes: bool = False
    byte_for_byte: bool = False


NO_MORE = BytesAsked()
"""Nothing on request."""

_FOLDERS = (TOMBSTONES, MARKS, OUTPUTS, RESERVATIONS, SUMMARIES)
_THREADS = 16


def check_catalog_part(file: Location, sha256: str) -> ParquetCheck:
    """Check the bytes of a readable part of the normalized catalog, whose hash is `sha256`."""
    with file.open() as stream:
        schema = normalized_schema(pq.read_schema(stream).names)
        return check_parquet(stream, sha256, schema, ROW_GROUP_ROWS)


def judge_table(check: ParquetCheck, place: FindingLocation, *, strict: bool) -> tuple[list[Finding], CheckedCounts]:
    """Return the findings in a table's bytes and the counts of what was compared; `strict` as `--byte-for-byte`."""
    problem = check.problem or ("other bytes" if strict and not (check.alike or check.by_other) else None)
    if problem is not None:
        return [place.finding(Code.NOT_CANONICAL, "what pyarrow writes for the rows", problem)], CheckedCounts()
    kind = "tables_alike" if check.alike else "tables_by_others" if check.by_other else "tables_unlike"
    return [], CheckedCounts(**{kind: 1})


def other_writers(checked: CheckedCounts) -> tuple[str, ...]:
    """Return a line about tables of another pyarrow, whose bytes cannot be compared."""
    tables = counted(checked.tables_by_others, "Parquet file")
    line = f"{tables} written by another version of pyarrow: the structure was checked, but not every byte"
    return (line,) if checked.tables_by_others else ()


def notes_on_bytes(checked: CheckedCounts) -> Iterator[str]:
    """Yield a note on each kind of bytes that was not compared with those of this pyarrow."""
    if checked.tables_unlike:
        yield (
            f"{counted(checked.tables_unlike, 'Parquet file')} with other bytes than this pyarrow writes for the rows, "
            "although the same version wrote them: the structure and the decompressed pages are those of the rows "
            "(--byte-for-byte makes this a finding)"
        )
    if checked.jpegs > checked.jpegs_decoded:
        left = counted(checked.jpegs - checked.jpegs_decoded, "JPEG")
        yield f"{left} not in the sample: not checked for bytes after the last block (--all-bytes does)"


def audit_canonical_json(dataset: Location) -> Iterator[Finding]:
    """Check that manifests, tombstones, notes, reservations, and summaries are canonical JSON, with each key once.

    Commits, versions, `shards.json`, submissions, and ratings are checked where they are read. A file that is gone by
    now is skipped, as are invalid manifests and tombstones, which other findings report.
    """
    paths = [entry.name for entry in dataset.list() if is_known(entry.name) and entry.name != SHARDS_INDEX]
    paths += [f"{folder}/{entry.name}" for folder in _FOLDERS for entry in (dataset / folder).list()]

    def audit(path: str) -> Finding | None:
        try:
            data = (dataset / path).read()
            if path.startswith(TOMBSTONES):
                Tombstone.model_validate_json(data)
            alike = canonical_json(json.loads(data)) == data
        except NotFoundError:
            return None
        except (ValueError, RecursionError):
            alike = parse_manifest_name(path) is not None or path.startswith(TOMBSTONES)
        return None if alike else FindingLocation(path).finding(Code.NOT_CANONICAL, "canonical JSON", "other bytes")

    yield from filter(None, map_ahead(audit, paths, _THREADS, 4 * _THREADS, "records"))
