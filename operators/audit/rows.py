"""Audit of a shard's three tables and its tar against its commit, one another, and the catalog.

Audit of a shard's tar as a stream: its members, each JSON against the tables, each JPEG against its image's row.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import simplejpeg

from segmint.catalogs.dataset.commits import PRIVACY_COUNTS, REJECTED, Commit
from segmint.catalogs.dataset.tombstones import RemovedNames
from segmint.catalogs.findings import Code, Finding, FindingLocation, Reason
from segmint.catalogs.layout import ADDED_COLUMNS, MOST_MEMBER_BYTES, annotation_name, bytes_sha256, image_name
from segmint.catalogs.lineage import STAGE_PREFIX
from segmint.catalogs.parquet import AMENDABLE
from segmint.infra.arrays import Ints, Size
from segmint.infra.tars import BadTarError, TarReader, is_plain_file
from segmint.operators.audit.privacy import frame_size, metadata_names
from segmint.operators.audit.submissions import annotated_images
from segmint.operators.images import JpegDecoder
from segmint.operators.prepare.release import release_header
from segmint.operators.rows import MASKS_PER_IMAGE_LIMIT, Row
from segmint.operators.shards.put import annotations_json, count_redactions

_SAME_IN_IMAGES = ("image_id", "uri", "license", *AMENDABLE)
_SAME_IN_REJECTS = ("image_id", "uri")


@dataclass(frozen=True)
class ShardTables:
    """A shard's three tables. `places` contains the location to report in findings about each table."""

    images: pa.Table
    masks: pa.Table
    rejects: pa.Table
    places: Mapping[str, FindingLocation]  # keyed by folder


def audit_counts(tables: ShardTables, commit: Commit) -> Iterator[Finding]:
    """Yield findings where the tables and the commit differ.

    The numbers of rows, of rejected rows per reason, and about redaction are compared, and the most redacted images.
    """
    counts = commit.counts
    for kind, key in (("images", "images"), ("masks", "masks"), ("rejects", "rejected")):
        rows = getattr(tables, kind).num_rows
        if rows != counts[key]:
            yield tables.places[kind].finding(Code.TABLE_COUNTS, f"{counts[key]} rows, as in the commit", rows)
    found = Counter(f"{REJECTED}{reason}" for reason in tables.rejects.column("reason").to_pylist())
    expected = {name: count for name, count in counts.items() if name.startswith(REJECTED)}
    if tables.rejects.num_rows == counts["rejected"] and dict(found) != expected:
        yield tables.places["rejects"].finding(Code.TABLE_COUNTS, f"{expected}, as in the commit", dict(found))
    redactions = {name: count for name, count in counts.items() if name in PRIVACY_COUNTS}, commit.most_redacted
    columns = ["id", *ADDED_COLUMNS]
    shown = count_redactions(tables.images.select(columns).to_pylist())
    if shown != redactions:
        yield tables.places["images"].finding(Code.TABLE_COUNTS, f"{redactions}, as in the commit", shown)


def audit_identity(tables: ShardTables, ordinals: tuple[int, int]) -> Iterator[Finding]:
    """Yield findings unless each ordinal in the shard's [start, stop) occurs in exactly one row, with matching ids.

    The row may be accepted or rejected. The ordinals of different shards are disjoint, so ids derived from ordinals are
    unique in the dataset.
    """
    seen: list[Ints] = []
    for kind, table in (("images", tables.images), ("rejects", tables.rejects)):
        found = int_column(table, "ordinal")
        seen.append(found)
        place = tables.places[kind]
        for row in np.flatnonzero(np.diff(found) <= 0):
            expected = f"an ordinal over {found[row]}"
            yield place.finding(Code.ROW_IDENTITY, expected, found[row + 1], f"row {row + 1}")
        ids = int_column(table, "id")
        for row in np.flatnonzero(ids != found + 1):
            image = _of_ordinal(place, found[row])
            yield image.finding(Code.ROW_IDENTITY, f"id {found[row] + 1}", ids[row], f"ordinal {found[row]}")
    values, times = np.unique(np.concatenate(seen), return_counts=True)
    images, start, stop = tables.places["images"], *ordinals
    expected = f"ordinals {start} to {stop - 1} here and in rejects"
    surplus = [(ordinal, expected, f"{ordinal}") for ordinal in values[(values < start) | (values >= stop)]]
    # A row that occurs twice in one table was reported above, because it is out of order.
    for ordinal in values[times > 1]:
        if all(np.count_nonzero(each == ordinal) <= 1 for each in seen):
            surplus.append((ordinal, "one row in images or rejects", "one in each"))
    # A row with a wrong ordinal is surplus at that ordinal and missing at its own, but it is reported only once.
    missing = np.setdiff1d(np.arange(start, stop), values).tolist()
    for ordinal, expected, found_there in surplus:
        absent = f", and none of ordinal {missing.pop(0)}" if missing else ""
        place = _of_ordinal(images, ordinal)
        yield place.finding(Code.ROW_IDENTITY, expected, found_there + absent, f"ordinal {ordinal}")
    for ordinal in missing:
        place = _of_ordinal(images, ordinal)
        yield place.finding(Code.ROW_IDENTITY, "a row here or in rejects", "none", f"ordinal {ordinal}")
    yield from _audit_mask_identity(tables)


def _audit_mask_identity(tables: ShardTables) -> Iterator[Finding]:
    place = tables.places["masks"]
    owners = int_column(tables.masks, "ordinal")
    for row in np.flatnonzero(np.diff(owners) < 0).tolist():
        expected = f"ordinal {owners[row]} or over"
        yield place.finding(Code.ROW_IDENTITY, expected, owners[row + 1], f"row {row + 1}")
    accepted = int_column(tables.images, "ordinal")
    for ordinal in np.setdiff1d(owners, accepted):
        image = _of_ordinal(place, ordinal)
        yield image.finding(Code.ROW_IDENTITY, "only masks of accepted images", "a mask", f"ordinal {ordinal}")
    ids = int_column(tables.masks, "id")
    for row in np.flatnonzero(ids != owners + 1).tolist():
        yield place.finding(Code.ROW_IDENTITY, f"id {owners[row] + 1}", ids[row], f"row {row}")
    if np.all(np.diff(owners) >= 0):
        yield from _audit_mask_ids(tables, owners)
    names = dict(zip(accepted.tolist(), tables.images.column("image_id").to_pylist(), strict=True))
    said = zip(owners.tolist(), tables.masks.column("image_id").to_pylist(), strict=True)
    for row, (ordinal, name) in enumerate(said):
        if ordinal in names and names[ordinal] != name:
            image = _of_ordinal(place, ordinal)
            yield image.finding(Code.ROW_IDENTITY, f"image_id {names[ordinal]!r}", repr(name), f"row {row}")


def _audit_mask_ids(tables: ShardTables, owners: Ints) -> Iterator[Finding]:
    """Yield findings if masks aren't numbered by their positions within their image.

    In an annotated image, numbers may be skipped, but they must ascend and stay below `next_mask`.
    """
    first = np.searchsorted(owners, owners)
    base = (owners + 1) * MASKS_PER_IMAGE_LIMIT
    expected_ids = base + np.arange(len(owners)) - first
    found = int_column(tables.masks, "annotation_id")
    annotated = annotated_images(tables.images, tables.masks)
    ordinals, next_masks = (tables.images.column(name).to_pylist() for name in ("ordinal", "next_mask"))
    bounds = {o: MASKS_PER_IMAGE_LIMIT if n is None else n for o, n in zip(ordinals, next_masks, strict=True)}
    for row in np.flatnonzero(found != expected_ids):
        expected = f"annotation_id {expected_ids[row]}"
        if owners[row] in annotated:
            least = base[row] if row == first[row] else max(found[row - 1] + 1, base[row])
            end = base[row] + bounds.get(int(owners[row]), 0)
            if least <= found[row] < end:
                continue
            expected = f"an annotation_id from {least} to {end - 1}"
        image = _of_ordinal(tables.places["masks"], owners[row])
        yield image.finding(Code.ROW_IDENTITY, expected, found[row], f"row {row}")


def _of_ordinal(place: FindingLocation, ordinal: int) -> FindingLocation:
    """Return the location for findings about the image with this ordinal, which may be damaged."""
    return place.of_image(int(ordinal) + 1 if ordinal >= 0 else None)


def audit_mask_count(row: Row, masks: int, place: FindingLocation, *, annotated: bool = False) -> Iterator[Finding]:
    """Yield a finding if the mask counts in an image's row differ from the masks table.

    Annotators replace, delete, and add masks, so the build's counts are ignored in an `annotated` image.
    """
    said = {"masks": row["masks"], "statistics.mask_count": (row["statistics"] or {}).get("mask_count")}
    if not annotated:
        said |= {"funnel.written": (row["funnel"] or {}).get("written"), "next_mask": row["next_mask"]}
    wrong = {name: count for name, count in said.items() if count != masks}
    if wrong:
        found = ", ".join(f"{name} {count}" for name, count in wrong.items())
        yield place.image_finding(row["id"], Code.MASK_COUNT, f"{masks} masks, as in the table of masks", found)


def audit_rejects(rejects: Sequence[Row], place: FindingLocation) -> Iterator[Finding]:
    """Yield findings for rejected rows with an unknown reason, or without a stage, a detail, an image_id, or a URI."""
    known = frozenset(Reason)
    for row in rejects:
        if row["reason"] not in known and not (row["stage"] or "").startswith(STAGE_PREFIX):
            expected = "a reason of `segmint.catalogs.findings`, or of a custom stage"
            yield place.image_finding(row["id"], Code.UNKNOWN_REASON, expected, repr(row["reason"]))
        names = ["stage", "detail", *([] if row["reason"] == Reason.TAKEN_DOWN else ["image_id", "uri"])]
        empty = [name for name in names if not row[name]]
        if empty:
            yield place.image_finding(row["id"], Code.INCOMPLETE_REJECT, ", ".join(empty), "nothing")


def audit_taken_down(tables: ShardTables, taken: frozenset[int], names: RemovedNames) -> Iterator[Finding]:
    """Yield findings if a row in `taken` still contains more than its verdict, or if an image shows a removed picture.

    `taken` contains ordinals. The same picture may occur in another row, so `names` contains the names in all
    tombstones of the dataset.
    """
    columns = ["ordinal", "id", "uri", "source_sha256", "pixels_sha256", "release_sha256"]
    for row in tables.images.select(columns).to_pylist():
        if row["ordinal"] not in taken and names.names_picture(row):
            by_bytes = row["source_sha256"] in names.sha256
            by_name = names.names_source(row["uri"])
            found = f"an image of the same {'bytes' if by_bytes else 'URI' if by_name else 'pixels or JPEG'}"
            expected = "no source that a tombstone names"
            yield tables.places["images"].image_finding(row["id"], Code.STILL_THERE, expected, found)
    for kind, table in (("images", tables.images), ("rejects", tables.rejects)):
        for row in table.to_pylist() if taken else []:
            blank = row.get("reason") == Reason.TAKEN_DOWN and not row["image_id"] and not row["uri"]
            if row["ordinal"] in taken and not blank:
                expected = f"a refusal as {Reason.TAKEN_DOWN} without image_id and uri"
                found = row.get("reason", "an image")
                yield tables.places[kind].image_finding(row["id"], Code.STILL_THERE, expected, found)


def audit_catalog_names(catalog: Mapping[int, Row], names: RemovedNames, place: FindingLocation) -> Iterator[Finding]:
    """Yield findings for rows of the catalog, keyed by ordinal, whose SHA-256 is in a tombstone."""
    for row in catalog.values():
        if row["sha256"] in names.sha256:
            expected = "no SHA-256 that a tombstone names"
            yield place.finding(Code.STILL_THERE, expected, "one in the catalog", f"id {row['id']}")


def audit_catalog_rows(tables: ShardTables, catalog: Mapping[int, Row]) -> Iterator[Finding]:
    """Yield findings where rows differ from the catalog's rows, which are keyed by ordinal.

    There is no separate check for repeated `image_id`s. The catalog marks every row that repeats one, and the build
    rejects marked rows, so two accepted images never share an `image_id`.
    """
    for kind, columns in (("images", _SAME_IN_IMAGES), ("rejects", _SAME_IN_REJECTS)):
        names = ["ordinal", "id", *columns, *(["source_sha256"] if kind == "images" else [])]
        for row in getattr(tables, kind).select(names).to_pylist():
            source = catalog.get(row["ordinal"])
            if source is None:
                continue
            expected = {name: source[name] for name in columns}
            if kind == "images" and source["sha256"] is not None:
                expected["source_sha256"] = source["sha256"]
            different = {name: row[name] for name in expected if row[name] != expected[name]}
            report = partial(tables.places[kind].image_finding, row["id"])
            if different:
                wanted = {name: expected[name] for name in different}
                mend = " (`segmint repair` applies the amendment)" if wanted.keys() <= set(AMENDABLE) else ""
                yield report(Code.OTHER_CATALOG_ROW, f"{wanted}, as in the catalog{mend}", different)
            if kind == "images" and source["duplicate_of"] is not None:
                expected_verdict = f"refused as a duplicate of ordinal {source['duplicate_of']}"
                yield report(Code.DUPLICATE_IMAGE, expected_verdict, "accepted")
            if kind == "images" and source.get("refused_reason") is not None:
                expected_verdict = f"refused as {source['refused_reason']}, as in the catalog"
                yield report(Code.OTHER_CATALOG_ROW, expected_verdict, "accepted")


def int_column(table: pa.Table, name: str) -> Ints:
    """Return a column of integers without nulls, (N,)."""
    values: Any = table.column(name).to_numpy()
    return np.asarray(values, dtype=np.int64)


_PIECE = 1 << 20
_END = b"\xff\xd9"
_NO_PICTURE = (Code.BAD_JPEG, Code.JPEG_SIZE)
_OTHER_BYTES = (*_NO_PICTURE, Code.JPEG_METADATA)
"""Findings about a JPEG's bytes. After one of them, another hash isn't a finding of its own."""


class HashedStream:
    """A stream that hashes everything read from it, so that the file needs to be read only once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        data = self._stream.read(size)
        self._hash.update(data)
        return data

    def digest(self) -> str:
        """Read the rest of the stream. Return the SHA-256 of the whole stream as 64 hexadecimal digits."""
        while self.read(_PIECE):
            pass
        return self._hash.hexdigest()


def audit_tar(
    stream: HashedStream,
    images: Iterable[Row],
    masks_of: Callable[[int], Sequence[Row]],
    place: FindingLocation,
    *,
    with_images: bool,
    decode: Container[int],
    decoder: JpegDecoder,
    quality: int | None = None,
    look: Callable[[Row, bytes], Iterable[Finding]] | None = None,
) -> Iterator[Finding]:
    """Yield findings about a tar that should contain the images of these rows of `images/*.parquet`, in the same order.

    - `masks_of`: returns the mask rows for an ordinal.
    - `decode`: the ids of the JPEGs that `decoder` decodes.
    - `quality`: the JPEG quality of the release, if known. It determines the bytes before the image data.
    - `look`: yields more findings for intact JPEGs of the right size.

    The audit stops at the first unexpected member.
    """
    try:
        members = _members(TarReader(stream))
        for row in images:
            image, names = place.of_image(row["id"]), [image_name(row["id"])] if with_images else []
            for name in [*names, annotation_name(row["id"])]:
                found, data = next(members, ("the end", b""))
                if found != name:
                    yield image.finding(Code.TAR_MEMBERS, name, found, f"id {row['id']}")
                    return
                if name.endswith(".jpg"):
                    findings = list(audit_jpeg(data, row, image, decoder if row["id"] in decode else None, quality))
                    if not any(finding.code in _OTHER_BYTES for finding in findings):
                        findings += _other_release(data, row, image)
                    yield from findings
                    codes = {finding.code for finding in findings}
                    if look is not None and codes.isdisjoint(_NO_PICTURE):
                        for finding in look(row, data):
                            if finding.code not in codes:
                                yield finding
                else:
                    yield from audit_json(data, row, masks_of(row["ordinal"]), image)
        more = next(members, None)
        if more is not None:
            yield place.finding(Code.TAR_MEMBERS, "the end", more[0])
    except BadTarError as error:
        yield place.finding(Code.BAD_TAR, "a tar of plain files", error)


def _members(archive: TarReader) -> Iterator[tuple[str, bytes]]:
    for member in archive:
        if not is_plain_file(member):
            yield f"{member.name}, no plain file", b""
        elif member.size > MOST_MEMBER_BYTES:
            yield f"{member.name}, of {member.size:,} bytes; at most {MOST_MEMBER_BYTES:,} are read", b""
        else:
            yield member.name, archive.read(member)


def audit_json(data: bytes, row: Row, masks: Sequence[Row], place: FindingLocation) -> Iterator[Finding]:
    """Yield a finding unless an image's JSON is byte-identical to the JSON built from its image and mask rows."""
    name = annotation_name(row["id"])
    try:
        expected = annotations_json(row["id"], image_name(row["id"]), (row["height"], row["width"]), masks)
    except (ValueError, TypeError):
        return  # the tables contain values that JSON cannot represent; `segmint.operators.audit.masks` reports them
    if data == expected:
        return
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        yield place.finding(Code.OTHER_JSON, "JSON", error, name)
        return
    path, wanted, got = _first_difference(json.loads(expected), found) or ("", "canonical JSON", "other bytes")
    yield place.finding(Code.OTHER_JSON, f"{wanted}, as in the tables", got, f"{name}: {path}" if path else name)


def audit_jpeg(
    data: bytes, row: Row, place: FindingLocation, decoder: JpegDecoder | None, quality: int | None = None
) -> Iterator[Finding]:
    """Yield findings unless a JPEG has the size in its row and contains no metadata or other bytes around its picture.

    Without a `quality`, the bytes around the picture aren't checked. With a `decoder`, the JPEG is decoded completely.
    """
    name, size = image_name(row["id"]), (row["width"], row["height"])
    try:
        found = frame_size(data)
    except ValueError as error:
        yield place.finding(Code.BAD_JPEG, "a JPEG", error, name)
        return
    problem = None
    if found is None:
        problem = Code.BAD_JPEG, "it has no frame"
    elif found != size:
        problem = Code.JPEG_SIZE, f"{found[0]} x {found[1]}"
    elif quality is not None:
        problem = _layout_problem(data, release_header(*size, quality))
    if problem is not None:
        expected = f"{size[0]} x {size[1]} pixels, as segmint encodes them"
        yield place.finding(problem[0], expected, problem[1], name)
    if decoder is None or found is None or (problem is not None and problem[0] is Code.BAD_JPEG):
        return
    try:
        height, width = decoder.run(_decoded_size, data)
    except ValueError as error:
        yield place.finding(Code.BAD_JPEG, "a picture that decodes to its end", error, name)
        return
    if (width, height) != found:
        yield place.finding(Code.JPEG_SIZE, f"{found[0]} x {found[1]} pixels", f"{width} x {height}", name)


def _other_release(data: bytes, row: Row, place: FindingLocation) -> Iterator[Finding]:
    digest = bytes_sha256(data)
    if digest != row["release_sha256"]:
        expected = f"SHA-256 {row['release_sha256']}, as in the image's row"
        yield place.finding(Code.OTHER_RELEASE, expected, digest, image_name(row["id"]))


def _layout_problem(data: bytes, header: bytes) -> tuple[Code, str] | None:
    """Explain what a JPEG contains besides `header`, image data, and an end marker, or return None."""
    end = data.find(_END, len(header))
    if end < 0:
        return Code.BAD_JPEG, "it ends before the picture does"
    if not data.startswith(header):
        names = metadata_names(data) or [f"other bytes before byte {len(header)}, where the image data begins"]
        return Code.JPEG_METADATA, ", ".join(names)
    if len(data) > end + len(_END):
        return Code.JPEG_METADATA, f"{len(data) - end - len(_END)} bytes after the picture's end"
    return None


def _decoded_size(jpeg: bytes) -> Size:
    """Decode an image completely and return its (height, width). Raise ValueError if it doesn't decode."""
    height, width = simplejpeg.decode_jpeg(jpeg, colorspace="RGB", strict=True).shape[:2]
    return height, width


def _first_difference(expected: Any, found: Any, path: str = "") -> tuple[str, str, str] | None:
    """Return two JSON values' first difference as (path, expected, found), shortened, or None if there is none."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        if list(expected) != list(found):
            missing, more = [k for k in expected if k not in found], [k for k in found if k not in expected]
            return path, f"keys {missing or 'in their order'}", f"keys {more or list(found)}"
        pairs = [(f"{path}.{key}".lstrip("."), expected[key], found[key]) for key in expected]
    elif isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            return path, f"{len(expected)} entries", f"{len(found)}"
        pairs = [(f"{path}[{i}]", one, other) for i, (one, other) in enumerate(zip(expected, found, strict=True))]
    else:
        return None if expected == found else (path, _short(expected), _short(found))
    for inner, one, other in pairs:
        difference = _first_difference(one, other, inner)
        if difference is not None:
            return difference
    return None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
