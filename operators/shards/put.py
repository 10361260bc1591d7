"""Files of a shard, built from its rows, and the steps that put and commit them.

From top to bottom: the files of a shard and their bytes, the steps of a writer, `replace_shard`, which takes them all
for a correction, and the removal of replaced files.

Several writers may commit the same shard, and other processes may delete files at any time. The order of these steps
protects a writer's files:

1. `reserve` puts a reservation, which lists the names of the files, unless it already exists. From then on, no other
   process deletes files with these names.
2. `put_files` puts the files.
3. `put_commit` puts the commit unless one exists, then checks that all files exist. A process that listed the
   reservations before step 1 and then paused may have deleted some of them; `put_commit` puts these again. Finally, it
   checks for a higher generation. If there is one, a later correction had already removed this commit's predecessor, so
   this writer has lost.
4. If the writer won, it applies the tombstones and catalog amendments. If it lost, it deletes its files with
   `delete_unnamed`.
5. The writer deletes the reservation. A reservation that remains means that its writer died, and the next build or
   correction finishes that writer's work.
"""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import pyarrow as pa

from segmint.catalogs.dataset.commits import (
    REJECTED,
    Commit,
    CommitLog,
    FileEntry,
    Reservation,
    read_shard_state,
    worst,
)
from segmint.catalogs.dataset.manifest import DatasetHandle
from segmint.catalogs.dataset.regions import HIGH_SHARE
from segmint.catalogs.layout import (
    CATALOG,
    COMMITS,
    DATA_KINDS,
    LEVELS,
    RESERVATIONS,
    SCHEMA_VERSION,
    annotation_name,
    bytes_sha256,
    commit_beginning,
    commit_path,
    data_beginning,
    data_path,
    image_name,
    parse_commit_name,
    parse_data_path,
)
from segmint.catalogs.lineage import StageColumn, TableColumn
from segmint.catalogs.parquet import table_bytes
from segmint.infra.arrays import Size
from segmint.infra.errors import UnfinishedError, UsageError
from segmint.infra.storage.errors import StorageFaultError
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import TEMPORARY_PREFIX, target_of
from segmint.infra.uris import AZURE, base_name, scheme
from segmint.operators.rows import ANNOTATION_STAGE, MASKS_PER_IMAGE_LIMIT, Row, shard_schemas, to_table

ROW_GROUP_ROWS = 10_000
"""Number of rows per row group of `images`, `masks`, and `rejects`."""


@dataclass(frozen=True)
class ShardFiles:
    """Contents of a shard's four files, and the counts of their rows."""

    tar: bytes
    images: bytes
    masks: bytes
    rejects: bytes
    counts: dict[str, int]  # as in the commit
    most_redacted: tuple[tuple[int, float], ...] = ()


def annotations_json(image_id: int, file_name: str, size: Size, masks: Sequence[Mapping[str, Any]]) -> bytes:
    """Return an image's JSON in the format of SA-1B's published files: fixed key order, compact, ASCII.

    `size` is (height, width) in pixels. Each mask must contain the keys of `MASK` and may contain an `index`, which
    determines its id. The annotations contain only SA-1B's keys. If any mask has an `output` or a `container`, the
    document gets an additional list, `outputs` or `containers`, with the values of all masks, for readers and repairs.
    """
    annotations = [
        {
            "id": annotation_id(image_id, mask_index(mask, position)),
            "segmentation": {"size": mask["segmentation"]["size"], "counts": mask["segmentation"]["counts"]},
            "bbox": mask["bbox"],
            "area": mask["area"],
            "predicted_iou": mask["predicted_iou"],
            "stability_score": mask["stability_score"],
            "crop_box": mask["crop_box"],
            "point_coords": mask["point_coords"],
        }
        for position, mask in enumerate(masks)
    ]
    image = {"image_id": image_id, "width": size[1], "height": size[0], "file_name": file_name}
    document: dict[str, Any] = {"image": image, "annotations": annotations}
    for name, key in LEVELS.items():
        values = [mask.get(name) for mask in masks]
        if values.count(None) < len(values):
            document[key] = values
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii")


def annotation_id(image_id: int, index: int) -> int:
    """Return the global id of an image's mask `index`, counted from 0. Raise `ValueError` if it is over the limit."""
    if index >= MASKS_PER_IMAGE_LIMIT:
        raise ValueError(f"image {image_id} has more than {MASKS_PER_IMAGE_LIMIT} masks: ids would collide")
    return image_id * MASKS_PER_IMAGE_LIMIT + index


def mask_index(mask: Mapping[str, Any], position: int) -> int:
    """Return a mask's number within its image, which is its `index` or, if that is null, its position."""
    index: int | None = mask.get("index")
    return position if index is None else index


def counts_of(mask: Mapping[str, Any]) -> str:
    """Return the run lengths in a mask's row."""
    return str(mask["segmentation"]["counts"])


def build_files_of(dataset: DatasetHandle, rows: Iterable[Row]) -> ShardFiles:
    """Build the files of one shard of a dataset, with its images, stages, and format, like `build_shard_files`."""
    return build_shard_files(
        rows, with_images=dataset.with_images, stages=dataset.stages, schema_version=dataset.schema_version
    )


def build_shard_files(
    rows: Iterable[Row],
    *,
    with_images: bool,
    stages: Sequence[StageColumn | TableColumn] = (),
    schema_version: int = SCHEMA_VERSION,
) -> ShardFiles:
    """Build the files of one shard from its rows in ordinal order. The counts include rejected rows.

    With `with_images`, the tar contains each image's released JPEG before the image's annotations. `stages` lists the
    columns of custom stages. The rows of images and their masks contain these columns by name.
    """
    schemas = shard_schemas(stages, schema_version)
    tar = io.BytesIO()
    images: list[Row] = []
    masks: list[Row] = []
    rejects: list[Row] = []
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for row in rows:
            if row["reason"] is not None:
                rejects.append(row)
                continue
            if with_images:
                _add(archive, image_name(row["id"]), row["release"])
            size = row["height"], row["width"]
            name = image_name(row["id"])
            _add(archive, annotation_name(row["id"]), annotations_json(row["id"], name, size, row["masks"]))
            images.append({**row, "masks": len(row["masks"]), "stage": row.get(ANNOTATION_STAGE)})
            masks.extend(_mask_rows(row))
    by_reason = Counter(f"{REJECTED}{row['reason']}" for row in rejects)
    counts = {
        "rows": len(images) + len(rejects),
        "images": len(images),
        "masks": len(masks),
        "rejected": len(rejects),
        **dict(sorted(by_reason.items())),
    }
    most_redacted: tuple[tuple[int, float], ...] = ()
    if schema_version == SCHEMA_VERSION:
        privacy, most_redacted = count_redactions(images)
        counts |= privacy
    return ShardFiles(
        tar=tar.getvalue(),
        images=shard_table_bytes(images, schemas["images"]),
        masks=shard_table_bytes(masks, schemas["masks"]),
        rejects=shard_table_bytes(rejects, schemas["rejects"]),
        counts=counts,
        most_redacted=most_redacted,
    )


def count_redactions(images: Iterable[Mapping[str, Any]]) -> tuple[dict[str, int], tuple[tuple[int, float], ...]]:
    """Return a commit's counts about redaction, without zeros, and its most redacted images, from rows of `images`."""
    counts: Counter[str] = Counter()
    high = []
    for row in images:
        share = row.get("redacted_share") or 0.0
        counts["unconfirmed"] += len(row.get("unconfirmed_detections") or ())
        counts["left_alone"] += len(row.get("left_alone") or ())
        if share > HIGH_SHARE:
            counts["highly_redacted"] += 1
            high.append((row["id"], share))
    return {name: count for name, count in sorted(counts.items()) if count}, worst(high)


def shard_table_bytes(rows: Iterable[Row], schema: pa.Schema) -> bytes:
    """Return the Parquet bytes of one of a shard's tables (see `shard_schemas`)."""
    return table_bytes(to_table(list(rows), schema), schema, ROW_GROUP_ROWS)


def _mask_rows(row: Row) -> list[Row]:
    identity: dict[str, Any] = {name: row[name] for name in ("ordinal", "id", "image_id")}
    return [
        {**identity, "annotation_id": annotation_id(row["id"], mask_index(mask, position)), **mask}
        for position, mask in enumerate(row["masks"])
    ]


def member_info(name: str, size: int) -> tarfile.TarInfo:
    """Return the tar header for a member of `size` bytes."""
    member = tarfile.TarInfo(name)
    member.size = size
    member.mtime = 0
    member.mode = 0o644
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    archive.addfile(member_info(name, len(data)), io.BytesIO(data))


NamedFiles = Sequence[tuple[FileEntry, bytes]]
"""Contents of files, each with its entry in the commit."""

OneTable = Literal["images", "masks"]
"""Table that a revision can replace without replacing the shard's other files."""


def named_files(shard: int, files: ShardFiles) -> NamedFiles:
    """Return a shard's four files, each with its entry in the commit. Every file name contains the file's hash."""
    by_kind = {"shards": files.tar, "images": files.images, "masks": files.masks, "rejects": files.rejects}
    return [_named(kind, shard, data) for kind, data in by_kind.items()]


def _named(kind: str, shard: int, data: bytes) -> tuple[FileEntry, bytes]:
    digest = bytes_sha256(data)
    return FileEntry(data_path(kind, shard, digest), len(data), digest), data


def reserve(dataset: Location, commit: Commit) -> Location:
    """Reserve a commit's file names before putting the files. Return the reservation; the writer must delete it."""
    reservation = Reservation(commit.shard, commit.generation, tuple(entry.path for entry in commit.files))
    file = reservation.location(dataset)
    file.put_if_absent(reservation.to_json())
    return file


def put_files(dataset: Location, files: NamedFiles) -> None:
    """Put files whose names are reserved."""
    for entry, data in files:
        (dataset / entry.path).put(data)


def put_commit(dataset: Location, commit: Commit, files: NamedFiles) -> bool:
    """Put a commit unless one exists, after its `files` were put. Return whether this commit is the latest.

    Returns False if another writer committed the same or a higher generation.
    """
    log = CommitLog(dataset)
    if not log.put(commit):
        return False
    put_files(dataset, [(entry, data) for entry, data in files if not (dataset / entry.path).exists()])
    if max(log.generations_of(commit.shard), default=0) <= commit.generation:
        return True
    log.location(commit.shard, commit.generation).delete()
    return False


def put_again(
    dataset: Location,
    commit: Commit,
    files: Iterable[tuple[FileEntry, bytes]],
    *,
    after_commit: Callable[[], object] = lambda: None,
) -> bool:
    """Put missing or damaged files of the latest commit again. Return whether it is still the latest afterward.

    The commit's generation already exists, so other commands may delete the reservation of this call. Before each file,
    this function puts a missing reservation again and checks that the commit is still the latest. If the commit is the
    latest at the end, `after_commit` is called before the reservation is deleted. If another writer has committed a
    newer generation, this function deletes the files that it put, including their older versions, unless the newer
    commit names them.
    """
    pairs = list(files)
    reservation = Reservation(commit.shard, commit.generation, tuple(entry.path for entry, _ in pairs))
    file = reservation.location(dataset)

    def holds() -> bool:
        return CommitLog(dataset).is_latest(commit.shard, commit.generation)

    for entry, content in pairs:
        if not file.exists():
            file.put_if_absent(reservation.to_json())
            if not holds():
                break
        (dataset / entry.path).put(content)
    held = holds()
    if held:
        after_commit()
    else:
        delete_unnamed(dataset, commit.shard, [entry for entry, _ in pairs], purge=True)
    file.delete()
    return held


def delete_unnamed(dataset: Location, shard: int, ours: Iterable[FileEntry], *, purge: bool = False) -> None:
    """Delete the files of a writer that lost a race, except files that the latest commit or a reservation names.

    If the shard has no commit, nothing is deleted. Older versions are deleted as well, because a correction may have
    removed images that the files show. Without `purge`, it isn't an error if older versions can't be deleted. Builds
    may lack the permission, and some stores can't list versions.
    """
    state = read_shard_state(dataset, shard)
    if state.commit is not None:
        for entry in ours:
            if entry.path not in state.kept:
                try:
                    (dataset / entry.path).purge()
                except (UsageError, StorageFaultError):
                    if purge:
                        raise
                    (dataset / entry.path).delete()


def remove(file: Location, *, purge: bool) -> None:
    """Delete a file. With `purge`, delete its older versions in the bucket as well."""
    if purge:
        file.purge()
    else:
        file.delete()


class LostRaceError(UnfinishedError):
    """Raised when another writer has committed this generation of a shard with different content.

    This writer's files were deleted.
    """


def replace_shard(
    dataset: DatasetHandle,
    old: Commit,
    rows: Iterable[Row],
    *,
    only: OneTable | None = None,
    purge: bool = True,
    after_commit: Callable[[], object] = lambda: None,
) -> Commit:
    """Commit a shard's rows (keys of `DESCRIBED`, in order) as the generation after `old`, and keep the replaced files.

    The commit keeps the fingerprint of the numerics, because this function doesn't compute masks. With `only`, `rows`
    are the rows of a single table, and their number must be the same as before. In this case, only that table's file is
    written, because the tar of JPEGs can take gigabytes. After the commit, `after_commit` is called.

    Raises `LostRaceError` if another writer committed the same generation with different content, or a higher
    generation. Before that, this function deletes its own files with `delete_unnamed`.
    """
    if only is not None:
        schema = shard_schemas(dataset.stages, dataset.schema_version)[only]
        table = _named(only, old.shard, shard_table_bytes(rows, schema))
        put: NamedFiles = [table]
        before = old.file(only)
        counts, most_redacted = old.counts, old.most_redacted
        entries = tuple(table[0] if entry == before else entry for entry in old.files)
    else:
        files = build_files_of(dataset, rows)
        put = named_files(old.shard, files)
        counts, most_redacted = files.counts, files.most_redacted
        entries = tuple(entry for entry, _ in put)
    new = replace(old, generation=old.generation + 1, counts=counts, files=entries, most_redacted=most_redacted)
    reservation = reserve(dataset.location, new)
    put_files(dataset.location, put)
    won = put_commit(dataset.location, new, put)
    if won:
        after_commit()
    else:
        delete_unnamed(dataset.location, new.shard, new.files, purge=purge)
    remove(reservation, purge=purge)
    if not won:
        raise LostRaceError(
            f"shard {new.shard}: another command committed generation {new.generation} first, so the files of "
            "this one were deleted. Run this command again"
        )
    return new


def check_purge(dataset: Location) -> None:
    """Check that a dataset's store can delete files and their older versions. Call this before changing anything.

    Raises `UsageError` if one of the dataset's folders is a link or the store can't list versions. Raises
    `StorageFaultError` if the store denies access to the versions.
    """
    for folder in (*DATA_KINDS, COMMITS, CATALOG, RESERVATIONS):
        (dataset / folder).refuse_link()
    probe = dataset / f"{TEMPORARY_PREFIX}versions"
    probe.purge()
    if scheme(dataset.uri) in AZURE:  # the last `purge` finds what soft delete kept
        probe.put(b"")
        probe.purge()
        probe.purge()


def remove_replaced(dataset: Location, shards: Iterable[int]) -> list[int]:
    """Purge all files of these shards except the latest commits, the files that they name, and reserved files.

    This removes the files of older generations and of dead writers, temporary files, and all older versions, including
    those of files that were deleted earlier. Temporary files that name another shard stay. Older commits are removed
    last. If a shard has no commit, everything is removed except files that a build reserves. Returns the shards without
    a commit in which such files were kept.
    """
    wanted = set(shards)
    data, committed = [""], ""
    if len(wanted) == 1:  # in a large dataset, the names of one shard's files are few of many
        shard = min(wanted)
        data, committed = [data_beginning(shard), TEMPORARY_PREFIX], commit_beginning(shard)
    files: dict[int, list[str]] = {}
    for kind, beginning in product(DATA_KINDS, data):
        for name in (dataset / kind).walk_ever(beginning):
            path = f"{kind}/{name}"
            named = parse_data_path(path)
            if named is not None and named.shard in wanted:
                files.setdefault(named.shard, []).append(path)
            elif base_name(name).startswith(TEMPORARY_PREFIX):
                becomes = parse_data_path(f"{kind}/{target_of(base_name(name))}")
                if becomes is None or becomes.shard in wanted:  # writers of other shards may still be at work
                    (dataset / path).purge()
    commits: dict[int, list[int]] = {}
    for name in (dataset / COMMITS).walk_ever(committed):
        parsed = parse_commit_name(name)
        if parsed is not None and parsed[0] in wanted:
            commits.setdefault(parsed[0], []).append(parsed[1])
    spared = []
    for shard in sorted(wanted):
        state = read_shard_state(dataset, shard)
        for path in files.get(shard, ()):
            if path not in state.kept:
                (dataset / path).purge()
        # Remove older commits last: as long as one exists, an interrupted removal can be recognized.
        for generation in commits.get(shard, ()):
            if state.commit is not None and generation < state.commit.generation:
                (dataset / commit_path(shard, generation)).purge()
        if state.commit is None and state.kept.intersection(files.get(shard, ())):
            spared.append(shard)
    return spared
