"""Shared by the corrections of a built dataset: `segmint takedown`, `redact`, `amend` and `repair`."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from pydantic import ValidationError

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.dataset.manifest import DatasetManifest, load_manifest, manifest_generations, parts_in_use
from segmint.catalogs.dataset.shards_index import write_shards_index
from segmint.catalogs.layout import (
    CATALOG,
    REPORT,
    SHARDS_INDEX,
    DamagedDatasetError,
    is_part_path,
    part_number,
)
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
        return ReleaseConfig.model_validate(manifest.identity.get("release"))
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


def remove_parts(dataset: Location) -> None:
    """Remove the parts of the catalog that the manifest does not name, with their older versions.

    Parts that others claim stay, and those with a higher number: a growing build of an older segmint has put them.
    """
    parts = len(load_manifest(dataset).catalog)
    names = list((dataset / CATALOG).walk_ever())
    kept = parts_in_use(dataset)
    for name in names:
        path = f"{CATALOG}/{name}"
        replaced = is_part_path(path) and part_number(path) < parts and path not in kept
        if replaced or base_name(name).startswith(TEMPORARY_PREFIX):
            (dataset / path).purge()
