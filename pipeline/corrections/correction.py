"""Steps that all corrections share: begin, confirm, revise the shards, and record a version.

A correction is a function that calls these steps in order: `begin`, its own plan, `confirm_changes`, the files
that must exist before the shards change, `revise`, and `record_version`. The only way to change committed shards is a
revision: a set of shards with a pure function on their rows. For each shard, `segmint.operators.shards.revise` handles
reservations, races, and tombstones, so builds and other corrections can run at the same time.
`segmint.operators.shards.put` removes the former files. `revise` applies a revision to all of its shards, and then
removes or rebuilds everything else that showed the former rows. If a correction is killed, repeating the call completes
it. A new kind of correction needs a row in the tests' crash matrix.
"""

import os
from collections.abc import Callable, Collection, Container, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from typing import TypeVar

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.handle import DatasetHandle
from segmint.catalogs.dataset.manifest import manifest_generations
from segmint.catalogs.dataset.outputs import line_of, read_notes
from segmint.catalogs.dataset.shards_index import write_shards_index
from segmint.catalogs.dataset.tombstones import read_tombstones
from segmint.catalogs.dataset.versions.record import VersionName, put_version
from segmint.catalogs.layout import REPORT, SHARDS_INDEX, DamagedDatasetError
from segmint.infra.progress import track
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.infra.uris import join, local_path, scheme
from segmint.operators.shards.put import OneTable, check_purge, remove_replaced
from segmint.operators.shards.revise import (
    Change,
    ColumnChange,
    ShardRevision,
    apply_later_changes,
    apply_tombstones,
    finish_dead_writers,
    kept_columns,
    revise_shard,
    with_latest_commit,
)
from segmint.pipeline.config.config import LOCAL, ResourcesConfig

RAY_FROM_SHARDS = 200
"""Minimum number of shards for which a revision uses Ray, because Ray takes about ten seconds to start."""

_THREADS = 16


@dataclass(frozen=True)
class Revision:
    """Shards that a correction changes, and the function that changes them."""

    shards: Set[int]  # shards that aren't committed are only cleaned
    change: Change
    needed: Callable[[Commit], bool] = lambda _: True  # skips shards more cheaply than by reading all rows
    only: OneTable | None = None  # the only table that the function reads and changes, or None for whole shards
    columns: ColumnChange = kept_columns
    catalog_generation: int | None = None  # oldest manifest generation whose catalog the function may read


@dataclass(frozen=True)
class RevisionOutcome:
    """Result of a revision."""

    changed: dict[int, ShardRevision]  # shards with a new generation
    building: tuple[int, ...] = ()  # shards without a commit, for which a build has reserved files
    removed_links: tuple[str, ...] = ()  # links in report/ with their targets, which were left untouched


Listed = TypeVar("Listed")
Read = TypeVar("Read")
Result = TypeVar("Result")


def begin(dataset: Location, catalog_uri: str | None = None) -> DatasetHandle:
    """Open a dataset for a correction. `catalog_uri` is as in `DatasetHandle.open`.

    Raises an error if a tombstone is damaged, because it could hide images that must not come back.
    """
    handle = DatasetHandle.open(dataset, catalog_uri)
    read_tombstones(handle.location)
    return handle


def confirm_changes(dataset: DatasetHandle, listed: Listed, confirm: Callable[[Listed], None] | None) -> None:
    """Call `confirm` with the list of planned changes. To stop the correction, raise an exception in it.

    Raises `UsageError` if the store's older versions can't be removed.
    """
    check_purge(dataset.location)
    if confirm is not None:
        confirm(listed)


def record_version(
    dataset: DatasetHandle,
    command: str,
    reason: str | None = None,
    now: datetime | None = None,
    tombstones: Collection[str] = (),
) -> tuple[VersionName, tuple[str, ...]]:
    """Record the corrected state as a version. The arguments are as in `put_version`.

    Returns the version, and the outputs recorded in the dataset, which contain the former rows.
    """
    version = put_version(dataset.location, command, reason, now, tombstones)
    return version, tuple(line_of(note) for note in read_notes(dataset.location))


def revise(
    dataset: DatasetHandle,
    revision: Revision,
    resources: ResourcesConfig = LOCAL,
    ray_from: int = RAY_FROM_SHARDS,
) -> RevisionOutcome:
    """Apply a revision shard by shard, and then remove the former files, including older versions.

    If Ray is installed and at least `ray_from` shards change, Ray revises the shards on `resources`. Call
    `segmint.operators.shards.put.check_purge` first. Raises the errors of `revise_shard`, and `UnfinishedError` if Ray
    fails.
    """

    def look(shard: int) -> tuple[int, bool]:
        return shard, bool(with_latest_commit(dataset.location, shard, revision.needed))

    committed = sorted(revision.shards & dataset.commits.committed().keys())
    looks = map_ahead(look, committed, _THREADS, 2 * _THREADS, "revise")
    shards = [shard for shard, needed in track(looks, "shards", len(committed)) if needed]
    alone = replace(revision, shards=frozenset())  # a task revises a single shard
    results = each_shard(partial(revise_one, dataset, revision=alone), shards, resources, ray_from)
    changed = {
        shard: revised
        for shard, revised in track(zip(shards, results, strict=True), "changed shards", len(shards))
        if revised is not None and revised.changed
    }
    # An interrupted amendment may have left behind shards that this amendment doesn't change.
    unfinished = revision.shards if revision.catalog_generation is None else range(dataset.manifest().shards)
    return clean_up(dataset, revision.shards, changed, unfinished)


def each_shard(
    correct_one: Callable[[int], Result],
    shards: Sequence[int],
    resources: ResourcesConfig,
    ray_from: int,
    threads: int = 1,
) -> Iterator[Result]:
    """Yield `correct_one(shard)` for each shard, in order.

    Use Ray for at least `ray_from` shards if it is installed, and threads for fewer. A single thread is this one.
    """
    if len(shards) >= ray_from and find_spec("ray") is not None:
        from segmint.pipeline.corrections.by_ray import correct_by_ray  # Ray takes a second to import

        return correct_by_ray(correct_one, shards, resources)
    if threads == 1:
        return map(correct_one, shards)
    return map_ahead(correct_one, shards, threads, 2 * threads, "correct")


def clean_up(
    dataset: DatasetHandle,
    shards: Set[int],
    changed: dict[int, ShardRevision],
    unfinished: Container[int] | None = None,
) -> RevisionOutcome:
    """Remove or rebuild everything that shows the former rows of these shards, of which some have `changed`.

    In the shards `unfinished`, which default to the same, the work of dead writers is finished first.
    """
    finish_dead_writers(dataset, shards if unfinished is None else unfinished)
    building = remove_replaced(dataset.location, shards)
    links = remove_report(dataset.location)
    rewrite_index(dataset)
    return RevisionOutcome(changed, tuple(building), tuple(links))


def revise_one(dataset: DatasetHandle, shard: int, revision: Revision) -> ShardRevision | None:
    """Apply a revision to one shard; see `revise_shard`."""

    def after_commit() -> None:
        if revision.catalog_generation is None:
            apply_tombstones(dataset, shard)
        else:
            apply_later_changes(dataset, shard, since=revision.catalog_generation)

    return revise_shard(
        dataset,
        shard,
        revision.change,
        only=revision.only,
        columns=revision.columns,
        needed=revision.needed,
        after_commit=after_commit,
    )


def rewrite_index(dataset: DatasetHandle) -> None:
    """Rewrite the WebDataset index, if there is one, because it names tars that were replaced."""
    if (dataset.location / SHARDS_INDEX).exists():
        write_shards_index(dataset.location, dataset.manifest().name)


def remove_report(dataset: Location) -> list[str]:
    """Remove the dataset's report and its older versions, because a report may show the former content.

    Links are removed without following them, so their targets remain. Returns each removed link as "report/pages ->
    target".
    """
    links = []
    report = dataset / REPORT
    names = [""] if report.link_target() is not None else report.walk_ever()
    for name in names:
        file = report / name
        target = file.link_target()
        if target is not None:
            links.append(f"{join(REPORT, name)} -> {target}")
        file.purge()
    if scheme(report.uri) == "file":
        with suppress(OSError):  # missing or not empty
            os.removedirs(local_path((report / "figures").uri))
    return links


def while_unchanged(dataset: DatasetHandle, read: Callable[[], Read]) -> Read:
    """Call `read` and return its result. If `read` fails because another command replaced its files, call it again."""

    def state() -> tuple[dict[int, int], list[int]]:
        return dataset.commits.committed(), manifest_generations(dataset.location)

    while True:
        before = state()
        try:
            return read()
        except (DamagedDatasetError, NotFoundError):
            if state() == before:
                raise
