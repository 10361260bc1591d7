"""Audit of a dataset's catalog parts and commits. `shard.py` audits the contents of a shard's files."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from segmint.catalogs.dataset.commits import PRIVACY_COUNTS, REJECTED, Commit, CommitLog
from segmint.catalogs.dataset.manifest import CatalogPart, DatasetManifest
from segmint.catalogs.findings import Code, Finding, FindingLocation
from segmint.catalogs.layout import (
    DATA_KINDS,
    SCHEMA_VERSION,
    DamagedDatasetError,
    commit_path,
    config_sha256,
    data_path,
    parse_data_path,
)
from segmint.catalogs.source.rows import NormalizedRows
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead

_THREADS = 16
_READ_AHEAD = 512
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class AuditedCommit:
    """Commit file with its findings. `commit` is None if the file is unusable."""

    shard: int
    generation: int
    commit: Commit | None
    findings: tuple[Finding, ...]

    def has(self, code: Code) -> bool:
        """Return whether there is a finding with this code."""
        return any(finding.code is code for finding in self.findings)


def audit_catalog_part(dataset: Location, part: CatalogPart, images_per_shard: int) -> Iterator[Finding]:
    """Check that a part of the catalog is the file that the manifest pins, and that its ordinals are right."""
    place = FindingLocation(part.path)
    file = dataset / part.path
    try:
        digest = file.sha256()
    except NotFoundError:
        yield place.finding(Code.MISSING_CATALOG, f"the catalog's part with {part.rows} rows", "no such file")
        return
    if digest != part.sha256:
        yield place.finding(Code.CATALOG_DIGEST, f"SHA-256 {part.sha256}", digest)
        return
    try:
        with NormalizedRows(file) as rows:
            first, end = rows.ordinals
    except UsageError as error:
        yield place.finding(Code.CATALOG_ROWS, "a normalized catalog", error)
        return
    start = part.first_shard * images_per_shard
    if (first, end) != (start, start + part.rows):
        expected = f"ordinals {start} to {start + part.rows - 1}"
        yield place.finding(Code.CATALOG_ROWS, expected, f"{first} to {end - 1}")


def audit_commits(
    dataset: Location, manifest: DatasetManifest, pairs: Iterable[tuple[int, int]]
) -> Iterator[AuditedCommit]:
    """Read and check commits, given as (shard, generation), in order. Commits that have disappeared are skipped.

    At most a few hundred commits are in memory at a time.
    """
    log = CommitLog(dataset)

    def audit(pair: tuple[int, int]) -> AuditedCommit | None:
        try:
            data = log.location(*pair).read()
        except NotFoundError:
            return None
        return audit_commit(data, *pair, manifest)

    yield from filter(None, map_ahead(audit, pairs, _THREADS, _READ_AHEAD, "commits"))


def audit_commit(data: bytes, shard: int, generation: int, manifest: DatasetManifest) -> AuditedCommit:
    """Check a commit's bytes against the name (shard and generation), the commit's own fields, and the manifest."""
    place = FindingLocation(commit_path(shard, generation), shard)

    def unusable(expected: str, found: object) -> AuditedCommit:
        return AuditedCommit(shard, generation, None, (place.finding(Code.BAD_COMMIT, expected, found),))

    try:
        commit = Commit.from_json(data, "the file")
    except DamagedDatasetError as error:
        return unusable("a commit's JSON", error)
    if commit.to_json() != data:
        return unusable(
            "exactly the fields of a commit, with the right types, as canonical JSON",
            f"{len(data)} bytes (canonical: {len(commit.to_json())}), or another order",
        )
    if (commit.shard, commit.generation) != (shard, generation):
        return unusable(
            f"shard {shard}, generation {generation}, as in its name",
            f"shard {commit.shard}, generation {commit.generation}",
        )
    wrong = _wrong_files(commit)
    if wrong:
        return unusable(*wrong)
    try:
        ordinals = manifest.ordinals(shard)
    except ValueError as error:
        finding = place.finding(Code.UNKNOWN_SHARD, f"one of {manifest.shards} shards", error)
        return AuditedCommit(shard, generation, None, (finding,))
    return AuditedCommit(shard, generation, commit, tuple(_commit_findings(commit, ordinals, manifest, place)))


def _wrong_files(commit: Commit) -> tuple[str, str] | None:
    """Find the first problem with the files that a commit names, as (expected, found). Return None if there is none."""
    kinds = sorted(entry.path.partition("/")[0] for entry in commit.files)
    if kinds != sorted(DATA_KINDS):
        return f"one file in each of {', '.join(sorted(DATA_KINDS))}", f"files in {', '.join(kinds) or 'no folder'}"
    for entry in commit.files:
        if not _SHA256.fullmatch(entry.sha256) or entry.size < 0:
            return f"size and SHA-256 of {entry.path}", f"{entry.size} and {entry.sha256!r}"
        named = parse_data_path(entry.path)
        right = data_path(entry.path.partition("/")[0], commit.shard, entry.sha256)
        if named is None or entry.path != right:
            return f"the path {right}", entry.path
    return None


def _commit_findings(
    commit: Commit, ordinals: tuple[int, int], manifest: DatasetManifest, place: FindingLocation
) -> Iterator[Finding]:
    if commit.ordinals != ordinals:
        yield place.finding(Code.WRONG_ORDINALS, f"ordinals {list(ordinals)}", list(commit.ordinals))
    if commit.numerics != manifest.numerics_fingerprint:
        yield place.finding(Code.OTHER_NUMERICS, f"numerics {manifest.numerics_fingerprint}", commit.numerics)
    own = manifest.model_copy(update={"config_sha256": config_sha256(manifest.config)})  # audited on its own
    if commit.build_sha256 not in (manifest.build_sha256, own.build_sha256):
        yield place.finding(Code.OTHER_BUILD, f"build_sha256 {manifest.build_sha256}", commit.build_sha256)
    counts = commit.counts
    reasons = {name: count for name, count in counts.items() if name.startswith(REJECTED)}
    totals = {name: count for name, count in counts.items() if name not in reasons}
    rows = ordinals[1] - ordinals[0]
    optional = set(PRIVACY_COUNTS) if manifest.schema_version == SCHEMA_VERSION else set()
    if totals.keys() - optional != {"rows", "images", "masks", "rejected"} or min(counts.values()) < 0:
        yield place.finding(Code.BAD_COUNTS, "rows, images, masks, and rejected, none below 0", dict(counts))
    elif counts["rows"] != rows or counts["images"] + counts["rejected"] != rows:
        found = f"{counts['rows']} rows, {counts['images']} images, {counts['rejected']} rejected"
        yield place.finding(Code.BAD_COUNTS, f"{rows} rows = images + rejected", found)
    elif sum(reasons.values()) != counts["rejected"]:
        yield place.finding(Code.BAD_COUNTS, f"{counts['rejected']} rejected rows, summed over all reasons", reasons)
