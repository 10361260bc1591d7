"""Common procedure of all corrections: plan, prepare, revise the shards, clean up, and record a version.

A correction is a class with five methods, which `correct` calls. It changes committed shards only by a revision: a set
of shards, and a pure function on their rows. `segmint.operators.shards.revise` handles the reservations, races, and
tombstones of one shard, so builds and other corrections can run at the same time. `segmint.operators.shards.put`
removes the former files. This module applies a revision to all its shards, then removes or rebuilds everything else
that showed the former rows. Repeating the call completes a correction that was killed.
"""

import os
from collections.abc import Callable, Iterable, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.handle import DatasetHandle
from segmint.catalogs.dataset.manifest import manifest_generations
from segmint.catalogs.dataset.outputs import line_of, read_notes
from segmint.catalogs.dataset.shards_index import write_shards_index
from segmint.catalogs.dataset.tombstones import read_tombstones
from segmint.catalogs.dataset.versions.record import VersionName, name_now, put_version
from segmint.catalogs.layout import REPORT, SHARDS_INDEX, DamagedDatasetError
from segmint.infra.progress import track
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.infra.uris import join, local_path, scheme
from segmint.operators.shards.put import OneTable, check_purge, remove_replaced
from segmint.operators.shards.revise import (
    Change,
    ShardRevision,
    apply_later_changes,
    apply_tombstones,
    finish_dead_writers,
    revise_shard,
    with_latest_commit,
)
from segmint.pipeline.config.config import LOCAL, ResourcesConfig

RAY_FROM_SHARDS = 200
"""Minimum number of shards to revise with Ray, which takes about ten seconds to start."""

_THREADS = 16


@dataclass(frozen=True)
class Revision:
    """Shards that a correction changes, and the change."""

    shards: Set[int]  # shards that aren't committed are only cleaned
    change: Change
    needed: Callable[[Commit], bool] = lambda _: True  # a cheaper check than reading all rows
    only: OneTable | None = None  # the one table that it reads and changes, or None for whole shards
    catalog_generation: int | None = None  # minimum manifest generation whose catalog it reads
    on_ray: bool = True  # false if only this process can make the change, for example with its GPU


@dataclass(frozen=True)
class RevisionOutcome:
    """Result of a revision."""

    changed: dict[int, ShardRevision]  # by shard, those with a new generation
    building: tuple[int, ...] = ()  # shards without a commit, for which a build has reserved files
    removed_links: tuple[str, ...] = ()  # links in report/ with their targets, which were left untouched
    outputs: tuple[str, ...] = ()  # derived from the dataset and recorded in it; they contain the former rows


P = TypeVar("P", bound="Plan")
R = TypeVar("R", covariant=True)
Read = TypeVar("Read")


class Plan(Protocol):
    """Plan of a correction: immutable, and valid for the state of the dataset from which it was made."""

    @property
    def listed(self) -> Any:
        """List of the planned changes, for text and JSON."""

    @property
    def is_done(self) -> bool:
        """True if there is nothing to change or to complete after an interruption."""

    @property
    def reason(self) -> str | None:
        """Reason that the version records."""


class Correction(Protocol[P, R]):
    """Interface of a kind of correction. A new kind needs these five methods, and a row in the tests' crash matrix.

    Subclasses inherit a `prepare` and a `clean_up` that do nothing.
    """

    @property
    def command(self) -> str:
        """Name of its command, which the version records."""

    def plan(self, dataset: DatasetHandle) -> P:
        """Determine the changes without making any. Raises `UsageError` for an invalid request."""

    def prepare(self, dataset: DatasetHandle, plan: P) -> P:
        """Put the files that must exist before the shards change; return the updated plan."""
        return plan

    def revision(self, dataset: DatasetHandle, plan: P) -> Revision:
        """Return the shards to change, and the change."""

    def clean_up(self, dataset: DatasetHandle, plan: P) -> None:
        """Remove files that the revised shards no longer need, before the version is recorded."""
        return

    def result(self, dataset: DatasetHandle, plan: P, outcome: RevisionOutcome, version: VersionName) -> R:
        """Return the result. Called last, after the version was recorded."""


def correct(
    dataset: DatasetHandle,
    correction: Correction[P, R],
    confirm: Callable[[Any], None] | None = None,
    now: datetime | None = None,
    resources: ResourcesConfig = LOCAL,
) -> R:
    """Execute a correction and record the resulting version.

    `confirm` is called with the list of planned changes, and may raise to stop. `resources` configure Ray, which runs
    if many shards change. After an interruption at any point, repeating the call completes the work. If there is
    nothing to do or to complete, nothing is touched and `confirm` is not called. Before anything is changed, raises the
    errors of `plan`, and those of a damaged tombstone or a store whose older versions cannot be removed.
    """
    read_tombstones(dataset.location)  # raises for a damaged tombstone, which could hide images that must not come back
    plan = correction.plan(dataset)
    if plan.is_done:
        return correction.result(dataset, plan, RevisionOutcome({}), name_now(dataset.location))
    check_purge(dataset.location)
    if confirm is not None:
        confirm(plan.listed)
    plan = correction.prepare(dataset, plan)
    outcome = revise(dataset, correction.revision(dataset, plan), resources)
    correction.clean_up(dataset, plan)
    version = put_version(dataset.location, correction.command, plan.reason, now)
    outcome = replace(outcome, outputs=tuple(line_of(note) for note in read_notes(dataset.location)))
    return correction.result(dataset, plan, outcome, version)


def revise(
    dataset: DatasetHandle,
    revision: Revision,
    resources: ResourcesConfig = LOCAL,
    ray_from: int = RAY_FROM_SHARDS,
) -> RevisionOutcome:
    """Apply a revision shard by shard, then remove the former files, including older versions.

    If Ray is installed and at least `ray_from` shards change, Ray revises them on `resources`. Call
    `segmint.operators.shards.put.check_purge` first. Raises `revise_shard`'s errors, and `UnfinishedError` if Ray
    fails.
    """

    def look(shard: int) -> tuple[int, bool]:
        return shard, bool(with_latest_commit(dataset.location, shard, revision.needed))

    committed = sorted(revision.shards & dataset.commits.committed().keys())
    looks = map_ahead(look, committed, _THREADS, 2 * _THREADS, "revise")
    shards = [shard for shard, needed in track(looks, "shards", len(committed)) if needed]
    results: Iterable[ShardRevision | None] = (revise_one(dataset, shard, revision) for shard in shards)
    if revision.on_ray and len(shards) >= ray_from and find_spec("ray") is not None:
        from segmint.pipeline.corrections.by_ray import correct_by_ray  # Ray takes a second to import

        alone = replace(revision, shards=frozenset(shards))
        results = correct_by_ray(partial(revise_one, dataset, revision=alone), shards, resources)
    changed = {
        shard: revised
        for shard, revised in track(zip(shards, results, strict=True), "changed shards", len(shards))
        if revised is not None and revised.changed
    }
    # An interrupted amendment may have left a shard that this one doesn't change.
    finish_dead_writers(
        dataset, revision.shards if revision.catalog_generation is None else range(dataset.manifest().shards)
    )
    building = remove_replaced(dataset.location, revision.shards)
    links = remove_report(dataset.location)
    rewrite_index(dataset)
    return RevisionOutcome(changed, tuple(building), tuple(links))


def revise_one(dataset: DatasetHandle, shard: int, revision: Revision) -> ShardRevision | None:
    """Apply a revision to one shard. See `revise_shard`."""

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
        needed=revision.needed,
        after_commit=after_commit,
    )


def rewrite_index(dataset: DatasetHandle) -> None:
    """Rewrite the WebDataset index, if the dataset contains one, because it names tars that were replaced."""
    if (dataset.location / SHARDS_INDEX).exists():
        write_shards_index(dataset.location, dataset.manifest().name)


def remove_report(dataset: Location) -> list[str]:
    """Remove the dataset's report, which may show corrected content, and its older versions.

    Links are removed without following them, so their targets remain. Returns them as "report/pages -> target".
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
    """Call `read` and return its result. Retry if it failed because another command replaced the files it read."""

    def state() -> tuple[dict[int, int], list[int]]:
        return dataset.commits.committed(), manifest_generations(dataset.location)

    while True:
        before = state()
        try:
            return read()
        except (DamagedDatasetError, NotFoundError):
            if state() == before:
                raise
