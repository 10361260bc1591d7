"""The audit of a dataset's integrity: whether its files are whole, and say the same as one another."""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from pydantic import ValidationError

from catalogs.audit_log import (
    Listed,
    audit_catalog_part,
    audit_commits,
    audit_manifest,
    audit_unnamed,
    list_files,
)
from catalogs.commits import Commit, CommitLog
from catalogs.findings import Code, Findings, Place
from catalogs.layout import COMMITS, MANIFEST, DatasetManifest, commit_name, load_manifest
from catalogs.sweep import GRACE
from infra.storage import NotFoundError, Storage, join
from operators.audit_masks import MaskLimits
from operators.mask_config import MasksConfig
from operators.release import ReleaseConfig
from pipeline.audit_catalog import CatalogRows
from pipeline.audit_report import AuditReport
from pipeline.audit_shard import ShardAudit, ShardPlan, audit_shard

_SHARDS_AT_ONCE = 4

T = TypeVar("T")
U = TypeVar("U")


def audit_integrity(dataset_uri: str, storage: Storage, sample: int = 100, now: datetime | None = None) -> AuditReport:
    """Reads every file of the dataset at `dataset_uri` once, and says what is wrong with it; changes nothing.

    `sample` images, spread evenly, have their JPEG and masks decoded to pixels; all others are measured without.
    `now` is the time by which unnamed files are old (default: this machine's clock). Memory holds a few shards and
    the names of all files. Raises `UsageError` when no dataset stands there, and storage faults as they come.
    """
    manifest = load_manifest(storage, dataset_uri)
    report = AuditReport(dataset_uri, sample, manifest.shards)
    report.findings.extend(audit_manifest(manifest))
    settings = _settings(manifest, report.findings)
    # Files are listed before commits: one whose commit is put in between is then seen to be named.
    listed = list_files(storage, dataset_uri)
    generations = CommitLog(storage, dataset_uri).generations()
    standing = _audit_log(storage, dataset_uri, manifest, listed, generations, report)
    limit = (now or datetime.now(UTC)) - GRACE
    unnamed = audit_unnamed(listed, manifest, limit, standing.doubtful)
    report.findings.extend(unnamed.findings)
    report.young = unnamed.young
    report.not_built = _gaps(generations, manifest.shards)
    catalog = CatalogRows(storage, dataset_uri, manifest)
    for part in manifest.catalog:
        findings = list(audit_catalog_part(storage, dataset_uri, part, manifest.images_per_shard))
        report.findings.extend(findings)
        report.checked.catalog_parts += 1
        if findings:
            catalog.leave_out(part)
    _audit_shards(storage, dataset_uri, manifest, settings, standing, catalog, report)
    return report


@dataclass(frozen=True)
class _Settings:
    """What the manifest's configuration says of files."""

    limits: MaskLimits | None
    with_images: bool


@dataclass
class _Standing:
    """The commits that hold, and what is known of them before their files are read."""

    pairs: list[tuple[int, int]] = field(default_factory=list)  # shards and generations whose commits can be used
    doubtful: set[int] = field(default_factory=set)  # shards whose commits cannot
    bad_kinds: dict[int, frozenset[str]] = field(default_factory=dict)
    bad_counts: set[int] = field(default_factory=set)
    images: int = 0


def _settings(manifest: DatasetManifest, findings: Findings) -> _Settings:
    try:
        masks = MasksConfig.model_validate(manifest.config.get("masks"))
        release = ReleaseConfig.model_validate(manifest.config.get("release"))
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        findings.add(Place(MANIFEST).finding(Code.BAD_MANIFEST, "config.masks and config.release", found))
        return _Settings(None, with_images=True)
    return _Settings(MaskLimits(masks.pred_iou_thresh, masks.stability_score_thresh), release.format == "images")


def _audit_log(
    storage: Storage,
    dataset_uri: str,
    manifest: DatasetManifest,
    listed: dict[str, Listed],
    generations: dict[int, list[int]],
    report: AuditReport,
) -> _Standing:
    """Audits the commits that hold, and takes the files that they name from `listed`."""
    standing = _Standing()
    held = sorted((shard, numbers[-1]) for shard, numbers in generations.items())
    for audited in audit_commits(storage, dataset_uri, manifest, held):
        report.findings.extend(audited.findings)
        report.checked.commits += 1
        if audited.commit is None:
            standing.doubtful.add(audited.shard)
            continue
        standing.pairs.append((audited.shard, audited.generation))
        standing.images += audited.commit.counts.get("images", 0)
        if audited.has(Code.BAD_COUNTS):
            standing.bad_counts.add(audited.shard)
        bad = _audit_named(storage, dataset_uri, audited.commit, listed, report.findings)
        if bad:
            standing.bad_kinds[audited.shard] = bad
    replaced = [(shard, number) for shard, numbers in sorted(generations.items()) for number in numbers[:-1]]
    for audited in audit_commits(storage, dataset_uri, manifest, replaced):
        entries = audited.commit.files if audited.commit is not None else ()
        left = [entry.path for entry in entries if listed.pop(entry.path, None) is not None]
        place = Place(f"{COMMITS}/{commit_name(audited.shard, audited.generation)}", audited.shard)
        found = f"this one too, with {len(left)} files that it alone names{': ' if left else ''}{', '.join(left)}"
        expected = f"generation {generations[audited.shard][-1]} alone"
        report.findings.add(place.finding(Code.REPLACED_GENERATION, expected, found))
        report.checked.commits += 1
    return standing


def _audit_named(
    storage: Storage, dataset_uri: str, commit: Commit, listed: dict[str, Listed], findings: Findings
) -> frozenset[str]:
    """The folders in which a commit's file is missing or of a wrong size."""
    bad = set()
    for entry in commit.files:
        place = Place(entry.path, commit.shard)
        known = listed.pop(entry.path, None)
        try:
            # A file that was put after the listing is not in it.
            size = storage.size(join(dataset_uri, entry.path)) if known is None else known.size
        except NotFoundError:
            findings.add(place.finding(Code.MISSING_FILE, f"{entry.size} bytes", "no such file"))
            bad.add(entry.path.partition("/")[0])
            continue
        if size != entry.size:
            findings.add(place.finding(Code.FILE_SIZE, f"{entry.size} bytes", size))
            bad.add(entry.path.partition("/")[0])
    return frozenset(bad)


def _audit_shards(
    storage: Storage,
    dataset_uri: str,
    manifest: DatasetManifest,
    settings: _Settings,
    standing: _Standing,
    catalog: CatalogRows,
    report: AuditReport,
) -> None:
    def audit(work: tuple[Commit, ShardPlan]) -> ShardAudit:
        commit, plan = work
        return audit_shard(storage, dataset_uri, commit, plan, catalog.read(*plan.ordinals))

    def planned() -> Iterator[tuple[Commit, ShardPlan]]:
        seen = 0
        for commit in CommitLog(storage, dataset_uri).read_many(standing.pairs):
            images = commit.counts.get("images", 0)
            yield (
                commit,
                ShardPlan(
                    ordinals=manifest.ordinals(commit.shard),
                    limits=settings.limits,
                    with_images=settings.with_images,
                    bad_kinds=standing.bad_kinds.get(commit.shard, frozenset()),
                    counts_hold=commit.shard not in standing.bad_counts,
                    decoded=sampled(report.sample, standing.images, seen, seen + images),
                ),
            )
            seen += images

    for result in _map_in_order(audit, planned()):
        report.findings.extend(result.findings)
        report.checked.add(result.checked)
        if not result.compared:
            report.not_compared.append(result.shard)


def sampled(wanted: int, total: int, start: int, stop: int) -> frozenset[int]:
    """Which of the images [start, stop) of `total` are among the `wanted` spread evenly; counted from `start`."""
    number = min(wanted, total)

    def position(index: int) -> int:
        return (2 * index + 1) * total // (2 * number)

    first, last = (bisect_left(range(number), bound, key=position) for bound in (start, stop))
    return frozenset(position(index) - start for index in range(first, last))


def _gaps(committed: Iterable[int], shards: int) -> list[tuple[int, int]]:
    """Ranges [first, last] of shards that are not committed."""
    gaps = []
    after = 0
    for shard in [*sorted(s for s in committed if s < shards), shards]:
        if shard > after:
            gaps.append((after, shard - 1))
        after = shard + 1
    return gaps


def _map_in_order(function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """`function` of each item in threads, a few at once, in the order of the items, however many there are."""
    waiting: deque[Future[U]] = deque()
    with ThreadPoolExecutor(_SHARDS_AT_ONCE, thread_name_prefix="audit") as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > _SHARDS_AT_ONCE:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
