"""What the corrections of a built dataset share: `segmint takedown`, `redact` and `repair`."""

from collections.abc import Iterable

from pydantic import ValidationError

from catalogs.commits import Commit, CommitLog
from catalogs.layout import SHARDS_INDEX
from catalogs.manifest import DatasetManifest
from catalogs.shards_index import write_shards_index
from infra.errors import UsageError
from infra.storage import Storage, join
from operators.release import ReleaseConfig

REPORT = "report"
"""The folder of a dataset that a report is written to."""


def release_config(manifest: DatasetManifest) -> ReleaseConfig:
    """How a dataset's images are released; raises `UsageError` for a manifest that does not say it."""
    try:
        return ReleaseConfig.model_validate(manifest.config.get("release"))
    except ValidationError as error:
        raise UsageError(f"the dataset's manifest does not say how images are released: {error}") from error


def held_commits(storage: Storage, dataset_uri: str, shards: Iterable[int]) -> dict[int, Commit]:
    """The commits that hold for these shards, in their order; shards that are not committed are left out."""
    log = CommitLog(storage, dataset_uri)
    wanted = set(shards)
    pairs = [(shard, generation) for shard, generation in log.committed().items() if shard in wanted]
    return {commit.shard: commit for commit in log.read_many(pairs)}


def rewrite_index(storage: Storage, dataset_uri: str, manifest: DatasetManifest) -> None:
    """Writes WebDataset's index anew where a dataset has one: it names tars, and those were replaced."""
    if storage.exists(join(dataset_uri, SHARDS_INDEX)):
        write_shards_index(storage, dataset_uri, manifest.name)


def remove_report(storage: Storage, dataset_uri: str) -> None:
    """Removes the dataset's report, with its older versions: it may show what was corrected, and can be made again."""
    for name in storage.walk_ever(join(dataset_uri, REPORT)):
        storage.purge(join(dataset_uri, REPORT, name))
