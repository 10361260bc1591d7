"""Comparison of a dataset with its recorded versions, and of an audit with the dataset's current version."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from segmint.catalogs.dataset.commits import Commit, CommitLog, index_problem
from segmint.catalogs.dataset.digest import Snapshot, SnapshotComparison, compare_snapshots, take_snapshot
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.tombstones import TOMBSTONES, read_tombstones
from segmint.catalogs.dataset.versions import VERSIONS, Version, VersionName, read_history, version_numbers
from segmint.catalogs.findings import Code, Finding, FindingLocation
from segmint.catalogs.layout import SHARDS_INDEX, DamagedDatasetError, parse_commit_path
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.wording import some
from segmint.pipeline.quality.audit.result import AuditReport


@dataclass(frozen=True)
class AuditedVersion:
    """Current version of a dataset, and how it differs from the latest recorded version."""

    name: VersionName
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    changing: bool = False  # a build or correction has changed the dataset since it was recorded


def audit_version(dataset: Location) -> AuditedVersion:
    """Compare a dataset with its latest recorded version, without relying on `summaries/`.

    Builds and corrections record a version when they end. Files that they have added or replaced since then are only a
    note; any other difference is a finding.
    """
    history = read_history(dataset)
    findings = list(history.problems)
    snapshot = take_snapshot(dataset, use_cache=False)
    if history.latest is None:
        return AuditedVersion(VersionName(snapshot.digest, None), tuple(findings), ())
    latest = history.latest
    difference = compare_snapshots(latest.snapshot, snapshot)
    findings += _unlike(latest, snapshot, difference)
    notes = []
    changing = bool(difference.replaced or difference.added)
    if changing:
        notes.append(
            f"changed since version {latest.number} was recorded, by an unfinished or running build or correction, or "
            f"by something else: {some([*difference.added, *difference.replaced])}"
        )
    number = latest.number if latest.digest == snapshot.digest else None
    return AuditedVersion(VersionName(snapshot.digest, number), tuple(findings), tuple(notes), changing)


def takedowns_without_version(dataset: Location) -> Iterator[Finding]:
    """Yield a finding if there are tombstones but no versions, because each takedown records a version when it ends."""
    tombstones = []
    with suppress(DamagedDatasetError):  # already a finding
        tombstones = [each for each in read_tombstones(dataset) if each.version_before is not None]
    if tombstones and not version_numbers(dataset):  # listed last: a takedown may have ended meanwhile
        expected = f"a version, because the takedown of {TOMBSTONES}/{tombstones[0].name} records one when it ends"
        found = "no version. The takedown didn't finish (run it again), or versions were removed"
        yield FindingLocation(f"{VERSIONS}/").finding(Code.BAD_VERSION, expected, found)


def audit_index(
    dataset: Location, manifest: DatasetManifest, commits: Sequence[tuple[int, int]], version: VersionName
) -> Iterator[Finding]:
    """Compare `shards.json`, if it exists, with all latest commits, given as (shard, generation)."""
    if not (dataset / SHARDS_INDEX).exists():
        return
    held: list[Commit] = list(CommitLog(dataset).read_latest_of(commits))
    finished = version.number is not None and len(held) == manifest.shards
    problem = index_problem(dataset, manifest.name, held, finished=finished)
    if problem is not None:
        yield FindingLocation(SHARDS_INDEX).finding(Code.BAD_INDEX, "the tars of the latest commits", problem)


def check_same_version(audit: AuditReport, where: str, dataset: Location) -> str | None:
    """Check that an audit is of a dataset's current version. `where` names the audit in messages.

    If the audit doesn't name its version, returns a warning. If it is of another version, raises `UsageError` with both
    digests.
    """
    if audit.kind != "segmint":
        return None
    if audit.version is None:
        return f"{where} doesn't name the version that it checked. Audit again"
    digest = take_snapshot(dataset, use_cache=False).digest
    if audit.version.digest != digest:
        raise UsageError(
            f"{where} is the audit of another version: it checked sha256:{audit.version.digest}, but {dataset} is now "
            f"sha256:{digest}. Audit it again"
        )
    return None


def _unlike(version: Version, snapshot: Snapshot, difference: SnapshotComparison) -> Iterator[Finding]:
    """Yield a finding for each file of a version that is missing, or that has changed but wasn't replaced."""
    recorded, found = version.snapshot.by_path, snapshot.by_path
    for path in (*difference.changed, *difference.missing):
        commit = parse_commit_path(path)
        place = FindingLocation(path, None if commit is None else commit[0])
        expected = f"SHA-256 {recorded[path]}, as in version {version.number}"
        yield place.finding(Code.UNLIKE_VERSION, expected, found.get(path, "no such file"))
