"""`segmint repair`: restore damaged files of a dataset to exactly the bytes that its commits name.

If another command replaces a shard during its inspection or repair, both continue with the shard's next generation.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from segmint.catalogs.dataset.commits import REJECTED, Commit, CommitLog, reserved_paths
from segmint.catalogs.dataset.digest import drop_cached_leaves
from segmint.catalogs.dataset.inventory import FoundFile
from segmint.catalogs.dataset.manifest import (
    DatasetHandle,
    DatasetManifest,
    dataset_files,
    load_latest_manifest,
    manifest_generations,
)
from segmint.catalogs.dataset.versions import (
    VersionName,
    latest_version,
    put_version,
    read_version,
    unfinished_takedowns,
    version_numbers,
)
from segmint.catalogs.findings import Code, FindingCollector
from segmint.catalogs.layout import (
    ADDED_COLUMNS,
    DATA_KINDS,
    MANIFEST,
    DamagedDatasetError,
    bytes_sha256,
    commit_path,
    parse_data_path,
    shard_name,
)
from segmint.infra.errors import SegmintError, UsageError, last_line
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import absolute
from segmint.infra.wording import counted, some
from segmint.operators.shards.put import check_purge, count_redactions
from segmint.operators.shards.restore import (
    describe_damage,
    find_damage,
    lost_annotations,
    put_commit_again,
    remake_commit,
    restore_from_rest,
    restore_shard,
)
from segmint.operators.shards.revise import apply_tombstones, finish_dead_writers, read_shard_table
from segmint.pipeline.config.config import LOCAL, Config, ResourcesConfig
from segmint.pipeline.corrections.correction import (
    RAY_FROM_SHARDS,
    credit,
    each_shard,
    has_replaced_parts,
    remove_parts,
    remove_report,
    revise,
    rewrite_index,
    unfinished_shards,
)
from segmint.pipeline.quality.audit.integrity import audit_commit, audit_records

_THREADS = 4
"""Number of threads that inspect shards. Repairs run one after another, because each repair holds a shard in memory."""

_NO_DAMAGE = (Code.OTHER_NUMERICS, Code.OTHER_BUILD)
"""Findings about intact commits, such as those of a build with `allow_mixed_numerics`."""

_OTHER_COMMIT = (
    "isn't the commit that the dataset's versions record, so the shard's files were changed, too. Restore all of them "
    "from a backup"
)

_NUMERICS = re.compile(rb'"numerics":"([0-9a-f]{12})"')


@dataclass
class RepairResult:
    """Result of a repair."""

    dataset: str
    shards: int = 0  # checked
    damages: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)  # paths of restored files
    not_repaired: dict[int, str] = field(default_factory=dict)  # why a shard couldn't be repaired, by shard
    records: str = "manifests, catalog, tombstones, versions, and submissions"  # checked, too
    lost: list[str] = field(default_factory=list)  # damage outside of shards, which can't be restored
    unfinished: list[str] = field(default_factory=list)  # tombstones of takedowns that didn't finish
    other_numerics: list[str] = field(default_factory=list)  # paths of intact commits with other numerics
    credited: int = 0  # images that were updated to the catalog's credits
    version: VersionName | None = None  # None if something couldn't be repaired

    def lines(self) -> list[str]:
        return [
            *(f"damaged: {line}" for line in self.damages),
            *(f"repaired: {path}" for path in self.repaired),
            *(f"can't be restored: {line}" for line in self.lost),
            *(f"not repaired: shard {shard}: {why}" for shard, why in sorted(self.not_repaired.items())),
            *(f"not repaired: the takedown of {path} didn't finish; run it again" for path in self.unfinished),
            *([f"intact, but with other numerics: {some(self.other_numerics)}"] if self.other_numerics else []),
            *([f"{counted(self.credited, 'image')} amended with the catalog's values"] if self.credited else []),
            f"{counted(self.shards, 'shard')}{', ' if self.records else ''}{self.records} checked: "
            f"{counted(len(self.damages) + len(self.lost), 'damaged file')}, "
            f"{len(self.repaired):,} repaired",
            *([] if self.version is None else [self.version.line()]),
        ]


def repair(dataset: Location, config: Config | None = None, ray_from: int = RAY_FROM_SHARDS) -> RepairResult:
    """Check a dataset, and restore missing or damaged commits and data files.

    If possible, a data file is restored from the rest of its shard. Otherwise, if `config` contains the build's
    configuration, the file is rebuilt from the catalog. A file is only written if it has exactly the SHA-256 that the
    commit names. A commit is rebuilt if the shard's data files are intact and prove the commit's contents. If a version
    records the commit, nothing in the shard is written unless the commit has the recorded SHA-256. A readable commit
    with the right counts is intact even if its numerics or `build_sha256` differ from the manifest's: it is listed, but
    not rewritten. Existing tombstones are applied to restored shards. If an amendment was interrupted, the
    images are updated to the catalog's credits. Damage to manifests, the catalog, tombstones, versions, or submissions
    is listed but not repaired.

    If there are at least `ray_from` shards, Ray inspects and repairs them. Raises `UsageError` if the dataset doesn't
    exist or `config` belongs to another dataset.
    """
    committed = CommitLog(dataset).committed()  # before the manifest, so that the manifest covers these shards
    try:
        latest = load_latest_manifest(dataset)
    except UsageError as error:
        if not (files := dataset_files(dataset)):
            raise
        problem = str(error) if manifest_generations(dataset) else f"{MANIFEST}: missing"
        return RepairResult(str(dataset), records="", lost=[f"{problem}. Restore it for {some(files)}"])
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
    for look in each_shard(partial(look_at, task=task), list(committed), resources, ray_from, _THREADS):
        if look is None:
            continue
        if look.commit is not None and not look.wrong:
            numerics.add(look.commit.numerics)
            if look.commit.numerics != latest.manifest.numerics_fingerprint:
                result.other_numerics.append(look.path)
            if look.commit.build_sha256 != latest.manifest.build_sha256:
                result.lost.append(f"{look.path}: its build_sha256 isn't the manifest's")
        if not look.whole:
            damaged.append(look.shard)
    task = replace(task, numerics=frozenset(numerics), recorded=_recorded_commits(dataset, damaged, committed))
    again: dict[int, tuple[str, ...]] = {}  # damaged files of shards that may be rebuilt
    for done in each_shard(partial(repair_shard, task=task), damaged, resources, ray_from):
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
    while generation != handle.manifest_generation():  # repeat if a correction removed the parts of this generation
        audit_records(dataset, pinned := handle.latest(), findings := FindingCollector())
        generation = pinned.generation
    found = (each for each in findings.collected() if each.code is not Code.STILL_THERE)
    result.lost += [finding.line() for finding in found]
    if not result.lost:
        _complete(handle, {shard: committed[shard] for shard in damaged}, result)
        _credit(handle, committed.keys() - result.not_repaired.keys(), result, resources)
    if not result.not_repaired and not result.lost:
        result.version = put_version(dataset, "repair")
        if result.version.number is None:
            result.unfinished = unfinished_takedowns(dataset, latest_version(dataset))
    return result


def _recorded_commits(
    dataset: Location, shards: Collection[int], committed: Mapping[int, int]
) -> dict[tuple[int, int], str]:
    """Return the SHA-256 of these shards' commits that versions record. Damaged versions are reported elsewhere."""
    wanted = {(shard, committed[shard]) for shard in shards}
    found: dict[tuple[int, int], str] = {}
    for number in reversed(version_numbers(dataset)):
        if len(found) == len(wanted):
            break
        try:
            version = read_version(dataset, number)
        except DamagedDatasetError:
            continue
        for shard, generation, sha256 in version.commits:
            if (shard, generation) in wanted:
                found.setdefault((shard, generation), sha256)
    return found


def _complete(dataset: DatasetHandle, repaired: Mapping[int, int], result: RepairResult) -> None:
    """Finish the work of dead writers. If shards changed, remove the report and rewrite the WebDataset index.

    `repaired` maps each repaired shard to its former generation.
    """
    changed = finish_dead_writers(dataset, set(dataset.commits.committed()) - result.not_repaired.keys())
    now = dataset.commits.committed()
    if changed or any(now.get(shard) != generation for shard, generation in repaired.items()):
        remove_report(dataset.location)
        rewrite_index(dataset)


def _credit(dataset: DatasetHandle, shards: Collection[int], result: RepairResult, resources: ResourcesConfig) -> None:
    """Complete interrupted amendments in these shards."""
    location, latest = dataset.location, dataset.latest()
    try:
        unfinished = unfinished_shards(location, shards)
        if not unfinished and not has_replaced_parts(location):
            return
        check_purge(location)
    except (UsageError, NotFoundError) as error:
        result.lost.append(f"the credits that an amendment changed in the catalog: {error}")
        return
    outcome = revise(dataset, credit(location, latest.generation, unfinished), resources)
    result.credited = sum(each.rows for each in outcome.changed.values())
    remove_parts(location)


def _build_again(config: Config, storage: Storage, shards: list[int], result: RepairResult) -> None:
    """Rebuild shards from the catalog, like `segmint build`, to restore their files.

    Restored shards are removed from `result.not_repaired`. All other shards get a new reason there.
    """
    import ray.exceptions

    from segmint.infra.metrics import RunMetrics
    from segmint.infra.progress import Progress
    from segmint.infra.ray_session import ray_session
    from segmint.operators.segment.segment import check_numerics
    from segmint.pipeline.build import run_rows
    from segmint.pipeline.building.dataset import open_or_create
    from segmint.pipeline.building.execution.accounting import WindowSize, shard_rows
    from segmint.pipeline.building.execution.stage_watch import start_detectors, watched
    from segmint.pipeline.building.execution.stages import lay_out

    dataset = open_or_create(config, storage)
    resources = config.resources
    with (
        ray_session(resources.address, object_store_memory=resources.object_store_memory) as cluster,
        Progress() as bar,
    ):
        stages = start_detectors(lay_out(config, dataset, cluster))
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


@dataclass(frozen=True)
class RepairTask:
    """Arguments for the inspection or repair of a shard."""

    dataset: DatasetHandle
    manifest: DatasetManifest
    numerics: frozenset[str] = field(default_factory=frozenset)  # numerics of the intact commits
    recorded: Mapping[tuple[int, int], str] = field(default_factory=dict)  # SHA-256 by shard and generation

    def differs_from_version(self, shard: int, generation: int, data: bytes) -> bool:
        """Return whether a commit's bytes aren't those that a version records."""
        sha256 = bytes_sha256(data)
        return self.recorded.get((shard, generation), sha256) != sha256


@dataclass(frozen=True)
class ShardRecord:
    """Latest commit of a shard, and what is wrong with it and with the files that it names."""

    shard: int
    generation: int
    data: bytes | None  # the commit's file; None if it is missing
    commit: Commit | None  # None if it can't be parsed
    wrong: str = ""  # problems in the commit, or "" if it is intact
    damages: tuple[FoundFile, ...] = ()  # damaged files of an intact commit

    @property
    def path(self) -> str:
        return commit_path(self.shard, self.generation)

    @property
    def whole(self) -> bool:
        return not self.wrong and not self.damages


@dataclass(frozen=True)
class ShardRepair:
    """Result of the repair of a shard."""

    shard: int
    damages: tuple[str, ...] = ()  # one line each
    repaired: tuple[str, ...] = ()  # paths
    not_repaired: str = ""  # the reason if it couldn't be repaired
    files: tuple[str, ...] = ()  # damaged files that a rebuild of the shard restores


def look_at(shard: int, task: RepairTask) -> ShardRecord | None:
    """Check a shard's commit, and the size and SHA-256 of every file that the commit names.

    A command may be removing the files of a generation, so damage only counts in the latest one. Returns None if the
    shard isn't committed anymore.
    """
    log = task.dataset.commits
    while generations := log.generations_of(shard):
        record = _read_record(task, shard, generations[-1])
        if record.whole or log.is_latest(shard, record.generation):
            return record
    return None


def repair_shard(shard: int, task: RepairTask) -> ShardRepair:
    """Restore a shard's damaged files if its other files contain enough information."""
    while True:
        record = look_at(shard, task)
        if record is None or record.whole:
            return ShardRepair(shard)
        try:
            repaired = _repair(task, record)
        except DamagedDatasetError as error:  # a file was damaged during the repair
            repaired = ShardRepair(shard, not_repaired=str(error))
        if not repaired.not_repaired or task.dataset.commits.is_latest(shard, record.generation):
            return repaired


def _repair(task: RepairTask, record: ShardRecord) -> ShardRepair:
    """Restore what is damaged in a shard, or return the reason why that is impossible."""
    shard, damages, location = record.shard, record.damages, task.dataset.location
    if record.data is None:
        return ShardRepair(shard, not_repaired=record.wrong)
    why = _remake(task, record, record.data)
    if not why:
        other = f"{record.path}: doesn't name the files of shard {shard}, which are intact"
        return ShardRepair(shard, (record.wrong or other,), (record.path,))
    if record.wrong or record.commit is None:
        return ShardRepair(shard, (record.wrong,), not_repaired=why)
    if task.differs_from_version(shard, record.generation, record.data):
        return ShardRepair(shard, not_repaired=f"{record.path} {_OTHER_COMMIT}")
    lines = tuple(describe_damage(each) for each in damages)
    paths = tuple(each.entry.path for each in damages)
    if restore_from_rest(task.dataset, record.commit, damages):
        return ShardRepair(shard, lines, paths)
    not_repaired = lost_annotations(location, record.commit, damages)
    if not not_repaired:
        not_repaired = (
            f"the rest of the shard isn't enough to restore {', '.join(paths)}. To rebuild it, pass the build's "
            "configuration with --config."
        )
        kinds = {each.entry.kind for each in damages}
        if record.generation > 1 and not kinds.isdisjoint(("images", "masks")):
            not_repaired += " A build can't restore what `segmint label` and `segmint apply` set."
    return ShardRepair(shard, lines, not_repaired=not_repaired, files=paths)


def _read_record(task: RepairTask, shard: int, generation: int) -> ShardRecord:
    """Read a commit, compare it with the manifest and the rows of its tables, and hash the files that it names."""
    location = task.dataset.location
    file = task.dataset.commits.location(shard, generation)
    try:
        data = file.read()
    except NotFoundError:
        return ShardRecord(shard, generation, None, None, f"{file} is missing")
    audited = audit_commit(data, shard, generation, task.manifest)
    commit, wrong = audited.commit, []
    for finding in audited.findings:
        if finding.code not in _NO_DAMAGE:
            wrong.append(f"{finding.file}: expected {finding.expected}; found {finding.found}")
    if commit is not None and not wrong:
        wrong = _miscounted(location, commit)
    damages: list[FoundFile] = []
    if commit is not None and not wrong:
        damages = find_damage(location, commit)
    return ShardRecord(shard, generation, data, commit, "; ".join(wrong), tuple(damages))


def _miscounted(dataset: Location, commit: Commit) -> list[str]:
    """Return a description of counts in a commit that differ from its tables. Damaged tables are reported elsewhere."""
    try:
        tables = {kind: read_shard_table(dataset, commit, kind) for kind in ("images", "masks", "rejects")}
    except (DamagedDatasetError, NotFoundError):
        return []  # the damaged file is reported elsewhere
    reasons = Counter(f"{REJECTED}{reason}" for reason in tables["rejects"].column("reason").to_pylist())
    rows = {kind: table.num_rows for kind, table in tables.items()}
    total = rows["images"] + rows["rejects"]
    redactions, _ = count_redactions(tables["images"].select(["id", *ADDED_COLUMNS]).to_pylist())
    counted = {
        "rows": total,
        "images": rows["images"],
        "masks": rows["masks"],
        "rejected": rows["rejects"],
        **reasons,
        **redactions,
    }
    if counted == dict(commit.counts):
        return []
    return [f"{commit_path(commit.shard, commit.generation)}: counts {dict(commit.counts)}; {counted} there"]


def _remake(task: RepairTask, held: ShardRecord, data: bytes) -> str:
    """Rebuild a damaged commit from the shard's data files. Return "" or the reason why this is impossible."""
    try:
        ordinals = task.manifest.ordinals(held.shard)
        fingerprint = _numerics(data, task.numerics | {task.manifest.numerics_fingerprint})
        known = Commit(held.shard, held.generation, ordinals, fingerprint, task.manifest.build_sha256, {}, ())
        commit = remake_commit(task.dataset, known, _data_files(task.dataset.location, held, data))
    except (DamagedDatasetError, NotFoundError, ValueError) as error:
        return str(error)
    if task.differs_from_version(held.shard, held.generation, commit.to_json()):
        return f"{held.path}, rebuilt from the shard's files, {_OTHER_COMMIT}"
    put_commit_again(task.dataset.location, commit, data)
    drop_cached_leaves(task.dataset.location, [held.shard])
    apply_tombstones(task.dataset, held.shard)
    return ""


def _numerics(data: bytes, known: frozenset[str]) -> str:
    """Return a damaged commit's numerics: its own if other commits share them, or else the only known numerics."""
    said = _NUMERICS.search(data)
    if said is not None and said[1].decode() in known:
        return said[1].decode()
    if len(known) > 1:
        raise DamagedDatasetError(
            f"its commit can't be read, and the dataset's shards have {len(known)} different numerics, so "
            "this shard's numerics are unknown"
        )
    (only,) = known
    return only


def _data_files(dataset: Location, held: ShardRecord, data: bytes) -> Mapping[str, list[str]]:
    """Return the paths of data files that may belong to a damaged commit, by folder.

    A file belongs to the commit if the commit's bytes contain the first digits of the file's SHA-256, which occur both
    in the file's path and in the hash after the path. If the commit can't be parsed, all files that no running or dead
    command has reserved count as well.
    """
    reserved = reserved_paths(dataset, {held.shard: held.generation})
    found: dict[str, list[str]] = {}
    for kind in DATA_KINDS:
        for entry in (dataset / kind).list(beginning=f"sa_{shard_name(held.shard)}-"):
            path = f"{kind}/{entry.name}"
            named = parse_data_path(path)
            if named is None or named.shard != held.shard:
                continue
            if (held.commit is None and path not in reserved) or named.digest.encode() in data:
                found.setdefault(kind, []).append(path)
    return found
