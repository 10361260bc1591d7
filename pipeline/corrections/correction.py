"""Steps that all corrections share: begin, confirm, revise the shards, and record a version.

A correction is a function that calls these steps in order: `begin`, its own plan, `confirm_changes`, the files
that must exist before the shards change, `revise`, and `record_version`. The only way to change committed shards is a
revision: a set of shards with a pure function on their rows. For each shard, `segmint.operators.shards.revise` handles
reservations, races, and tombstones, so builds and other corrections can run at the same time.
`segmint.operators.shards.put` removes the former files. `revise` applies a revision to all of its shards, and then
removes or rebuilds everything else that showed the former rows. If a correction is killed, repeating the call completes
it. A new kind of correction needs a row in the tests' crash matrix.

Replacement of catalog parts by corrections, with the manifest generation that names them.

Changes of fingerprints on request: remove those of an image, or record that an image is a different picture.

Revision that updates committed images to the catalog's credits, for `segmint amend` and `segmint repair`.
"""

import os
from collections import deque
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from segmint.catalogs.dataset.commits import Commit, CommitLog, write_shards_index
from segmint.catalogs.dataset.manifest import (
    DatasetHandle,
    LatestManifest,
    load_latest_manifest,
    load_manifest,
    manifest_generations,
    parts_in_use,
    put_with_parts,
)
from segmint.catalogs.dataset.outputs import line_of, read_notes
from segmint.catalogs.dataset.selection import possible_ids, select_row
from segmint.catalogs.dataset.tombstones import (
    TOMBSTONES,
    OtherPicture,
    by_image,
    change_fingerprints,
    read_fingerprints,
    read_tombstones,
)
from segmint.catalogs.dataset.versions import VersionName, put_version
from segmint.catalogs.layout import (
    CATALOG,
    REPORT,
    SHARDS_INDEX,
    DamagedDatasetError,
    image_stem,
    is_part_path,
    part_number,
    part_path,
)
from segmint.catalogs.parquet import AMENDABLE
from segmint.infra.assets import sha256_of
from segmint.infra.errors import UnfinishedError, UsageError, last_line
from segmint.infra.progress import track
from segmint.infra.ray_session import RETRIES, ray_session
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.errors import NotFoundError, StorageFaultError
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import TEMPORARY_PREFIX
from segmint.infra.uris import base_name, join, local_path, scheme
from segmint.operators.shards.put import OneTable, check_purge, remove_replaced
from segmint.operators.shards.revise import (
    Change,
    ColumnChange,
    ShardRevision,
    apply_later_changes,
    apply_tombstones,
    cataloged,
    finish_dead_writers,
    kept_columns,
    read_shard_table,
    revise_shard,
    with_latest_commit,
)
from segmint.pipeline.config.config import LOCAL, ResourcesConfig

RAY_FROM_SHARDS = 200
"""Minimum number of shards for which a revision uses Ray, because Ray takes about ten seconds to start."""

TASKS_PER_CORE = 2
"""Number of Ray tasks per core that are submitted. The others wait in this process."""

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
    committed = revision.shards & dataset.commits.committed().keys()
    looks = track(_look_at(dataset.location, committed, revision.needed), "shards", len(committed))
    shards = [shard for shard, needed in looks if needed]
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


def _look_at(dataset: Location, shards: Iterable[int], has: Callable[[Commit], bool]) -> Iterator[tuple[int, bool]]:
    """Yield the shards in order, each with whether `has` returns True for its latest commit."""

    def look(shard: int) -> tuple[int, bool]:
        return shard, bool(with_latest_commit(dataset, shard, has))

    return map_ahead(look, sorted(shards), _THREADS, 2 * _THREADS, "revise")


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
        return _each_by_ray(correct_one, shards, resources)
    if threads == 1:
        return map(correct_one, shards)
    return map_ahead(correct_one, shards, threads, 2 * threads, "correct")


def _each_by_ray(
    correct_one: Callable[[int], Result], shards: Sequence[int], resources: ResourcesConfig
) -> Iterator[Result]:
    """Yield `correct_one(shard)` for each shard, in order, on a cluster or a temporary local Ray.

    Ray runs the function in other processes and on other machines. Raises `UnfinishedError` if a shard can't be
    corrected or Ray fails; repeating the correction completes the work.
    """
    import ray.exceptions

    with ray_session(resources.address, object_store_memory=resources.object_store_memory) as cluster:
        correct: Any = ray.remote(num_cpus=1, max_retries=RETRIES)(_correct)
        function = ray.put(correct_one)
        submitted: deque[Any] = deque()
        try:
            for shard in shards:
                submitted.append(correct.remote(function, shard))
                if len(submitted) > TASKS_PER_CORE * cluster.most_workers:
                    yield ray.get(submitted.popleft())
            while submitted:
                yield ray.get(submitted.popleft())
        except ray.exceptions.RayError as error:
            raise UnfinishedError(
                f"the correction isn't finished: {last_line(error)}. Finished work is kept. Repeat the command."
            ) from error


def _correct(correct_one: Callable[[int], Any], shard: int) -> Any:
    return correct_one(shard)


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


def link_lines(removed_links: Sequence[str]) -> list[str]:
    """Return a line for each link in `report/` that a correction removed."""
    return [f"removed only the link, check its target: {link}" for link in removed_links]


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


def put_parts(
    dataset: Location, latest: LatestManifest, changed: Mapping[int, Path], **fields: Any
) -> LatestManifest | None:
    """Put changed parts of the catalog, and the next manifest generation, which names the parts.

    `changed` maps part numbers to local files. `fields` contains further changes to the manifest. Returns None if
    another command put this generation first.
    """
    parts = list(latest.manifest.catalog)
    files = {}  # local files, keyed by their path in the dataset
    for number, file in changed.items():
        digest = sha256_of(file)
        path = part_path(number, digest)
        files[path] = file
        parts[number] = parts[number].model_copy(update={"path": path, "sha256": digest})
    manifest = latest.manifest.model_copy(update={"catalog": tuple(parts), **fields})
    generation = latest.generation + 1
    won = put_with_parts(dataset, manifest, generation, files)
    if not won or load_latest_manifest(dataset).generation != generation:
        return None
    return LatestManifest(manifest, generation)


def has_replaced_parts(dataset: Location) -> bool:
    """Return whether a part remains that the manifest doesn't name, because a correction was interrupted.

    Older versions count if the store can list them.
    """
    try:
        names = (dataset / CATALOG).walk_ever()
    except (UsageError, StorageFaultError):  # where older versions can't be listed, nothing is amended
        names = tuple(entry.name for entry in (dataset / CATALOG).walk())
    return bool(_replaced(dataset, names))


def remove_parts(dataset: Location) -> None:
    """Remove all catalog parts that the manifest doesn't name, including their older versions.

    Parts that other commands have reserved are kept. Parts with higher numbers than the manifest's are kept as well,
    because they belong to a build that grows the dataset.
    """
    names = (dataset / CATALOG).walk_ever()
    temporary = [f"{CATALOG}/{name}" for name in names if base_name(name).startswith(TEMPORARY_PREFIX)]
    for path in (*_replaced(dataset, names), *temporary):
        (dataset / path).purge()


def _replaced(dataset: Location, names: Iterable[str]) -> list[str]:
    parts = len(load_manifest(dataset).catalog)
    kept = parts_in_use(dataset)
    paths = [f"{CATALOG}/{name}" for name in names]
    return [path for path in paths if is_part_path(path) and part_number(path) < parts and path not in kept]


@dataclass(frozen=True)
class FingerprintChange:
    """Change to an image's fingerprints, either planned or made."""

    dataset: str
    name: str
    image: int  # its number
    what: str
    version: VersionName | None = None
    rows: int = 1

    def lines(self) -> list[str]:
        return [f"{image_stem(self.image)}: {self.what}", *([] if self.version is None else [self.version.line()])]


def forget(
    dataset: Location, name: str, confirm: Callable[[FingerprintChange], None] | None = None
) -> FingerprintChange:
    """Remove the fingerprints of an image, including all older versions. `name` is the image's image_id or number.

    `confirm` is as in `confirm_changes`. Raises `UsageError` if the image has no fingerprints, and the errors of
    `begin` and `confirm_changes`.
    """
    handle = begin(dataset)
    image = _recognized(handle, name)
    listed = _listed(handle, image, "its fingerprints are removed, so copies of it aren't recognized")
    return _change(handle, listed, "forget-fingerprints", None, confirm)


def tell_apart(
    dataset: Location, name: str, tombstone: str, reason: str, now: datetime | None = None
) -> FingerprintChange:
    """Record that an image isn't one of the pictures in a tombstone's file. `name` is the image's image_id or number.

    Raises `UsageError` if the image or the tombstone doesn't exist or the reason is blank, and the errors of `begin`
    and `confirm_changes`.
    """
    if not reason.strip():
        raise UsageError("--reason is empty: expected why the pictures are different")
    file = f"{tombstone.removeprefix(f'{TOMBSTONES}/').removesuffix('.json')}.json"
    when = (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
    handle = begin(dataset)
    names = [each.name for each in read_tombstones(dataset)]
    if file not in names:
        known = ", ".join(names) or "none"
        raise UsageError(f"--of: {handle} has no tombstone {file}: expected one of {known}")
    image = select_row(dataset, handle.manifest(), name).id
    decision = OtherPicture(id=image, tombstone=file, reason=reason, when=when)
    listed = _listed(handle, image, f"recorded as a different picture than those of {TOMBSTONES}/{file}")
    return _change(handle, listed, "other-picture", decision, now=now)


def _listed(dataset: DatasetHandle, image: int, what: str) -> FingerprintChange:
    return FingerprintChange(str(dataset), dataset.manifest().name, image, what)


def _change(
    dataset: DatasetHandle,
    listed: FingerprintChange,
    command: str,
    decision: OtherPicture | None,
    confirm: Callable[[FingerprintChange], None] | None = None,
    now: datetime | None = None,
) -> FingerprintChange:
    """Record a decision about an image or, without a decision, remove the image's fingerprints. No shard changes."""
    confirm_changes(dataset, listed, confirm)
    change_fingerprints(
        dataset.location,
        (listed.image - 1) // dataset.manifest().images_per_shard,
        lambda now: now.without([listed.image]) if decision is None else now.with_decision(decision),
        purge=decision is None,
    )
    revise(dataset, Revision(frozenset(), lambda _, rows: rows))  # also removes the report, which may show the image
    version, _ = record_version(dataset, command, now=now)
    return replace(listed, version=version)


def _recognized(dataset: DatasetHandle, name: str) -> int:
    """Return the number of the image that has this name and fingerprints."""
    removed = [image for tombstone in read_tombstones(dataset.location) for image in tombstone.images]
    wanted = possible_ids(name)
    named = {each.id for each in removed if not wanted.isdisjoint((each.image_id, each.id))}
    known = by_image(read_fingerprints(dataset.location).values())
    found = (named or {select_row(dataset.location, dataset.manifest(), name).id}) & known.keys()
    if len(found) != 1:
        raise UsageError(f"expected the image_id or id of one image with fingerprints, got {name!r}")
    return found.pop()


def credit(dataset: Location, generation: int, shards: Collection[int]) -> Revision:
    """Return a revision that updates the credits of the shards' images from the catalog.

    The revision reads the catalog of manifest generation `generation` or of a later generation.
    """
    change = cataloged(dataset)
    return Revision(
        shards=frozenset(shards),
        change=change,
        needed=lambda commit: _differs(dataset, commit, change),
        only="images",
        catalog_generation=generation,
    )


def otherwise_credited(dataset: Location, shards: Iterable[int]) -> list[int]:
    """Return the committed shards with an image whose credits differ from the catalog."""
    change = cataloged(dataset)
    looks = _look_at(dataset, shards, lambda commit: _differs(dataset, commit, change))
    return [shard for shard, differs in looks if differs]


def unfinished_shards(dataset: Location, shards: Collection[int]) -> list[int]:
    """Return the committed shards among `shards` that an interrupted amendment may have left behind.

    Either the credits of an image differ from the catalog, or the files of a former generation weren't removed.
    """
    generations = CommitLog(dataset).generations()
    replaced = {shard for shard in shards if len(generations.get(shard, ())) > 1}
    return sorted(replaced.union(otherwise_credited(dataset, shards)))


def _differs(dataset: Location, commit: Commit, change: Change) -> bool:
    table = read_shard_table(dataset, commit, "images")
    rows = table.select(["ordinal", "image_id", *AMENDABLE]).to_pylist()
    return any(one is not other for one, other in zip(rows, change(commit, rows), strict=True))
