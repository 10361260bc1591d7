"""One recipe for all corrections: look, put what comes first, revise the shards, clean up, record a version.

A correction is a class with five functions, which `correct` calls. It changes committed shards only by a revision: some
shards, and a pure function on their rows. What makes that safe beside builds and other corrections is in
`segmint.operators.shards.revise` (one shard: reservations, races, tombstones) and `segmint.operators.shards.put`
(removal of what was there before). Here it is run over the shards, and what else showed the former rows is removed or
made again. The same call completes a correction that was killed.
"""

from collections.abc import Callable, Iterable, Set
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
from segmint.catalogs.dataset.versions.record import VersionName, name_now, put_version
from segmint.catalogs.layout import REPORT, SHARDS_INDEX, DamagedDatasetError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.infra.uris import join
from segmint.operators.shards.put import check_purge, remove_replaced
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
"""With this many shards to change, or more, Ray revises them: it takes about ten seconds to start."""

_THREADS = 16


@dataclass(frozen=True)
class Revision:
    """The shards that a correction changes, and how."""

    shards: Set[int]  # those that are not committed are only cleaned
    change: Change
    needed: Callable[[Commit], bool] = lambda _: True  # a cheaper look than at all rows
    images_only: bool = False  # whether it changes nothing but the tables of images, and reads nothing else
    catalog_generation: int | None = None  # of the manifest whose catalog, or a later one, the change reads


@dataclass(frozen=True)
class RevisionOutcome:
    """The result of a revision."""

    changed: dict[int, ShardRevision]  # by shard, those that have a new generation
    building: tuple[int, ...] = ()  # shards without a commit, of which a build reserves files
    removed_links: tuple[str, ...] = ()  # of report/, with what they led to, which was left alone
    outputs: tuple[str, ...] = ()  # made from the dataset and noted in it: they have the former rows


P = TypeVar("P", bound="Plan")
R = TypeVar("R", covariant=True)
Read = TypeVar("Read")


class Plan(Protocol):
    """What a correction is about to do: immutable, and true for the state of the dataset that it was made from."""

    @property
    def listed(self) -> Any:
        """The list of what will be changed, for people and JSON."""

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to change, nor to complete after an interruption."""

    @property
    def reason(self) -> str | None:
        """The reason that the version records."""


class Correction(Protocol[P, R]):
    """A kind of correction. A new one needs these five functions, and a row in the tests' crash matrix.

    One that inherits from this class has `prepare` and `clean_up` that do nothing.
    """

    @property
    def command(self) -> str:
        """The name of its command, which the version records."""

    def plan(self, dataset: DatasetHandle) -> P:
        """Look what is to be changed, and change nothing; raise `UsageError` for a request that doesn't fit."""

    def prepare(self, dataset: DatasetHandle, plan: P) -> P:
        """Put what must be in the dataset before its shards change; return the plan for the state after that."""
        return plan

    def revision(self, dataset: DatasetHandle, plan: P) -> Revision:
        """Return the shards to change, and how."""

    def clean_up(self, dataset: DatasetHandle, plan: P) -> None:
        """Remove what the revised shards need no more, before the version is recorded."""
        return

    def result(self, dataset: DatasetHandle, plan: P, outcome: RevisionOutcome, version: VersionName) -> R:
        """Return the result. It is called last, after the version was recorded."""


def correct(
    dataset: DatasetHandle,
    correction: Correction[P, R],
    confirm: Callable[[Any], None] | None = None,
    now: datetime | None = None,
    resources: ResourcesConfig = LOCAL,
) -> R:
    """Carry out a correction, and record the version that it makes.

    `confirm` is called with the list of what will be changed, and may raise to stop it. `resources` say where Ray runs
    if many shards are to be changed. After an interruption at any point, the same call completes the work; where there
    is nothing to do or to complete, nothing is touched, and `confirm` is not called. Before anything is changed, raises
    what `plan` raises, and `UsageError` for a store whose older versions cannot be removed.
    """
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
    """Apply a revision shard by shard, then remove what was there before, older versions included.

    With `ray_from` shards or more to change, Ray revises them where `resources` say, if it is installed.
    `segmint.operators.shards.put.check_purge` must have passed. Raises what `revise_shard` does, and
    `UnfinishedError` if Ray fails.
    """

    def look(shard: int) -> tuple[int, bool]:
        return shard, bool(with_latest_commit(dataset.location, shard, revision.needed))

    committed = sorted(revision.shards & dataset.commits.committed().keys())
    looks = map_ahead(look, committed, _THREADS, 2 * _THREADS, "revise")
    shards = [shard for shard, needed in looks if needed]
    results: Iterable[ShardRevision | None] = (revise_one(dataset, shard, revision) for shard in shards)
    if len(shards) >= ray_from and find_spec("ray") is not None:
        from segmint.pipeline.corrections.by_ray import correct_by_ray  # Ray takes a second to import

        alone = replace(revision, shards=frozenset(shards))
        results = correct_by_ray(partial(revise_one, dataset, revision=alone), shards, resources)
    changed = {
        shard: revised
        for shard, revised in zip(shards, results, strict=True)
        if revised is not None and revised.changed
    }
    # An amendment that died may have left a shard that this one does not change.
    finish_dead_writers(
        dataset, revision.shards if revision.catalog_generation is None else range(dataset.manifest().shards)
    )
    building = remove_replaced(dataset.location, revision.shards)
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
        images_only=revision.images_only,
        needed=revision.needed,
        after_commit=after_commit,
    )


def rewrite_index(dataset: DatasetHandle) -> None:
    """Write WebDataset's index again if a dataset has one: it names tars, and those were replaced."""
    if (dataset.location / SHARDS_INDEX).exists():
        write_shards_index(dataset.location, dataset.manifest().name)


def remove_report(dataset: Location) -> list[str]:
    """Remove the dataset's report with its older versions: it may show what was corrected, and can be made again.

    No link is followed: links are removed, and returned as "report/pages -> target", for what they lead to stays.
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
    return links


def while_unchanged(dataset: DatasetHandle, read: Callable[[], Read]) -> Read:
    """Return `read()`, called again if it failed because another command has replaced what it read meanwhile."""

    def state() -> tuple[dict[int, int], list[int]]:
        return dataset.commits.committed(), manifest_generations(dataset.location)

    while True:
        before = state()
        try:
            return read()
        except (DamagedDatasetError, NotFoundError):
            if state() == before:
                raise
