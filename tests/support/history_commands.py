"""What the processes of a history do to a dataset besides writing shards, and what the dataset in a folder is."""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from shutil import rmtree

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.digest import Snapshot, VersionLeaf, leaf_of
from segmint.catalogs.dataset.manifest import (
    CatalogPart,
    load_latest_manifest,
    parse_manifest_name,
    put_with_parts,
)
from segmint.catalogs.dataset.submissions import (
    RemovedImageError,
    Submission,
    base_digest,
    put_submission,
    read_submissions,
)
from segmint.catalogs.dataset.tombstones import FINGERPRINTS, TOMBSTONES
from segmint.catalogs.dataset.tombstones import TakedownRequest as TakedownAsked
from segmint.catalogs.dataset.versions import put_version
from segmint.catalogs.layout import COMMITS, parse_commit_name, part_path
from segmint.catalogs.parquet import NORMALIZED, table_bytes
from segmint.infra.errors import UsageError
from segmint.operators.redactions import redacted_share
from segmint.operators.rows import Row, to_table
from segmint.operators.shards.put import annotation_id, mask_index
from segmint.operators.shards.revise import finish_dead_writers, read_committed_rows, with_latest_commit
from segmint.pipeline.corrections.amend import amend
from segmint.pipeline.corrections.correction import Revision, revise
from segmint.pipeline.corrections.import_merge import ImportMode
from segmint.pipeline.corrections.imports import ImportFormat, ImportRequest, import_masks
from segmint.pipeline.corrections.merge import merge_submissions
from segmint.pipeline.corrections.takedown import takedown
from tests.support.imported import coco_of
from tests.support.locations import location_of
from tests.support.protocol import ROWS, DatasetPath, catalog_rows
from tests.support.submissions import answer_value, new_mask

NOW = datetime(2026, 3, 4, tzinfo=UTC)
"""When images are taken down and versions are recorded."""


def grow(place: DatasetPath) -> None:
    """Add a shard to the catalog, once; if another command puts the manifest's next generation, look again."""
    while True:
        manifest, generation = load_latest_manifest(place.location)
        if len(manifest.catalog) > 1:
            return
        first = manifest.shards
        data = table_bytes(to_table(catalog_rows(first * ROWS, ROWS), NORMALIZED), NORMALIZED)
        digest = hashlib.sha256(data).hexdigest()
        path = part_path(1, digest)
        part = CatalogPart(path=path, rows=ROWS, sha256=digest, source_sha256=digest, first_shard=first)
        grown = manifest.model_copy(update={"catalog": (*manifest.catalog, part)})
        with tempfile.NamedTemporaryFile() as local:
            local.write(data)
            local.flush()
            if put_with_parts(place.location, grown, generation + 1, {path: Path(local.name)}):
                return


def mark(place: DatasetPath, ordinal: int, x: int) -> bool:
    """Add a region to an image, as a redaction does, and return whether that changed anything."""

    def change(_: Commit, rows: Sequence[Row]) -> Sequence[Row]:
        return [_marked(row, x) if row["ordinal"] == ordinal and row["reason"] is None else row for row in rows]

    shard = ordinal // ROWS
    changed = revise(place.handle, Revision({shard}, change)).changed
    put_version(place.location, "redact", now=NOW)
    return shard in changed


def _marked(row: Row, x: int) -> Row:
    if x in marks_of(row):
        return row
    region = {"kind": "other", "score": 1.0, "x": x, "y": 0, "w": 1, "h": 1, "source": "manual"}
    marked = {**row, "regions": [*row["regions"], region]}
    return {**marked, "redacted_share": redacted_share(marked)}


def amend_row(place: DatasetPath, ordinal: int, x: int) -> bool:
    """Amend the provider of a row to one of two, so that amendments are reverted; return whether the row was there."""
    folder = Path(f"{place.uri}-amendment-{x}")
    folder.mkdir(exist_ok=True)
    try:
        row = {
            "uri": f"photo_{ordinal}.jpg",
            "license": "",
            "image_id": f"image-{ordinal}",
            "provider": f"provider {x % 2}",
        }
        (folder / "c.jsonl").write_text(json.dumps(row))
        amend(place.location, location_of(folder / "c.jsonl"), "request", now=NOW)
    except UsageError as error:
        if "matches a row of" not in str(error):
            raise
        return False
    finally:
        rmtree(folder)
    return True


def import_mask(place: DatasetPath, ordinal: int, x: int) -> bool:
    """Import a rectangle of its own into an image, if that is there; return whether it has it."""
    folder = Path(f"{place.uri}-import-{x}")
    folder.mkdir(exist_ok=True)
    try:
        document = coco_of({ordinal + 1: [(rectangle_of(x), None)]})
        (folder / "masks.json").write_text(json.dumps(document))
        request = ImportRequest(location_of(folder / "masks.json"), ImportFormat.COCO, ImportMode.ADD)
        masks = import_masks(place.location, request, now=NOW).listed.masks
    finally:
        rmtree(folder)
    return bool(masks["added"] or masks["same"])


def answer_and_merge(place: DatasetPath, ordinal: int, x: int) -> bool:
    """Answer for an image with a rectangle of its own, as a page does, and merge; return whether the image is there.

    The page shows what the image has and what was answered to that; an earlier answer is merged first.
    """
    while True:
        row = with_rows(place, ordinal // ROWS).get(ordinal)
        if row is None or row["reason"] is not None:
            merge_submissions(place.location, now=NOW)
            return False
        base = base_digest(row["release"], _with_ids(row))
        given = [answer for answer in read_submissions(place.location, ordinal) if answer.assignment == 0]
        if given and given[-1].base != base and given[-1].n > ((row["submission"] or {}).get("n") or 0):
            merge_submissions(place.location, now=NOW)
            continue
        before = [mask.model_dump(mode="json") for mask in given[-1].masks] if given and given[-1].base == base else []
        value = answer_value(
            ordinal + 1, n=len(given) + 1, base=base, masks=[*before, new_mask(rectangle_of(x))], annotator=f"Ada {x}"
        )
        try:
            if put_submission(place.location, Submission.from_value(value)):
                merge_submissions(place.location, now=NOW)
                return True
        except RemovedImageError:
            return False


def with_rows(place: DatasetPath, shard: int) -> dict[int, Row]:
    """The described rows of a shard, by ordinal; none if it is not committed."""
    rows = with_latest_commit(place.location, shard, lambda commit: read_committed_rows(place.location, commit))
    return {row["ordinal"]: row for row in rows or ()}


def _with_ids(row: Row) -> list[Row]:
    return [
        {**mask, "annotation_id": annotation_id(row["id"], mask_index(mask, place))}
        for place, mask in enumerate(row["masks"])
    ]


def answered(row: Row) -> set[str]:
    """The run lengths of masks that people drew in answers for an image."""
    return {mask["segmentation"]["counts"] for mask in row["masks"] or () if mask["source"] == "assisted"}


def rectangle_of(x: int) -> tuple[int, int, int, int]:
    """The rectangle of an import: (top, left, bottom, right), another one for each `x` up to 800."""
    top, left = x % 25, x // 25 % 32
    return top, left, top + 3, left + 6


def imported(row: Row) -> set[str]:
    """The run lengths of masks that were imported into an image."""
    return {mask["segmentation"]["counts"] for mask in row["masks"] or () if mask["source"] == "imported"}


def marks_of(row: Row) -> set[int]:
    """The marks of an image."""
    return {region["x"] for region in row["regions"] or ()}


def take_down(place: DatasetPath, ordinal: int) -> None:
    """Take an image down, as its subject asks."""
    takedown(place.location, TakedownAsked(ids=(f"sa_{ordinal + 1}",)), "request", NOW)


def resume(place: DatasetPath) -> None:
    """Complete what dead writers did not and record a version, as a build does where every shard is committed."""
    finish_dead_writers(place.handle, range(100))
    put_version(place.location, "build", now=NOW)


def state_of(folder: Path) -> str:
    """The digest of what the dataset in a local folder is, from its files and by no storage call."""
    manifests = {number: path for path in folder.glob("*.json") if (number := parse_manifest_name(path.name))}
    latest = json.loads(manifests[max(manifests)].read_bytes())
    held: dict[tuple[str, int], tuple[int, Path]] = {}
    for path in (each for name in (COMMITS, FINGERPRINTS) for each in (folder / name).glob("*.json")):
        shard, generation = parse_commit_name(path.name) or (-1, 0)
        place = path.parent.name, shard
        held[place] = max(held.get(place, (0, path)), (generation, path))
    files = [*manifests.values(), *(path for _, path in held.values()), *(folder / TOMBSTONES).glob("*.json")]
    leaves = [leaf_of(str(path.relative_to(folder)), path.read_bytes()) for path in files]
    return Snapshot.of([*leaves, *(VersionLeaf(part["path"], part["sha256"]) for part in latest["catalog"])]).digest
