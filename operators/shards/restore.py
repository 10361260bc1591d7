"""Restoration of damaged files of a committed shard to exactly the bytes that the commit names, or not at all.

There are two ways to restore a file: from the shard's other files, because its tables and tar share some data, or by
rebuilding the shard from the catalog. Either way, the SHA-256 of the result must match the commit.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa

from segmint.catalogs.dataset.commits import Commit, CommitLog, FileEntry
from segmint.catalogs.dataset.inventory import FoundFile, read_files
from segmint.catalogs.dataset.manifest import DatasetHandle
from segmint.catalogs.dataset.mask_labels import MASK_LABEL
from segmint.catalogs.layout import (
    ANNOTATION_COLUMNS,
    DATA_KINDS,
    LEVELS,
    DamagedDatasetError,
    annotation_name,
    bytes_sha256,
    parse_data_path,
)
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.tars import BadTarError
from segmint.infra.wording import counted
from segmint.operators.describe import describe_mask, redaction_columns
from segmint.operators.rows import AUTOMATIC, SCHEMAS, Row
from segmint.operators.shards.put import ShardFiles, build_files_of, named_files, put_again
from segmint.operators.shards.revise import (
    apply_later_changes,
    apply_tombstones,
    committed_rows,
    read_committed_rows,
    read_shard_table,
    read_tables,
    stage_columns,
    tar_members,
    with_latest_commit,
)
from segmint.operators.shards.submission_fit import submitted_columns
from segmint.operators.shards.write import ShardResult, ShardTask, faults, iter_rows, shard_table


def find_damage(dataset: Location, commit: Commit) -> list[FoundFile]:
    """Return the files of a commit that are missing or differ in size or SHA-256. Each file is streamed."""
    return [file for file in read_files(dataset, commit) if not file.intact]


def describe_damage(file: FoundFile) -> str:
    """Describe a damaged file in one line for messages."""
    found = "no such file"
    if file.size is not None:
        found = f"{file.size} bytes, SHA-256 {file.sha256[:12]}…"
    return f"{file.entry.path}: {file.entry.size} bytes, SHA-256 {file.entry.sha256[:12]}… expected; {found}"


def restore_from_rest(dataset: DatasetHandle, commit: Commit, damages: Sequence[FoundFile]) -> bool:
    """Restore a shard's damaged files from its other files, and return whether that was possible.

    Masks are stored twice: in the masks table, and in the JSON files inside the tar. So each of the two can be rebuilt
    from the other. JPEGs exist only in the tar. If the tar is damaged, this function takes them from its readable part.
    Rows of images exist only in the images table, so a damaged images table can't be restored.

    Raises `DamagedDatasetError` if another command has replaced the generation in the meantime. The caller should then
    check the new generation.
    """
    damaged = {damage.entry.kind for damage in damages}
    try:
        rows = _rows_of_rest(dataset.location, commit, damaged)
        files = build_files_of(dataset, rows)
    except (DamagedDatasetError, ValueError, KeyError, TypeError):
        return False  # the remaining files contradict each other

    def after_commit() -> None:
        apply_tombstones(dataset, commit.shard)

    return not _put_back(dataset.location, commit, damages, files, after_commit)


def lost_annotations(dataset: Location, commit: Commit, damages: Sequence[FoundFile]) -> str:
    """Return a sentence about annotators' work that is lost with damaged files, or an empty string if none is known.

    Labels, prompts, and other annotation data exist only in the masks table, so no other file can restore them.
    """
    lost = [damage.entry.path for damage in damages if damage.entry.kind == "masks"]
    if not lost:
        return ""
    try:
        images = read_shard_table(dataset, commit, "images")
    except DamagedDatasetError:
        return ""
    said = [name for name in ANNOTATION_COLUMNS if name != "next_mask"]
    rows = [row for row in images.to_pylist() if any(row[name] is not None for name in said)]
    made = [row for row in rows if row["next_mask"] != (row["funnel"] or {}).get("written")]
    annotated = len(made or rows)  # without new masks, some may still have been labeled
    if not annotated:
        return ""
    return (
        f"the annotations of the masks of {counted(annotated, 'image')} (label, source, annotator, prompts, and more) "
        f"existed only in {lost[0]}, so a build can't restore them"
    )


def restore_shard(task: ShardTask, cuts: Sequence[tuple[int, int]], *blocks: pa.Table) -> ShardResult:
    """Restore a committed shard's damaged files from its rebuilt rows. Takes the same arguments as `write_shard`.

    If a rebuilt file differs from the bytes that the commit names, nothing is written, and the result is `on_hold`. If
    another command replaces the generation in the meantime, this function checks the next generation instead.
    """
    table = shard_table(task.shard, range(task.start, task.stop), cuts, *blocks)
    fault = faults(table)
    if fault:
        return ShardResult(task.shard, "on_hold", {}, fault)

    dataset = task.dataset

    def restore(commit: Commit) -> ShardResult:
        damages = find_damage(dataset.location, commit)
        files = build_files_of(dataset, iter_rows(table))
        other = _put_back(dataset.location, commit, damages, files, lambda: apply_later_changes(dataset, task.shard))
        if other:
            raise DamagedDatasetError("; ".join(other))
        return ShardResult(task.shard, "committed", commit.counts)

    try:
        restored = with_latest_commit(dataset.location, task.shard, restore)
    except DamagedDatasetError as error:
        return ShardResult(task.shard, "on_hold", {}, str(error))
    return restored or ShardResult(task.shard, "on_hold", {}, "it no longer has a commit")


def _put_back(
    dataset: Location,
    commit: Commit,
    damages: Sequence[FoundFile],
    files: ShardFiles,
    after_commit: Callable[[], object],
) -> list[str]:
    """Put the damaged files again if all rebuilt files match the commit. Otherwise, describe each file that doesn't.

    Raises `DamagedDatasetError` if the commit was replaced in the meantime. Files that were put are then deleted.
    """
    built = {entry.kind: (entry, data) for entry, data in named_files(commit.shard, files)}
    other = []
    for damage in damages:
        entry, _ = built[damage.entry.kind]
        if entry != damage.entry:
            other.append(
                f"{damage.entry.path}: the rebuilt file has {entry.size} bytes, SHA-256 {entry.sha256[:12]}…; "
                f"the commit names {damage.entry.size} bytes, SHA-256 {damage.entry.sha256[:12]}…"
            )
    if (
        damages
        and not other
        and not put_again(dataset, commit, [built[each.entry.kind] for each in damages], after_commit=after_commit)
    ):
        raise _replaced(commit)
    return other


def _replaced(commit: Commit) -> DamagedDatasetError:
    return DamagedDatasetError(
        f"another command has replaced generation {commit.generation} and its files in the meantime"
    )


def _rows_of_rest(dataset: Location, commit: Commit, damaged: set[str]) -> list[Row]:
    """Rebuild a shard's rows from its undamaged files; raise `ValueError` or `DamagedDatasetError` if some are lost."""
    if "images" in damaged:
        raise ValueError("no other file contains the image rows")
    if "rejects" in damaged and commit.counts.get("rejected") != 0:
        raise ValueError("no other file contains the rejected rows")
    tables: dict[str, list[Row]] = {
        kind: read_shard_table(dataset, commit, kind).to_pylist() for kind in SCHEMAS if kind not in damaged
    }
    members = _members_of_rest(dataset / commit.file("shards").path)
    if "masks" in damaged:
        if "shards" in damaged:
            raise ValueError("no intact file contains the masks")
        tables["masks"] = []
        for image in tables["images"]:
            tables["masks"] += _masks_of_json(image, members, submitted_columns(dataset, image))
    return committed_rows(tables["images"], tables["masks"], tables.get("rejects", []), members)


def _members_of_rest(tar: Location) -> dict[str, bytes]:
    """Return the members in the readable part of a tar, or an empty dictionary if the tar is missing."""
    members: dict[str, bytes] = {}
    try:
        for name, data in tar_members(tar.read()):
            members[name] = data
    except (NotFoundError, BadTarError):
        pass  # the hash of the rebuilt files decides whether these members are enough
    return members


def _masks_of_json(image: Row, members: Mapping[str, bytes], said: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Rebuild an image's rows of `masks` from its JSON, recomputing the statistics.

    - A mask with scores is assumed to come from a build. It keeps its number from the JSON, because other masks may
      have been deleted. Only its label may come from a submission.
    - A mask without scores is assumed to come from a submission. `said` maps the run lengths of submitted masks to
      their columns.

    If annotators set columns in any other way, no other file contains their values. The hash of the rebuilt table then
    doesn't match, so the table isn't restored.
    """
    document = json.loads(members[annotation_name(image["id"])])
    annotations = document["annotations"]
    levels = [document.get(key) or [None] * len(annotations) for key in LEVELS.values()]
    codes = [mask["segmentation"]["counts"] for mask in annotations]
    shares, ious = redaction_columns(image, codes)
    rows = []
    for mask, share, iou, *level in zip(annotations, shares, ious, *levels, strict=True):
        size, counts = mask["segmentation"]["size"], mask["segmentation"]["counts"]
        identity = {name: image[name] for name in ("ordinal", "id", "image_id")}
        statistics = asdict(describe_mask((size[0], size[1]), counts))
        origin: Row = {"source": AUTOMATIC, "redacted_share": share, "redaction_iou": iou}
        origin |= dict(zip(LEVELS, level, strict=True))
        if mask["predicted_iou"] is None:
            origin |= said.get(counts, {})
        elif said.get(counts, {}).get("label_source"):
            origin |= {name: said[counts][name] for name in MASK_LABEL}
        rows.append({**mask, **identity, "annotation_id": mask["id"], **statistics, **origin})
    return rows


def remake_commit(dataset: DatasetHandle, damaged: Commit, found: Mapping[str, Sequence[str]]) -> Commit:
    """Rebuild a damaged commit from the shard's data files. `found` maps folders to the paths of these files.

    `damaged` contains the known fields of the commit: shard, generation, ordinals, and numerics. To make sure that the
    files belong together, this function rebuilds all four from their rows and compares the bytes. Raises
    `DamagedDatasetError`, with the reason, if the bytes differ or if there isn't exactly one file of each kind.
    """
    wrong = {kind: list(found.get(kind, ())) for kind in DATA_KINDS if len(found.get(kind, ())) != 1}
    if wrong:
        listed = "; ".join(f"{kind}: {', '.join(paths) or 'none'}" for kind, paths in wrong.items())
        raise DamagedDatasetError(f"rebuilding the commit takes one file of each kind, but there are {listed}")
    entries = []
    for kind in DATA_KINDS:
        path = found[kind][0]
        data = (dataset.location / path).read()
        entry = FileEntry(path, len(data), bytes_sha256(data))
        named = parse_data_path(path)
        if named is not None and not entry.sha256.startswith(named.digest):
            raise DamagedDatasetError(f"{path} is damaged too: its SHA-256 is {entry.sha256[:12]}…")
        entries.append(entry)
    candidate = replace(damaged, files=tuple(entries))
    tables = read_tables(dataset.location, candidate)
    rows = read_committed_rows(dataset.location, candidate, tables)
    if [row["ordinal"] for row in rows] != list(range(*damaged.ordinals)):
        raise DamagedDatasetError(
            f"the files of shard {damaged.shard} don't contain each of its ordinals once and in order"
        )
    files = build_files_of(replace(dataset, stages=stage_columns(dataset, tables)), rows)
    built = {entry for entry, _ in named_files(damaged.shard, files)}
    other = [entry.path for entry in entries if entry not in built]
    if other:
        raise DamagedDatasetError(f"rebuilding {', '.join(other)} from the rows gives different bytes")
    return replace(candidate, counts=files.counts, most_redacted=files.most_redacted)


def put_commit_again(dataset: Location, commit: Commit, damaged: bytes) -> None:
    """Replace the damaged bytes of a commit with the rebuilt commit.

    Raises `DamagedDatasetError` if another command has replaced the commit. The commit that was put is then deleted.
    """
    log = CommitLog(dataset)
    file = log.location(commit.shard, commit.generation)
    try:
        found = file.read()
    except NotFoundError as error:
        raise _replaced(commit) from error
    if found == commit.to_json():
        return  # another repair has already put it
    if found == damaged:
        file.put(commit.to_json())
        if log.is_latest(commit.shard, commit.generation):
            return
        file.delete()
    raise _replaced(commit)
