"""`segmint takedown`: remove images from a dataset for good, so that only a tombstone names them."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segmint.catalogs.dataset.annotations.names import purge_of_images
from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.fingerprints import (
    Fingerprint,
    forget_fingerprints,
    put_fingerprints,
    read_fingerprints,
)
from segmint.catalogs.dataset.handle import DatasetHandle
from segmint.catalogs.dataset.manifest import load_latest_manifest
from segmint.catalogs.dataset.outputs import shown_outputs
from segmint.catalogs.dataset.selection import read_ids
from segmint.catalogs.dataset.tombstones import (
    BLANK,
    NO_NAMES,
    Removals,
    TakedownRequest,
    by_shard,
    put_tombstone,
    read_tombstones,
    removed_images,
)
from segmint.catalogs.dataset.training_cache import OTHER_CACHES, forget_dataset
from segmint.catalogs.dataset.unaccounted import unknown_files
from segmint.catalogs.dataset.versions.digest import current_digest
from segmint.catalogs.dataset.versions.record import VersionName
from segmint.catalogs.parquet import RowGroupWriter
from segmint.catalogs.schema import normalized_schema
from segmint.infra.assets.cache import sha256_of
from segmint.infra.errors import UsageError
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.infra.uris import split_member
from segmint.infra.wording import counted, some
from segmint.operators.shards.committed_rows import read_file, read_table
from segmint.operators.shards.revise import fingerprint_of, names_removed, with_latest_commit, without_removed
from segmint.pipeline.config.config import LOCAL, ResourcesConfig
from segmint.pipeline.corrections.correction import (
    Revision,
    begin,
    confirm_changes,
    record_version,
    revise,
    while_unchanged,
)
from segmint.pipeline.corrections.parts import put_parts, remove_parts
from segmint.pipeline.corrections.takedown_list import KEPT, SHOWN, SIMILAR, TakedownList, list_takedown

_ROWS = 65_536

_KEPT = ("ordinal", "id")


_ORIGINALS = (
    "originals in tars outside the dataset, as .tar#OFFSET+BYTES; erase them by overwriting the bytes with zeros"
)


@dataclass(frozen=True)
class TakedownResult:
    """Result of a takedown."""

    dataset: str
    rows: int  # rows newly named by this takedown, including duplicates
    images: int  # images that this run removed from committed shards
    changed_shards: tuple[int, ...]
    tombstones: tuple[str, ...]  # all tombstones of the dataset
    taken_down: int  # rows in all tombstones
    version: VersionName
    annotations: int = 0  # the images' annotation files that this run removed
    building: tuple[int, ...] = ()  # shards whose files a build has put but not committed; they may show the images
    kept: tuple[str, ...] = ()  # rows with the same bytes or pixels from other providers or under other licenses
    similar: tuple[str, ...] = ()  # images that look like the removed ones
    outputs: tuple[str, ...] = ()  # outputs recorded in the dataset, which may contain the images
    unknown_files: tuple[str, ...] = ()  # temporary and foreign files, which may name or show the images
    removed_links: tuple[str, ...] = ()  # links in report/ with their targets, which were left untouched
    caches: tuple[str, ...] = ()  # caches of the images, with the files that were deleted or left there
    shared: int = 0  # taken-down images that remaining rows also name
    originals: tuple[str, ...] = ()  # places of taken-down images in tars outside the dataset, unless rows remain there

    def lines(self) -> list[str]:
        images = "the images"
        if self.shared:
            images += f" ({self.shared:,} also named by rows that remain)"
        lines = [
            f"{counted(self.rows, 'row')} taken down, {counted(self.images, 'image')} removed from "
            f"{counted(len(self.changed_shards), 'shard')}; taken down from this dataset in total: "
            f"{counted(self.taken_down, 'row')}",
            "of the dataset's committed files, including older versions, only tombstones/ still names "
            f"{images}, and fingerprints/ has the hashes that recognize their copies",
        ]
        if self.annotations:
            lines.append(f"submissions removed: {counted(self.annotations, 'file')}")
        if self.building:
            shards = some(list(map(str, self.building)))
            lines.append(
                f"a build is writing shards {shards}, or died while writing; its end or next run removes the images"
            )
        if self.kept:
            lines.append(f"{KEPT}: {some(self.kept, SHOWN)}")
        if self.similar:
            lines.append(f"{SIMILAR}: {some(self.similar, SHOWN)}")
        lines += shown_outputs(self.dataset, self.outputs, "delete it or create it again")
        if self.originals:
            lines.append(f"{_ORIGINALS}: {some(self.originals, SHOWN)}")
        lines += [f"cache: {line}" for line in self.caches]
        lines.append(OTHER_CACHES)
        for path in self.unknown_files:
            lines.append(f"not a committed file, check what it shows and names: {path}")
        for link in self.removed_links:
            lines.append(f"removed only the link, check its target: {link}")
        return [*lines, self.version.line()]


def read_request(
    ids: Location | None, license_id: str | None, provider: str | None, *, with_copies: bool = False, **options: bool
) -> TakedownRequest:
    """Return the request with `options`.

    Raises `UsageError` unless exactly one of the ID file, license, and provider is given.
    """
    if ids is not None and with_copies:
        raise UsageError("--with-copies needs --license or --provider: --ids always includes copies")
    given = [str(value) for value in (ids, license_id, provider) if value is not None]
    if len(given) != 1 or not given[0].strip():
        raise UsageError("expected exactly one of --ids FILE, --license L, and --provider P")
    names = None
    if ids is not None:
        names = tuple(read_ids(ids))
    return TakedownRequest(ids=names, license=license_id, provider=provider, with_copies=with_copies, **options)


def takedown(
    dataset: Location,
    request: TakedownRequest,
    reason: str,
    now: datetime | None = None,
    catalog_uri: str | None = None,
    confirm: Callable[[TakedownList], None] | None = None,
    resources: ResourcesConfig = LOCAL,
) -> TakedownResult:
    """Remove images from a dataset. A request by id includes all other rows with the same image or name.

    The tombstone is written first. Then the images' annotations are removed, their rows in the catalog are blanked, the
    next generation of each shard is committed, and everything older is removed. Every call also completes earlier
    takedowns. `catalog_uri` is as in `list_takedown`, `confirm` as in `confirm_changes`, and `resources` as in
    `revise`.

    Before any change, raises `UsageError` if the request contains names that aren't in the dataset or the store's older
    versions can't be removed, and `DamagedDatasetError` if a shard can't be read.
    """
    handle = begin(dataset, catalog_uri)
    listed, committed = _plan(handle, request, reason, now)
    confirm_changes(handle, listed, confirm)
    rows = 0
    while listed.tombstones:
        rows += listed.rows
        digest = current_digest(dataset)
        for tombstone in listed.tombstones:
            put_tombstone(dataset, tombstone.model_copy(update={"version_before": digest}))
        _recognize(handle)
        # Writers that commit from here on find the tombstones. Look again for those that committed since the list was
        # made.
        if handle.commits.committed() == committed:
            break
        listed, committed = _plan(handle, request, reason, now)
    _recognize(handle)  # again, in case an earlier takedown was interrupted before this step
    tombstones = read_tombstones(dataset)
    names = tuple(tombstone.name for tombstone in tombstones)
    images = removed_images(tombstones)
    # A server that puts a submission from here on finds the tombstone.
    answers = purge_of_images(dataset, images)
    while_unchanged(handle, lambda: _blank_catalog(dataset, images.keys()))
    taken = Removals(images, NO_NAMES)  # at this point, duplicates have tombstones
    revision = Revision(
        shards=by_shard(images, handle.manifest().images_per_shard).keys(),
        change=lambda _, rows: [without_removed(row, taken) for row in rows],
        needed=lambda commit: names_removed(dataset, commit, taken),
    )
    outcome = revise(handle, revision, resources)
    remove_parts(dataset)
    # The version has no reason, because it lists the tombstones, which contain the reasons.
    version, outputs = record_version(handle, "takedown", now=now, tombstones=names)
    changed = outcome.changed.values()
    return TakedownResult(
        dataset=str(handle),
        rows=rows,
        images=sum(each.before.counts["images"] - each.commit.counts["images"] for each in changed),
        changed_shards=tuple(outcome.changed),
        tombstones=names,
        taken_down=len(images),
        shared=sum(image.shared for image in images.values()),
        annotations=answers,
        building=outcome.building,
        kept=listed.kept,
        similar=listed.similar,
        outputs=outputs,
        unknown_files=tuple(unknown_files(dataset)),
        version=version,
        removed_links=outcome.removed_links,
        caches=tuple(forget_dataset(dataset)),
        originals=tuple(each.uri for each in images.values() if split_member(each.uri) and not each.shared),
    )


def _plan(
    dataset: DatasetHandle, request: TakedownRequest, reason: str, now: datetime | None
) -> tuple[TakedownList, Mapping[int, int]]:
    """Return the list of the takedown, and the generation of each shard when the list was made."""

    def look() -> tuple[TakedownList, Mapping[int, int]]:
        committed = dataset.commits.committed()
        manifest, location = dataset.manifest(), dataset.location
        listed = list_takedown(location, manifest, request, reason, now, dataset.catalog_uri)
        for commit in dataset.commits.read_all(only=listed.shards):
            for entry in commit.files:  # before any change, check that all files to rewrite can be read
                read_file(location, entry)
        return listed, committed

    return while_unchanged(dataset, look)


def _recognize(dataset: DatasetHandle) -> None:
    """Write the fingerprints of taken-down images from their current commits, and remove unwanted fingerprints.

    Revisions also write fingerprints. Here, they are written before the commits are listed again, so that no build
    misses them.
    """
    known = read_fingerprints(dataset.location)
    per_shard = dataset.manifest().images_per_shard
    for tombstone in read_tombstones(dataset.location):
        for shard, ordinals in by_shard((image.ordinal for image in tombstone.images), per_shard).items():
            images: Mapping[int, Fingerprint] = {}
            if shard in known:
                images = known[shard].images
            if tombstone.request.fingerprints:
                new = {ordinal for ordinal in ordinals if ordinal + 1 not in images}
                if new:
                    look = partial(_fingerprints, dataset.location, new)
                    own = with_latest_commit(dataset.location, shard, look) or {}
                    none = {ordinal + 1: Fingerprint() for ordinal in new}
                    put_fingerprints(dataset.location, shard, {**none, **own})
            elif any(not images.get(ordinal + 1, Fingerprint()).forgotten for ordinal in ordinals):
                forget_fingerprints(dataset.location, shard, {ordinal + 1 for ordinal in ordinals})


def _fingerprints(dataset: Location, ordinals: Set[int], commit: Commit) -> dict[int, Fingerprint]:
    """Return the fingerprints of these images in a commit, keyed by image number."""
    rows = read_table(read_file(dataset, commit.file("images")), "images").to_pylist()
    return {row["id"]: fingerprint_of(row, gone=True) for row in rows if row["ordinal"] in ordinals}


def _blank_catalog(dataset: Location, ordinals: Collection[int]) -> None:
    """Blank these rows in the catalog, including catalog versions that other commands put in the meantime."""
    latest = load_latest_manifest(dataset)
    manifest = latest.manifest
    licenses = Counter(manifest.licenses)
    new: dict[int, Path] = {}  # changed part files, by number
    with ScratchFolder() as folder:
        for number, part in enumerate(manifest.catalog):
            first = part.first_shard * manifest.images_per_shard
            own = [ordinal for ordinal in ordinals if first <= ordinal < first + part.rows]
            if own:
                before = Path(folder) / f"part-{number}.parquet"
                (dataset / part.path).get_file(before)
                blanked = blank_part(before, own, Path(folder) / f"blank-{number}.parquet")
                if blanked.sha256 != part.sha256:
                    new[number] = blanked.path
                    licenses.subtract({name or "missing": count for name, count in blanked.licenses.items()})
                    licenses["taken_down"] += blanked.licenses.total()
        if not new:
            return
        counted = {name: count for name, count in sorted(licenses.items()) if count}
        blank = put_parts(dataset, latest, new, licenses=counted)
    if blank is None:  # a growing build or another correction was first, so blank its parts
        _blank_catalog(dataset, ordinals)


@dataclass(frozen=True)
class BlankedPart:
    """Blanked catalog part on the local disk."""

    path: Path
    sha256: str  # SHA-256, 64 hexadecimal digits
    licenses: Counter[str | None]  # former licenses of the newly blanked rows


def blank_part(part: Path, ordinals: Collection[int], destination: Path) -> BlankedPart:
    """Copy the local part `part` to `destination`. In the given rows, blank all columns except for ordinal and id.

    Rows keep their positions. The bytes only depend on the rows, so blanking the same rows again changes nothing.
    """
    wanted = pa.array(sorted(ordinals), pa.int64())
    licenses: Counter[str | None] = Counter()
    schema = normalized_schema(pq.read_schema(part).names)
    with pq.ParquetFile(part) as file, RowGroupWriter(destination, schema) as writer:
        for batch in file.iter_batches(batch_size=_ROWS):
            taken = pc.is_in(batch.column("ordinal"), value_set=wanted)
            named = pc.and_(taken, pc.not_equal(batch.column("image_id"), BLANK))
            licenses.update(batch.column("license").filter(named).to_pylist())
            writer.add([_blank_rows(batch, taken)])
    return BlankedPart(destination, sha256_of(destination), licenses)


def _blank_rows(batch: pa.RecordBatch, taken: pa.BooleanArray) -> pa.RecordBatch:
    """Return a batch of a normalized catalog with the rows in `taken` blanked."""
    schema = normalized_schema(batch.schema.names)
    columns = {each.name: batch.column(each.name) for each in schema}
    for each in schema:
        if each.name not in _KEPT:
            blank = pa.scalar(None if each.nullable else BLANK, each.type)
            columns[each.name] = pc.if_else(taken, blank, columns[each.name])
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=schema)
