"""Shared by the corrections of a built dataset, from `segmint takedown` to imports and merges."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.dataset.manifest import (
    DatasetManifest,
    LatestManifest,
    load_latest_manifest,
    load_manifest,
    manifest_generations,
    parts_in_use,
    put_with_parts,
)
from segmint.catalogs.dataset.shards_index import write_shards_index
from segmint.catalogs.dataset.versions.record import latest_version
from segmint.catalogs.layout import (
    CATALOG,
    CLAIMS,
    COMMITS,
    REPORT,
    SHARDS_INDEX,
    DamagedDatasetError,
    is_part_path,
    parse_claim_name,
    parse_commit_name,
    part_number,
    part_path,
)
from segmint.infra.assets.hashes import sha256_of
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import TEMPORARY_PREFIX
from segmint.infra.uris import base_name, join
from segmint.operators.prepare.release import ReleaseConfig

Result = TypeVar("Result")


def release_config(manifest: DatasetManifest) -> ReleaseConfig:
    """Return how a dataset's images are released; raises `UsageError` if the manifest does not say it."""
    try:
        return ReleaseConfig.model_validate(manifest.config.get("release"))
    except ValidationError as error:
        raise UsageError(f"the dataset's manifest does not say how images are released: {error}") from error


def latest_commits(dataset: Location, shards: Iterable[int]) -> dict[int, Commit]:
    """Return the commits that hold for these shards, by shard; shards that are not committed are left out."""
    log = CommitLog(dataset)
    wanted = set(shards)
    pairs = [(shard, generation) for shard, generation in log.committed().items() if shard in wanted]
    return {commit.shard: commit for commit in log.read_many(pairs)}


def rewrite_index(dataset: Location, manifest: DatasetManifest) -> None:
    """Write WebDataset's index again if a dataset has one: it names tars, and those were replaced."""
    if (dataset / SHARDS_INDEX).exists():
        write_shards_index(dataset, manifest.name)


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


def while_unchanged(dataset: Location, read: Callable[[], Result]) -> Result:
    """Return `read()`, called again if it failed because another command has replaced what it read meanwhile."""

    def state() -> tuple[dict[int, int], list[int]]:
        return CommitLog(dataset).committed(), manifest_generations(dataset)

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
    """Put changed parts of the catalog, local files by number, and the manifest's next generation that names them.

    `fields` of the manifest change, too. None if another command has put this generation or a later one meanwhile.
    """
    parts = list(latest.manifest.catalog)
    files = {}  # by path below the dataset
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


def remove_parts(dataset: Location) -> None:
    """Remove the parts of the catalog that the manifest does not name, with their older versions.

    Parts that others claim stay, and those with a higher number: those of a build that grows the dataset.
    """
    parts = len(load_manifest(dataset).catalog)
    names = list((dataset / CATALOG).walk_ever())
    kept = parts_in_use(dataset)
    for name in names:
        path = f"{CATALOG}/{name}"
        replaced = is_part_path(path) and part_number(path) < parts and path not in kept
        if replaced or base_name(name).startswith(TEMPORARY_PREFIX):
            (dataset / path).purge()


def is_unfinished(dataset: Location, shards: Sequence[int]) -> bool:
    """Return whether a correction of these shards did not end: it has left claims, former commits, or no version.

    Other shards may have changed since, and a build may claim those that are not committed yet.
    """
    wanted = frozenset(shards)
    names = (parse_commit_name(name) for name in (dataset / COMMITS).walk_ever())
    generations = [name for name in names if name is not None and name[0] in wanted]
    committed = {shard for shard, _ in generations}
    if len(generations) > len(committed):
        return True
    claims = (parse_claim_name(entry.name) for entry in (dataset / CLAIMS).list())
    if any(claim is not None and claim[0] in committed for claim in claims):
        return True
    changed = {name for name in generations if name[1] > 1}
    try:
        latest = latest_version(dataset) if changed else None
    except DamagedDatasetError:  # `segmint verify` says so
        latest = None
    recorded = set() if latest is None else {(shard, generation) for shard, generation, _ in latest.commits}
    return bool(changed - recorded)
