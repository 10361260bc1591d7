"""`segmint repair`: restore damaged files of a dataset to exactly the bytes that its commits name."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.handle import DatasetHandle
from segmint.catalogs.dataset.manifest import dataset_files, load_latest_manifest
from segmint.catalogs.dataset.versions.record import VersionName, latest_version, put_version, unfinished_takedowns
from segmint.catalogs.findings import Code, FindingCollector
from segmint.catalogs.layout import MANIFEST, RESERVATIONS, commit_path
from segmint.infra.errors import SegmintError, UsageError, last_line
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.threads import map_ahead
from segmint.infra.uris import absolute
from segmint.infra.wording import counted, some
from segmint.operators.shards.put import check_purge
from segmint.operators.shards.restore import restore_shard
from segmint.operators.shards.revise import finish_dead_writers
from segmint.pipeline.config.config import LOCAL, ResourcesConfig
from segmint.pipeline.corrections.correction import RAY_FROM_SHARDS, remove_report, revise, rewrite_index
from segmint.pipeline.corrections.credits import (
    credit,
    end_amendments,
    otherwise_credited,
    shards_of,
    unfinished_amendments,
)
from segmint.pipeline.corrections.parts import remove_parts
from segmint.pipeline.corrections.repair_shard import RepairTask, look_at, repair_shard
from segmint.pipeline.quality.audit.integrity import audit_records

if TYPE_CHECKING:
    from segmint.pipeline.config.config import Config

Result = TypeVar("Result")

_THREADS = 4
"""Threads that inspect shards. Shards are repaired in memory, one after another."""


@dataclass
class RepairResult:
    """Result of a repair."""

    dataset: str
    shards: int = 0  # checked
    damages: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)  # paths of restored files
    not_repaired: dict[int, str] = field(default_factory=dict)  # reasons by shard
    records: str = "manifests, catalog, tombstones, versions, and submissions"  # checked, too
    lost: list[str] = field(default_factory=list)  # damage outside of shards, which nothing restores
    unfinished: list[str] = field(default_factory=list)  # tombstones of takedowns that didn't finish
    credited: int = 0  # images that got the catalog's credits
    version: VersionName | None = None  # None if something couldn't be repaired

    def lines(self) -> list[str]:
        """Return the result as lines of text."""
        return [
            *(f"damaged: {line}" for line in self.damages),
            *(f"repaired: {path}" for path in self.repaired),
            *(f"can't be restored: {line}" for line in self.lost),
            *(f"not repaired: shard {shard}: {why}" for shard, why in sorted(self.not_repaired.items())),
            *(f"not repaired: the takedown of {path} didn't finish; run it again" for path in self.unfinished),
            *([f"{counted(self.credited, 'image')} amended with the catalog's values"] if self.credited else []),
            f"{counted(self.shards, 'shard')}{', ' if self.records else ''}{self.records} checked: "
            f"{counted(len(self.damages) + len(self.lost), 'damaged file')}, "
            f"{len(self.repaired):,} repaired",
            *([] if self.version is None else [self.version.line()]),
        ]


def repair(dataset: Location, config: "Config | None" = None, ray_from: int = RAY_FROM_SHARDS) -> RepairResult:
    """Check a dataset, and restore commits and data files that are missing or damaged.

    Data files are restored from the rest of the shard if possible. Otherwise they are rebuilt from the catalog if
    `config`, the build's configuration, is given. A file is put only if it has exactly the SHA-256 that the commit
    names. A commit is rebuilt if the shard's data files are intact and prove its contents. Existing tombstones are
    applied to restored shards. Images get the catalog's credits in case an amendment was interrupted. Ray inspects and
    repairs `ray_from` or more shards. Raises `UsageError` if there is no dataset or the configuration belongs to
    another one. Damage elsewhere is only listed: manifests, catalog, tombstones, versions, and submissions.
    """
    committed = CommitLog(dataset).committed()  # before the manifest, so that it covers all of these shards
    try:
        latest = load_latest_manifest(dataset)
    except UsageError:
        if not (files := dataset_files(dataset)):
            raise
        return RepairResult(str(dataset), records="", lost=[f"{MANIFEST}: missing. Restore it for {some(files)}"])
    if config is not None and absolute(config.output) != absolute(dataset.uri):
        raise UsageError(
            f"the configuration's output is {config.output}, not {dataset}. Pass this dataset's configuration."
        )
    handle = DatasetHandle.of(dataset, latest, None if config is None else config.catalog)
    resources = LOCAL if config is None else config.resources
    result = RepairResult(str(dataset), shards=len(committed))
    task = RepairTask(handle, latest.manifest)
    numerics: set[str] = set()
    damaged: list[int] = []
    for look in _each(partial(look_at, task=task), list(committed), resources, ray_from, _THREADS):
        if look.commit is not None:
            numerics.add(look.commit.numerics)
            if look.commit.build_sha256 != latest.manifest.build_sha256:
                path = commit_path(look.shard, look.commit.generation)
                result.lost.append(f"{path}: its build_sha256 isn't the manifest's")
        if not look.whole:
            damaged.append(look.shard)
    task = replace(task, numerics=frozenset(numerics))
    again: dict[int, tuple[str, ...]] = {}  # files of shards that may be rebuilt
    for done in _each(partial(repair_shard, task=task), damaged, resources, ray_from):
        result.damages += done.damages
        result.repaired += done.repaired
        if done.not_repaired:
            result.not_repaired[done.shard] = done.not_repaired
        if done.files:
            again[done.shard] = done.files
    if again and config is not None:
        _build_again(config, dataset.storage, sorted(again), result)
        result.repaired += [
            path for shard in sorted(again) if shard not in result.not_repaired for path in again[shard]
        ]
    generation = 0
    while generation != handle.manifest_generation():  # a correction removes the parts of an earlier generation
        audit_records(dataset, pinned := handle.latest(), findings := FindingCollector())
        generation = pinned.generation
    # Reservations of unfinished amendments may be damaged.
    amendments = {f"{RESERVATIONS}/{name}" for name in unfinished_amendments(dataset, handle.latest())}
    found = (each for each in findings.collected() if each.code is not Code.STILL_THERE and each.file not in amendments)
    result.lost += [finding.line() for finding in found]
    if not result.lost:
        _complete(handle, {shard: committed[shard] for shard in damaged}, result)
        _credit(handle, committed.keys() - result.not_repaired.keys(), result, resources)
    if not result.not_repaired and not result.lost:
        result.version = put_version(dataset, "repair")
        if result.version.number is None:
            result.unfinished = unfinished_takedowns(dataset, latest_version(dataset))
    return result


def _complete(dataset: DatasetHandle, repaired: Mapping[int, int], result: RepairResult) -> None:
    """Finish the work of dead writers. If shards changed, remove the report and rewrite the WebDataset index.

    `repaired` maps repaired shards to their former generations.
    """
    changed = finish_dead_writers(dataset, set(dataset.commits.committed()) - result.not_repaired.keys())
    now = dataset.commits.committed()
    if changed or any(now.get(shard) != generation for shard, generation in repaired.items()):
        remove_report(dataset.location)
        rewrite_index(dataset)


def _credit(dataset: DatasetHandle, shards: Iterable[int], result: RepairResult, resources: ResourcesConfig) -> None:
    """Complete amendments in these shards."""
    location, latest = dataset.location, dataset.latest()
    begun = unfinished_amendments(location, latest)
    try:
        wrong = otherwise_credited(location, shards)
        if not wrong and not begun:
            return
        check_purge(location)
    except (UsageError, NotFoundError) as error:
        result.lost.append(f"the credits that an amendment changed in the catalog: {error}")
        return
    # An amendment that died after its commits left the former files behind.
    unfinished = frozenset[int]() if result.not_repaired else shards_of(begun)
    if wrong or unfinished:
        outcome = revise(dataset, credit(location, latest.generation, {*wrong, *unfinished}), resources)
        result.credited = sum(each.rows for each in outcome.changed.values())
    remove_parts(location)
    if not result.not_repaired:
        end_amendments(location, begun)


def _each(
    correct_one: Callable[[int], Result],
    shards: Sequence[int],
    resources: ResourcesConfig,
    ray_from: int,
    threads: int = 1,
) -> Iterator[Result]:
    """Yield `correct_one(shard)` for each shard, in order: in threads, or by Ray for `ray_from` or more shards."""
    if len(shards) >= ray_from and find_spec("ray") is not None:
        from segmint.pipeline.corrections.by_ray import correct_by_ray  # Ray takes a second to import

        return correct_by_ray(correct_one, shards, resources)
    return map_ahead(correct_one, shards, threads, 2 * threads, "repair")


def _build_again(config: "Config", storage: Storage, shards: list[int], result: RepairResult) -> None:
    """Rebuild shards from the catalog, as `segmint build` does, to restore their files.

    Restored shards are removed from `result.not_repaired`. The others get a new reason there.
    """
    import ray.exceptions

    from segmint.infra.metrics import RunMetrics
    from segmint.infra.progress import Progress
    from segmint.infra.ray_session import ray_session
    from segmint.operators.segment.segment import check_numerics
    from segmint.pipeline.build import run_rows
    from segmint.pipeline.building.dataset.dataset import open_or_create
    from segmint.pipeline.building.execution.stage_watch import watched
    from segmint.pipeline.building.execution.stages import lay_out
    from segmint.pipeline.building.execution.work import WindowSize, shard_rows

    dataset = open_or_create(config, storage)
    resources = config.resources
    with (
        ray_session(resources.address, object_store_memory=resources.object_store_memory) as cluster,
        Progress() as bar,
    ):
        stages = lay_out(config, dataset, cluster)
        if cluster.local:
            check_numerics(stages.segment)
        size = WindowSize(config.window_shards).shards
        for start in range(0, len(shards), size):
            window = shards[start : start + size]
            waiting = set(window)
            try:
                taken = shard_rows(config, dataset, window)
                with watched(bar, taken.source.num_rows, config.stall_timeout, RunMetrics(config.name)) as watch:
                    for restored in run_rows(taken, stages, restore_shard):
                        watch.moved()
                        waiting.discard(restored.shard)
                        if restored.status == "committed":
                            del result.not_repaired[restored.shard]
                        else:
                            result.not_repaired[restored.shard] = restored.detail
            except (ray.exceptions.RayError, SegmintError, OSError) as error:
                for shard in waiting:
                    result.not_repaired[shard] = f"it couldn't be rebuilt: {last_line(error)}"
