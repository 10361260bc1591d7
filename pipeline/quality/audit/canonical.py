"""Audit of the bytes of tables and JSON files, which must be those that segmint would write for the same contents."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow.parquet as pq

from segmint.catalogs.dataset.manifest import parse_manifest_name
from segmint.catalogs.dataset.outputs import OUTPUTS, OutputNote
from segmint.catalogs.dataset.unaccounted import MOST_BYTES
from segmint.catalogs.dataset.versions.record import VERSIONS
from segmint.catalogs.findings import Code, Finding, FindingLocation
from segmint.catalogs.layout import RESERVATIONS, SHARDS_INDEX, SUMMARIES, canonical_json, fingerprint, is_known
from segmint.catalogs.parquet import ROW_GROUP_ROWS
from segmint.catalogs.schema import normalized_schema
from segmint.infra.storage.errors import NotFoundError, ObjectTooLargeError
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.infra.wording import counted
from segmint.operators.audit.parquet_parts import ParquetCheck, check_parquet
from segmint.pipeline.quality.audit.result import CheckedCounts


class BytesAsked(NamedTuple):
    """Additional comparisons that the audit makes only on request.

    `all_bytes` decodes every JPEG to its end, and `byte_for_byte` compares the bytes of tables.
    """

    all_bytes: bool = False
    byte_for_byte: bool = False


NO_MORE = BytesAsked()
"""No additional comparisons."""

_FOLDERS = (OUTPUTS, RESERVATIONS, SUMMARIES, VERSIONS)
_THREADS = 16
_HASHED = re.compile(f"{OUTPUTS}|{RESERVATIONS}|{SUMMARIES}/leaves")  # names contain a hash of the content
_SHA256 = '"[0-9a-f]{64}"'
_KEY = "U1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAg"  # first characters of every signature by an Ed25519 key
_FORMS = {
    "id.json": r'\{"dataset_id":"[0-9a-f]{32}"\}\n',
    RESERVATIONS: r'\{("generation":\d+,"paths":\[("[\w/.-]+",?)*\](,"shard":\d+)?|"shards":\[[\d,]*\])\}\n',
    f"{SUMMARIES}/leaves": rf"\[({_SHA256},?)+\]\n",
    SUMMARIES: r'\{"bytes":\d+,"counts":(\{[\w":,.-]*\}),"digest":"[0-9a-f]{12}",'
    r'"files":\d+,("most_redacted":[\d\[\].,e-]+,)?"numerics":\{[\w":,.-]*\},"shards":\d+\}\n',
    VERSIONS: rf"-----BEGIN SSH SIGNATURE-----\n({_KEY}[\w+/]{{26}}\n([\w+/]{{70}}\n){{2}}[\w+/]{{37}}=)\n"
    "-----END SSH SIGNATURE-----\n",
    "": "(?s:.*)",
}
"""Patterns of file contents, by the beginning of the file's path. If several beginnings match, the first one
applies."""


def check_catalog_part(file: Location, sha256: str) -> ParquetCheck:
    """Check the bytes of a readable part of the normalized catalog. `sha256` is the part's hash."""
    with file.open() as stream:
        schema = normalized_schema(pq.read_schema(stream).names)
        return check_parquet(stream, sha256, schema, ROW_GROUP_ROWS)


def judge_table(check: ParquetCheck, place: FindingLocation, *, strict: bool) -> tuple[list[Finding], CheckedCounts]:
    """Return the findings in a table's bytes, and counts of what was compared. `strict` is `--byte-for-byte`."""
    problem = check.problem or ("other bytes" if strict and not (check.alike or check.by_other) else None)
    if problem is not None:
        return [place.finding(Code.NOT_CANONICAL, "what pyarrow writes for the rows", problem)], CheckedCounts()
    kind = "tables_alike" if check.alike else "tables_by_others" if check.by_other else "tables_unlike"
    return [], CheckedCounts(**{kind: 1})


def other_writers(checked: CheckedCounts) -> tuple[str, ...]:
    """Describe the tables from other versions of pyarrow, whose bytes can't be compared. Empty if there are none."""
    tables = counted(checked.tables_by_others, "Parquet file")
    line = f"{tables} written by another version of pyarrow: the structure was checked, but not every byte"
    return (line,) if checked.tables_by_others else ()


def notes_on_bytes(checked: CheckedCounts) -> Iterator[str]:
    """Yield a note on each kind of file whose bytes weren't fully compared with what this version of pyarrow writes."""
    if checked.tables_unlike:
        yield (
            f"{counted(checked.tables_unlike, 'Parquet file')} with other bytes than this pyarrow writes for the rows, "
            "although the same version wrote them: the structure and the decompressed pages are those of the rows "
            "(--byte-for-byte makes this a finding)"
        )
    if checked.jpegs > checked.jpegs_decoded:
        left = counted(checked.jpegs - checked.jpegs_decoded, "JPEG")
        yield f"{left} not in the sample: not checked for bytes after the last block (--all-bytes does)"


def audit_canonical_json(dataset: Location, known: Sequence[str] | None = None) -> Iterator[Finding]:
    """Check that notes, reservations, and other small files are canonical, and that their names match their contents.

    `known` contains the paths that `list_doubtful` found; without it, the folders are listed. Commits, versions,
    `shards.json`, tombstones, fingerprints, submissions, and ratings are checked elsewhere, by the code that reads
    them. Files that have disappeared are skipped. So are invalid manifests, because other findings report them.
    """
    if known is None:
        known = [entry.name for entry in dataset.list()]
        known += [f"{folder}/{entry.name}" for folder in _FOLDERS for entry in (dataset / folder).list()]
    paths = [path for path in known if is_known(path) and path.rpartition("/")[0] in ("", *_FOLDERS)]
    paths = [path for path in paths if path != SHARDS_INDEX and not re.match(rf"{VERSIONS}/\d+\.json", path)]

    def audit(path: str) -> Finding | None:
        is_manifest = parse_manifest_name(path) is not None
        try:
            data = (dataset / path).read(None if is_manifest or path.startswith(RESERVATIONS) else MOST_BYTES)
            alike = _is_own(path, data)
        except NotFoundError:
            return None
        except (ObjectTooLargeError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            alike = is_manifest
        expected = "what segmint writes under this name"
        return None if alike else FindingLocation(path).finding(Code.NOT_CANONICAL, expected, "other bytes")

    yield from filter(None, map_ahead(audit, paths, _THREADS, 4 * _THREADS, "records"))


def _is_own(path: str, data: bytes) -> bool:
    """Return whether a file has the form that segmint writes, and the name that its content requires."""
    form = re.fullmatch(next(form for start, form in _FORMS.items() if path.startswith(start)).encode(), data)
    if path.startswith(VERSIONS):
        return form is not None and path[-20:-4] == hashlib.sha256(base64.b64decode(form[1])[33:65]).hexdigest()[:16]
    value = json.loads(data)
    if path.startswith(OUTPUTS):
        OutputNote.model_validate(value)
    hashed = value, data.decode(), value.get("paths") if isinstance(value, dict) else None
    names = {hashlib.sha256(data).hexdigest()[:12], *map(fingerprint, hashed)}
    return form is not None and canonical_json(value) == data and (path[-17:-5] in names or not _HASHED.match(path))
