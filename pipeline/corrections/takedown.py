"""`segmint takedown`: removes images from a dataset for good, so that only a tombstone names them."""

import tempfile
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from segmint.catalogs.dataset.blanking import blank_part
from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.manifest import (
    CatalogPart,
    DatasetManifest,
    load_latest_manifest,
    load_manifest,
    put_manifest,
)
from segmint.catalogs.dataset.outputs import unknown_files
from segmint.catalogs.dataset.selection import read_ids
from segmint.catalogs.dataset.tombstones import (
    BLANK,
    Asked,
    by_shard,
    put_tombstone,
    read_tombstones,
    taken_images,
)
from segmint.catalogs.layout import CATALOG, is_part_path, part_path
from segmint.infra.errors import UnfinishedError, UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import TEMPORARY_PREFIX
from segmint.infra.uris import base_name
from segmint.infra.wording import counted
from segmint.operators.shards.committed_rows import read_committed_rows, read_file
from segmint.operators.shards.corrected_rows import is_taken, take_down
from segmint.operators.shards.replace import check_purge, remove_replaced, replace_shard
from segmint.operators.shards.tables import read_table
from segmint.pipeline.corrections.common import latest_commits, release_config, remove_report, rewrite_index
from segmint.pipeline.corrections.takedown_list import TakedownList, list_takedown


@dataclass(frozen=True)
class TakenDown:
    """The result of a takedown."""

    dataset: str
    rows: int  # first named by this takedown, copies included
    images: int  # removed from committed shards by this run
    changed_shards: tuple[int, ...]
    tombstones: tuple[str, ...]  # all of the dataset's
    taken_down: int  # rows in all tombstones
    unknown_files: tuple[str, ...] = ()  # in the dataset, but not segmint's: they may name or show the images
    removed_links: tuple[str, ...] = ()  # of report/, with what they led to, which was left alone

    def to_dict(self) -> dict[str, Any]:
        """Return the answer for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the answer as lines for people."""
        return [
            f"{counted(self.rows, 'row')} taken down, {counted(self.images, 'image')} removed from "
            f"{counted(len(self.changed_shards), 'shard')}; taken down of this dataset in all: "
            f"{counted(self.taken_down, 'row')}",
            "what was there before is gone, older versions included; "
            + ("of segmint's files " if self.unknown_files or self.removed_links else "")
            + "tombstones/ alone names the images",
            *(f"not segmint's, look whether it shows or names them: {path}" for path in self.unknown_files),
            *(f"only the link was removed, look where it led: {link}" for link in self.removed_links),
        ]


def read_asked(ids: Location | None, license_id: str | None, provider: str | None) -> Asked:
    """Return the request; raises `UsageError` unless exactly one of file of ids, license and provider is given."""
    given = [str(value) for value in (ids, license_id, provider) if value is not None]
    if len(given) != 1 or not given[0].strip():
        raise UsageError("name what to take down by exactly one of --ids FILE, --license L and --provider P")
    names = tuple(read_ids(ids)) if ids is not None else None
    return Asked(ids=names, license=license_id, provider=provider)


def takedown(
    dataset: Location,
    asked: Asked,
    reason: str,
    now: datetime | None = None,
    catalog_uri: str | None = None,
    confirm: Callable[[TakedownList], None] | None = None,
) -> TakenDown:
    """Remove images from a dataset, with every other row that names or is the same image.

    `catalog_uri` as in `list_takedown`. `confirm` is called with what will be removed, and may raise to stop it.

    First the tombstone is put, then the catalog without these rows, then each shard's next generation; then everything
    older is removed. After an interruption at any point, the same call completes the work; every call also completes
    earlier takedowns. Before anything is changed, raises `UsageError` for names that the dataset does not have or a
    store whose older versions cannot be removed, and `DamagedDatasetError` if a shard cannot be read.
    """
    manifest = load_manifest(dataset)
    with_images = release_config(manifest).format == "images"
    wanted = list_takedown(dataset, manifest, asked, reason, now, catalog_uri)
    check_purge(dataset)
    _check_readable(dataset, wanted.shards)
    if confirm is not None:
        confirm(wanted)
    for tombstone in wanted.tombstones:
        put_tombstone(dataset, tombstone)
    tombstones = read_tombstones(dataset)
    ordinals = taken_images(tombstones).keys()
    manifest = _blank_catalog(dataset, ordinals)
    changed = _replace_shards(dataset, manifest, ordinals, with_images)
    remove_replaced(dataset, by_shard(ordinals, manifest.images_per_shard))
    _remove_parts(dataset, manifest)
    links = remove_report(dataset)
    rewrite_index(dataset, manifest)
    return TakenDown(
        dataset=str(dataset),
        rows=wanted.rows,
        images=sum(changed.values()),
        changed_shards=tuple(changed),
        tombstones=tuple(tombstone.name for tombstone in tombstones),
        taken_down=len(ordinals),
        unknown_files=tuple(unknown_files(dataset)),
        removed_links=tuple(links),
    )


def _check_readable(dataset: Location, shards: Collection[int]) -> None:
    """Read every file that has to be written again; raises `DamagedDatasetError` before anything is changed."""
    for commit in latest_commits(dataset, shards).values():
        for entry in commit.files:
            read_file(dataset, entry)


def _blank_catalog(dataset: Location, ordinals: Collection[int]) -> DatasetManifest:
    """Blank these rows in the catalog; return the manifest that holds then."""
    manifest, generation = load_latest_manifest(dataset)
    licenses = Counter(manifest.licenses)
    parts: list[CatalogPart] = []
    with tempfile.TemporaryDirectory(prefix="segmint-") as folder:
        for number, part in enumerate(manifest.catalog):
            first = part.first_shard * manifest.images_per_shard
            own = [ordinal for ordinal in ordinals if first <= ordinal < first + part.rows]
            if own:
                before = Path(folder) / f"part-{number}.parquet"
                (dataset / part.path).get_file(before)
                blanked = blank_part(before, own, Path(folder) / f"blank-{number}.parquet")
                if blanked.sha256 != part.sha256:
                    path = part_path(number, blanked.sha256)
                    (dataset / path).put_file(blanked.path)
                    part = part.model_copy(update={"path": path, "sha256": blanked.sha256})
                    licenses.subtract({name or "missing": count for name, count in blanked.licenses.items()})
                    licenses["taken_down"] += blanked.licenses.total()
            parts.append(part)
    if tuple(parts) == manifest.catalog:
        return manifest
    counted = {name: count for name, count in sorted(licenses.items()) if count}
    blank = manifest.model_copy(update={"catalog": tuple(parts), "licenses": counted})
    if not put_manifest(dataset, blank, generation + 1):
        raise UnfinishedError(
            f"another command has put generation {generation + 1} of the manifest meanwhile: run one at a time, and "
            "repeat this one"
        )
    return blank


def _replace_shards(
    dataset: Location, manifest: DatasetManifest, ordinals: Collection[int], with_images: bool
) -> dict[int, int]:
    """Commit the next generation of each shard that still has one of these rows; return images removed, by shard."""
    shards = by_shard(ordinals, manifest.images_per_shard)
    changed: dict[int, int] = {}
    for shard, commit in latest_commits(dataset, shards).items():
        if _left(dataset, commit, shards[shard]):
            before = read_committed_rows(dataset, commit)
            after = [take_down(row) if row["ordinal"] in shards[shard] else row for row in before]
            new = replace_shard(dataset, commit, after, with_images=with_images)
            changed[shard] = commit.counts["images"] - new.counts["images"]
    return changed


def _left(dataset: Location, commit: Commit, ordinals: frozenset[int]) -> bool:
    """Return whether a shard still has data of rows that were taken down."""
    rejects = read_table(read_file(dataset, commit.file("rejects")), "rejects").to_pylist()
    return not ordinals <= {row["ordinal"] for row in rejects if is_taken(row) and row["image_id"] == BLANK}


def _remove_parts(dataset: Location, manifest: DatasetManifest) -> None:
    """Remove the parts of the catalog that the manifest does not name, with their older versions."""
    kept = {part.path for part in manifest.catalog}
    for name in (dataset / CATALOG).walk_ever():
        path = f"{CATALOG}/{name}"
        if path not in kept and (is_part_path(path) or base_name(name).startswith(TEMPORARY_PREFIX)):
            (dataset / path).purge()
