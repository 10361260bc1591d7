"""Audit of a shard's three tables against its commit, one another, and the catalog."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segmint.catalogs.dataset.commits import PRIVACY_COUNTS, REJECTED, Commit
from segmint.catalogs.dataset.tombstones import RemovedNames
from segmint.catalogs.findings import Code, Finding, FindingLocation
from segmint.catalogs.layout import ADDED_COLUMNS
from segmint.catalogs.reasons import Reason
from segmint.catalogs.schema import AMENDABLE
from segmint.catalogs.stages import STAGE_PREFIX
from segmint.operators.audit.origins import annotated_images
from segmint.operators.rows import Row
from segmint.operators.schemas import MASKS_PER_IMAGE_LIMIT
from segmint.operators.shards.files import count_redactions

Ints = NDArray[np.int64]

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
        image = place.of_image(row["id"])
        yield image.finding(Code.MASK_COUNT, f"{masks} masks, as in the table of masks", found, f"id {row['id']}")


def audit_rejects(rejects: Sequence[Row], place: FindingLocation) -> Iterator[Finding]:
    """Yield findings for rejected rows with an unknown reason, or without a stage, a detail, an image_id, or a URI."""
    known = frozenset(Reason)
    for row in rejects:
        image, where = place.of_image(row["id"]), f"id {row['id']}"
        if row["reason"] not in known and not (row["stage"] or "").startswith(STAGE_PREFIX):
            expected = "a reason of `segmint.catalogs.reasons`, or of a custom stage"
            yield image.finding(Code.UNKNOWN_REASON, expected, repr(row["reason"]), where)
        names = ["stage", "detail", *([] if row["reason"] == Reason.TAKEN_DOWN else ["image_id", "uri"])]
        empty = [name for name in names if not row[name]]
        if empty:
            yield image.finding(Code.INCOMPLETE_REJECT, ", ".join(empty), "nothing", where)


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
            image = tables.places["images"].of_image(row["id"])
            yield image.finding(Code.STILL_THERE, "no source that a tombstone names", found, f"id {row['id']}")
    for kind, table in (("images", tables.images), ("rejects", tables.rejects)):
        for row in table.to_pylist() if taken else []:
            blank = row.get("reason") == Reason.TAKEN_DOWN and not row["image_id"] and not row["uri"]
            if row["ordinal"] in taken and not blank:
                expected = f"a refusal as {Reason.TAKEN_DOWN} without image_id and uri"
                found = row.get("reason", "an image")
                image = tables.places[kind].of_image(row["id"])
                yield image.finding(Code.STILL_THERE, expected, found, f"id {row['id']}")


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
            place, where = tables.places[kind].of_image(row["id"]), f"id {row['id']}"
            if different:
                wanted = {name: expected[name] for name in different}
                mend = " (`segmint repair` applies the amendment)" if wanted.keys() <= set(AMENDABLE) else ""
                yield place.finding(Code.OTHER_CATALOG_ROW, f"{wanted}, as in the catalog{mend}", different, where)
            if kind == "images" and source["duplicate_of"] is not None:
                expected_verdict = f"refused as a duplicate of ordinal {source['duplicate_of']}"
                yield place.finding(Code.DUPLICATE_IMAGE, expected_verdict, "accepted", where)
            if kind == "images" and source.get("refused_reason") is not None:
                expected_verdict = f"refused as {source['refused_reason']}, as in the catalog"
                yield place.finding(Code.OTHER_CATALOG_ROW, expected_verdict, "accepted", where)


def int_column(table: pa.Table, name: str) -> Ints:
    """Return a column of integers without nulls, (N,)."""
    values: Any = table.column(name).to_numpy()
    return np.asarray(values, dtype=np.int64)
