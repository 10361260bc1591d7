"""`segmint repair`: restores damaged files of a dataset to exactly the bytes that its commits name."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.dataset.manifest import DatasetManifest, load_manifest
from segmint.catalogs.layout import COMMITS, DATA_KINDS, DamagedDatasetError, commit_name, parse_data_path
from segmint.infra.errors import SegmintError, UsageError, last_line
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import absolute
from segmint.infra.wording import counted
from segmint.operators.shards.restore import Damage, find_damage, remake_commit, restore_from_rest, restore_shard
from segmint.pipeline.corrections.common import release_config

if TYPE_CHECKING:
    from segmint.pipeline.config.config import Config

_THREADS = 4


@dataclass
class Repaired:
    """The result of a repair."""

    dataset: str
    shards: int = 0  # checked
    damages: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)  # paths of restored files
    left: dict[int, str] = field(default_factory=dict)  # why, by shard

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
        ]


def repair(dataset: Location, config: "Config | None" = None) -> Repaired:
    """Check every file that a commit names, and restore those that are missing or have other bytes.

    They are restored from the rest of the shard if that is enough, else from the catalog if `config`, the build's
    configuration, is given; a file is put only if it has exactly the SHA-256 that the commit names. A commit that
    cannot be read is made again if its files prove it. Raises `UsageError` if there is no dataset, or the
    configuration is of another one.
    """
    manifest = load_manifest(dataset)
    if config is not None and absolute(config.output) != absolute(dataset.uri):
        raise UsageError(
            f"the configuration's output is {config.output}, not {dataset}: name the configuration of this dataset"
        )
    with_images = release_config(manifest).format == "images"
    result = Repaired(str(dataset))
    commits, unreadable = _read_commits(dataset, result)
    for commit in unreadable:
        _remake(dataset, manifest, list(commits.values()), commit, with_images, result)
    damages = _find_damages(dataset, list(commits.values()))
    result.damages += [damage.line() for each in damages.values() for damage in each]
    for shard, each in damages.items():
        if restore_from_rest(dataset, commits[shard], each, with_images=with_images):
            result.repaired += [damage.entry.path for damage in each]
        else:
            files = ", ".join(damage.entry.path for damage in each)
            result.left[shard] = (
                f"what is left of it is not enough to make {files} again: with the configuration that it was built by "
                "(--config) it is built once more"
            )
    again = sorted(result.left.keys() & damages.keys())
    if again and config is not None:
        _build_again(config, dataset.storage, again, result)
        result.repaired += [d.entry.path for shard in again if shard not in result.left for d in damages[shard]]
    return result


def _read_commits(dataset: Location, result: Repaired) -> tuple[dict[int, Commit], list[tuple[int, int]]]:
    """Return the commits that hold, by shard, and (shard, generation) of those that cannot be read."""
    log = CommitLog(dataset)
    commits: dict[int, Commit] = {}
    unreadable: list[tuple[int, int]] = []

    def read(pair: tuple[int, int]) -> Commit | str | None:
        try:
            return log.read(*pair)
        except DamagedDatasetError as error:
            return str(error)

    pairs = list(log.committed().items())
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="repair") as pool:
        for pair, commit in zip(pairs, pool.map(read, pairs), strict=True):
            if isinstance(commit, Commit):
                commits[pair[0]] = commit
            elif commit is not None:
                unreadable.append(pair)
                result.damages.append(commit)
    result.shards = len(pairs)
    return commits, unreadable


def _find_damages(dataset: Location, commits: Sequence[Commit]) -> dict[int, list[Damage]]:
    """Return the damaged files, by shard."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="repair") as pool:
        found = pool.map(lambda commit: find_damage(dataset, commit), commits)
        return {commit.shard: each for commit, each in zip(commits, found, strict=True) if each}


def _remake(
    dataset: Location,
    manifest: DatasetManifest,
    commits: Sequence[Commit],
    pair: tuple[int, int],
    with_images: bool,
    result: Repaired,
) -> None:
    """Make a commit that cannot be read again, over the damaged file, if its files prove it."""
    shard, generation = pair
    try:
        numerics = {commit.numerics for commit in commits} | {manifest.numerics_fingerprint}
        if len(numerics) > 1:
            raise DamagedDatasetError(
                f"its commit cannot be read, and the dataset's shards have {len(numerics)} different numerics: it is "
                "not known which of them this shard has"
            )
        known = Commit(shard, generation, manifest.ordinals(shard), manifest.numerics_fingerprint, {}, ())
        commit = remake_commit(dataset, known, _data_files(dataset, shard), with_images=with_images)
    except (DamagedDatasetError, ValueError) as error:
        result.left[shard] = str(error)
        return
    path = f"{COMMITS}/{commit_name(shard, generation)}"
    (dataset / path).put(commit.to_json())
    result.repaired.append(path)


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
