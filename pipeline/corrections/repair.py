"""`segmint repair`: restores damaged files of a dataset to exactly the bytes that its commits name."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from segmint.catalogs.dataset.commits import REJECTED, Commit, CommitLog
from segmint.catalogs.dataset.manifest import DatasetManifest, load_manifest
from segmint.catalogs.dataset.versions.digest import drop_cached_leaves
from segmint.catalogs.dataset.versions.record import VersionName, put_version
from segmint.catalogs.findings import Code, Finding
from segmint.catalogs.layout import DATA_KINDS, DamagedDatasetError, commit_path, parse_data_path
from segmint.infra.errors import SegmintError, UsageError, last_line
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import absolute
from segmint.infra.wording import counted
from segmint.operators.shards.committed_rows import read_file
from segmint.operators.shards.restore import (
    Damage,
    find_damage,
    lost_of_people,
    remake_commit,
    restore_from_rest,
    restore_shard,
)
from segmint.operators.shards.tables import read_table
from segmint.pipeline.audit.commits import audit_commit
from segmint.pipeline.corrections.common import release_config

if TYPE_CHECKING:
    from segmint.pipeline.config.config import Config

_THREADS = 4
_FINGERPRINT = re.compile(r"[0-9a-f]{12}")
_NUMERICS = re.compile(rb'"numerics":"([0-9a-f]{12})"')


@dataclass
class Repaired:
    """The result of a repair."""

    dataset: str
    shards: int = 0  # checked
    damages: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)  # paths of restored files
    left: dict[int, str] = field(default_factory=dict)  # why, by shard
    version: VersionName | None = None  # None if something could not be repaired

    def to_dict(self) -> dict[str, Any]:
        """Return the answer for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the answer as lines for people."""
        return [
            *(f"damaged: {line}" for line in self.damages),
            *(f"repaired: {path}" for path in self.repaired),
            *(f"not repaired: shard {shard}: {why}" for shard, why in sorted(self.left.items())),
            f"{counted(self.shards, 'shard')} looked at: {counted(len(self.damages), 'damaged file')}, "
            f"{len(self.repaired):,} repaired",
            *([] if self.version is None else [self.version.line()]),
        ]


def repair(dataset: Location, config: "Config | None" = None) -> Repaired:
    """Check every commit and every file that it names, and restore those that are missing or have other bytes.

    Data files are restored from the rest of the shard if that is enough, else from the catalog if `config`, the
    build's configuration, is given; a file is put only if it has exactly the SHA-256 that the commit names. A commit
    is made again where its shard's data files are whole and prove it. Raises `UsageError` if there is no dataset, or
    the configuration is of another one.
    """
    manifest = load_manifest(dataset)
    if config is not None and absolute(config.output) != absolute(dataset.uri):
        raise UsageError(
            f"the configuration's output is {config.output}, not {dataset}: name the configuration of this dataset"
        )
    with_images = release_config(manifest).format == "images"
    result = Repaired(str(dataset))
    held = _read_commits(dataset, manifest, result)
    damages = _find_damages(dataset, [each.commit for each in held if each.commit is not None and not each.wrong])
    numerics = {each.commit.numerics for each in held if each.commit is not None and not each.wrong}
    for each in held:
        if each.wrong or each.shard in damages:
            why = _remake(dataset, manifest, each, numerics, result, with_images=with_images)
            if not why:
                damages.pop(each.shard, None)
            elif each.wrong:
                result.damages.append(each.wrong)
                result.left[each.shard] = why
    commits = {each.shard: each.commit for each in held if each.commit is not None}
    result.damages += [damage.line() for each in damages.values() for damage in each]
    for shard, found in damages.items():
        if restore_from_rest(dataset, commits[shard], found, with_images=with_images):
            result.repaired += [damage.entry.path for damage in found]
        else:
            files = ", ".join(damage.entry.path for damage in found)
            result.left[shard] = lost_of_people(dataset, commits[shard], found) or (
                f"what is left of it is not enough to make {files} again: with the configuration that it was built by "
                "(--config) it is built once more"
            )
    again = sorted(result.left.keys() & damages.keys())
    if again and config is not None:
        _build_again(config, dataset.storage, again, result)
        result.repaired += [d.entry.path for shard in again if shard not in result.left for d in damages[shard]]
    if not result.left:
        result.version = put_version(dataset, "repair")
    return result


@dataclass(frozen=True)
class _Held:
    """The commit of a shard that holds: its bytes, and what is wrong with it (empty: nothing that is seen in it)."""

    shard: int
    generation: int
    data: bytes
    commit: Commit | None
    wrong: str

    @property
    def path(self) -> str:
        return commit_path(self.shard, self.generation)


def _read_commits(dataset: Location, manifest: DatasetManifest, result: Repaired) -> list[_Held]:
    """Return the commits that hold, in order of shards, each compared with the manifest and its tables' rows."""
    log = CommitLog(dataset)

    def read(pair: tuple[int, int]) -> _Held | None:
        try:
            data = log.location(*pair).read()
        except NotFoundError:
            return None
        audited = audit_commit(data, *pair, manifest)
        wrong = [
            f"{finding.file}: {finding.expected} expected; {finding.found}"
            for finding in audited.findings
            if not _other_machine(finding, manifest)
        ]
        if audited.commit is not None and not wrong:
            wrong = _miscounted(dataset, audited.commit)
        return _Held(*pair, data, audited.commit, "; ".join(wrong))

    pairs = list(log.committed().items())
    result.shards = len(pairs)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="repair") as pool:
        return [held for held in pool.map(read, pairs) if held is not None]


def _other_machine(finding: Finding, manifest: DatasetManifest) -> bool:
    """Whether a shard has other numerics as builds with `allow_mixed_numerics` have; no damaged text of the manifest's.

    Fingerprints of two machines share none but a few digits by chance, a damaged one all but one.
    """
    if finding.code is not Code.OTHER_NUMERICS:
        return False
    known = manifest.numerics_fingerprint
    return bool(_FINGERPRINT.fullmatch(finding.found)) and sum(map(str.__ne__, finding.found, known)) > 1


def _miscounted(dataset: Location, commit: Commit) -> list[str]:
    """What a commit counts otherwise than its tables, if these have the bytes that it names."""
    try:
        tables = {
            kind: read_table(read_file(dataset, commit.file(kind)), kind) for kind in ("images", "masks", "rejects")
        }
    except (DamagedDatasetError, NotFoundError):
        return []  # found as damage of the file
    reasons = Counter(f"{REJECTED}{reason}" for reason in tables["rejects"].column("reason").to_pylist())
    rows = {kind: table.num_rows for kind, table in tables.items()}
    total = rows["images"] + rows["rejects"]
    counted = {"rows": total, "images": rows["images"], "masks": rows["masks"], "rejected": rows["rejects"], **reasons}
    if counted == dict(commit.counts):
        return []
    return [f"{commit_path(commit.shard, commit.generation)}: counts {dict(commit.counts)}; {counted} there"]


def _find_damages(dataset: Location, commits: Sequence[Commit]) -> dict[int, list[Damage]]:
    """Return the damaged files, by shard."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="repair") as pool:
        found = pool.map(lambda commit: find_damage(dataset, commit), commits)
        return {commit.shard: each for commit, each in zip(commits, found, strict=True) if each}


def _remake(
    dataset: Location,
    manifest: DatasetManifest,
    held: _Held,
    numerics: set[str],
    result: Repaired,
    *,
    with_images: bool,
) -> str:
    """Make a commit again, over the damaged file, if its shard's data files prove it; else return why they do not.

    `numerics` are those of the dataset's other commits.
    """
    try:
        ordinals = manifest.ordinals(held.shard)
        fingerprint = _numerics(held.data, numerics | {manifest.numerics_fingerprint})
        known = Commit(held.shard, held.generation, ordinals, fingerprint, {}, ())
        commit = remake_commit(dataset, known, _data_files(dataset, held.shard), with_images=with_images)
    except (DamagedDatasetError, ValueError) as error:
        return str(error)
    result.damages.append(held.wrong or f"{held.path}: other files than those of shard {held.shard}, which are whole")
    (dataset / held.path).put(commit.to_json())
    drop_cached_leaves(dataset, [held.shard])
    result.repaired.append(held.path)
    return ""


def _numerics(data: bytes, known: set[str]) -> str:
    """Return the numerics of a damaged commit: what it says if other commits say it too, or what all of them say."""
    said = _NUMERICS.search(data)
    if said is not None and said[1].decode() in known:
        return said[1].decode()
    if len(known) > 1:
        raise DamagedDatasetError(
            f"its commit cannot be read, and the dataset's shards have {len(known)} different numerics: it is "
            "not known which of them this shard has"
        )
    (only,) = known
    return only


def _data_files(dataset: Location, shard: int) -> Mapping[str, list[str]]:
    """Return the paths of a shard's data files, by folder."""
    found: dict[str, list[str]] = {}
    for kind in DATA_KINDS:
        for entry in (dataset / kind).list():
            named = parse_data_path(f"{kind}/{entry.name}")
            if named is not None and named.shard == shard:
                found.setdefault(kind, []).append(f"{kind}/{entry.name}")
    return found


def _build_again(config: "Config", storage: Storage, shards: list[int], result: Repaired) -> None:
    """Build shards again from the catalog, as `segmint build` does, to restore their files.

    Shards that are restored are removed from `result.left`; for the others it says why they are not.
    """
    import ray.exceptions

    from segmint.infra.metrics import RunMetrics
    from segmint.infra.progress import Progress
    from segmint.infra.ray_session import ray_session
    from segmint.operators.segment.segment import check_numerics
    from segmint.pipeline.build import run_rows
    from segmint.pipeline.dataset.dataset import open_or_create
    from segmint.pipeline.execution.stage_watch import watched
    from segmint.pipeline.execution.stages import lay_out
    from segmint.pipeline.execution.work import shard_rows

    dataset = open_or_create(config, storage)
    resources = config.resources
    with (
        ray_session(resources.address, object_store_memory=resources.object_store_memory) as cluster,
        Progress() as bar,
    ):
        stages = lay_out(config, dataset, cluster)
        if cluster.local:
            check_numerics(stages.segment)
        for start in range(0, len(shards), config.window_shards):
            window = shards[start : start + config.window_shards]
            waiting = set(window)
            try:
                taken = shard_rows(config, dataset, window)
                with watched(bar, taken.rows.num_rows, config.stall_timeout, RunMetrics(config.name)) as watch:
                    for restored in run_rows(taken, stages, restore_shard):
                        watch.moved()
                        waiting.discard(restored.shard)
                        if restored.status == "committed":
                            del result.left[restored.shard]
                        else:
                            result.left[restored.shard] = restored.detail
            except (ray.exceptions.RayError, SegmintError, OSError) as error:
                for shard in waiting:
                    result.left[shard] = f"it could not be built again: {last_line(error)}"
