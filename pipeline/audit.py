"""The audit of a dataset's integrity: whether its files are whole, and say the same as one another."""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from pydantic import ValidationError

from catalogs.audit_log import audit_catalog_part, audit_unnamed, list_files
from catalogs.audit_manifest import audit_manifest
from catalogs.commits import Commit, CommitLog
from catalogs.findings import Code, Findings, Place
from catalogs.layout import DamagedDatasetError
from catalogs.manifest import DatasetManifest, StandingManifest, load_standing, manifest_name
from catalogs.sweep import GRACE
from catalogs.tombstones import TOMBSTONES, by_shard, read_tombstones, taken_images
from infra.storage import Storage
from operators.audit_masks import MaskLimits
from operators.mask_config import MasksConfig
from operators.release import ReleaseConfig
from pipeline.audit_catalog import CatalogRows
from pipeline.audit_content import ContentAudit, ShardContent
from pipeline.audit_report import AuditReport
from pipeline.audit_shard import ShardAudit, ShardPlan, audit_shard
from pipeline.audit_standing import Standing, audit_standing

_SHARDS_AT_ONCE = 4

T = TypeVar("T")
U = TypeVar("U")


def audit_integrity(
    dataset_uri: str,
    storage: Storage,
    sample: int = 100,
    now: datetime | None = None,
    content: ContentAudit | None = None,
) -> AuditReport:
    """Reads every file of the dataset at `dataset_uri` once, and says what is wrong with it; changes nothing.

    `sample` images, spread evenly, have their JPEG and masks decoded to pixels; all others are measured without.
    `now` is the time by which unnamed files are old (default: this machine's clock). `content` looks at more of
    what is read. Memory holds a few shards and the names of all files. Raises `UsageError` when no dataset stands
    there, and storage faults as they come.
    """
    # Files are listed before commits, and commits before the manifest: what is named in between is then seen to be.
    listed = list_files(storage, dataset_uri)
    generations = CommitLog(storage, dataset_uri).generations()
    pinned = load_standing(storage, dataset_uri)
    manifest = pinned.manifest
    report = AuditReport(dataset_uri, sample, manifest.shards)
    report.findings.extend(audit_manifest(storage, dataset_uri, pinned))
    settings = _settings(pinned, report.findings)
    standing = audit_standing(storage, dataset_uri, manifest, listed, generations, report)
    limit = (now or datetime.now(UTC)) - GRACE
    unnamed = audit_unnamed(listed, manifest, limit, generations, standing.doubtful)
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
    report.doubtful = sorted(standing.doubtful)
    _audit_shards(storage, dataset_uri, manifest, settings, standing, catalog, report, content)
    return report


@dataclass(frozen=True)
class _Settings:
    """What the manifest's configuration says of files."""

    limits: MaskLimits | None
    with_images: bool


def _settings(pinned: StandingManifest, findings: Findings) -> _Settings:
    config = pinned.manifest.config
    try:
        masks = MasksConfig.model_validate(config.get("masks"))
        release = ReleaseConfig.model_validate(config.get("release"))
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        place = Place(manifest_name(pinned.generation))
        findings.add(place.finding(Code.BAD_MANIFEST, "config.masks and config.release", found))
        return _Settings(None, with_images=True)
    return _Settings(MaskLimits(masks.pred_iou_thresh, masks.stability_score_thresh), release.format == "images")


def _audit_shards(
    storage: Storage,
    dataset_uri: str,
    manifest: DatasetManifest,
    settings: _Settings,
    standing: Standing,
    catalog: CatalogRows,
    report: AuditReport,
    content: ContentAudit | None,
) -> None:
    taken = _taken_down(storage, dataset_uri, manifest, report.findings)

    def audit(work: tuple[Commit, ShardPlan]) -> ShardAudit:
        commit, plan = work
        return audit_shard(storage, dataset_uri, commit, plan, catalog.read(*plan.ordinals))

    def begin(start: int, stop: int) -> ShardContent | None:
        if content is None:
            return None
        wanted = standing.images if content.privacy_sample is None else content.privacy_sample
        return content.begin(sampled(wanted, standing.images, start, stop))

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
                    taken=taken.get(commit.shard, frozenset()),
                    content=begin(seen, seen + images),
                ),
            )
            seen += images

    for result in _map_in_order(audit, planned()):
        report.findings.extend(result.findings)
        report.checked.add(result.checked)
        if not result.compared:
            report.not_compared.append(result.shard)
        if content is not None and result.content is not None:
            first_id = manifest.ordinals(result.shard)[0] + 1
            content.add(result.shard, first_id, result.places, result.content)


def _taken_down(
    storage: Storage, dataset_uri: str, manifest: DatasetManifest, findings: Findings
) -> dict[int, frozenset[int]]:
    """Ordinals that tombstones name, by shard."""
    try:
        tombstones = read_tombstones(storage, dataset_uri)
    except DamagedDatasetError as error:
        findings.add(Place(TOMBSTONES).finding(Code.BAD_TOMBSTONE, "tombstones", error))
        return {}
    return by_shard(taken_images(tombstones), manifest.images_per_shard)


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
