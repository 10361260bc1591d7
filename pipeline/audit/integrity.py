"""The audit of a dataset's integrity: whether its files are whole, and say the same as one another."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime

from pydantic import ValidationError

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.manifest import DatasetManifest, StandingManifest, load_standing, manifest_name
from segmint.catalogs.dataset.sweep import GRACE
from segmint.catalogs.dataset.tombstones import TOMBSTONES, by_shard, read_tombstones, taken_images
from segmint.catalogs.findings import Code, Findings, Place
from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.operators.audit.masks import MaskLimits
from segmint.operators.prepare.release import ReleaseConfig
from segmint.operators.segment.mask_config import MasksConfig
from segmint.pipeline.audit.answer import AuditReport
from segmint.pipeline.audit.commits import audit_catalog_part, audit_unnamed, list_files
from segmint.pipeline.audit.committed_state import Standing, audit_standing
from segmint.pipeline.audit.content import ContentAudit
from segmint.pipeline.audit.manifest import audit_manifest
from segmint.pipeline.audit.shard import FileSettings, ShardPlan
from segmint.pipeline.audit.workers import AuditTask, ShardAuditor, audit_in_threads
from segmint.pipeline.config.config import ResourcesConfig

RAY_FROM_MASKS = 1_000_000
"""Datasets with so many masks are audited by Ray, those with fewer in threads of this process.

Ray takes some ten seconds to start; in that time one process looks through half a million masks.
"""

LOCAL = ResourcesConfig(address="local")
"""A Ray on this machine alone."""


def audit_integrity(
    dataset_uri: str,
    storage: Storage,
    sample: int = 100,
    now: datetime | None = None,
    content: ContentAudit | None = None,
    resources: ResourcesConfig = LOCAL,
    ray_from: int = RAY_FROM_MASKS,
) -> AuditReport:
    """Reads every file of the dataset at `dataset_uri` once, and says what is wrong with it; changes nothing.

    `sample` images, spread evenly, have their JPEG and masks decoded to pixels; all others are measured without.
    `now` is the time by which unnamed files are old (default: this machine's clock). `content` looks at more of
    what is read. With `ray_from` masks or more, shards are audited by Ray, where `resources` say; the report is the
    same. Memory holds a few shards and the names of all files. Raises `UsageError` when no dataset stands there,
    storage faults as they come, and `UnfinishedError` where Ray fails.
    """
    # Files are listed before commits, and commits before the manifest: what is named in between is then seen to be.
    listed = list_files(storage, dataset_uri)
    generations = CommitLog(Location(storage, dataset_uri)).generations()
    pinned = load_standing(Location(storage, dataset_uri))
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
    damaged_parts = set()
    for part in manifest.catalog:
        findings = list(audit_catalog_part(storage, dataset_uri, part, manifest.images_per_shard))
        report.findings.extend(findings)
        report.checked.catalog_parts += 1
        if findings:
            damaged_parts.add(part.path)
    report.doubtful = sorted(standing.doubtful)
    plan = None if content is None else content.plan
    task = AuditTask(storage, dataset_uri, manifest, frozenset(damaged_parts), settings, plan)
    _audit_shards(task, standing, report, content, resources, by_ray=standing.masks >= ray_from)
    return report


def _settings(pinned: StandingManifest, findings: Findings) -> FileSettings:
    """What the manifest's configuration says of files."""
    config = pinned.manifest.config
    try:
        masks = MasksConfig.model_validate(config.get("masks"))
        release = ReleaseConfig.model_validate(config.get("release"))
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        place = Place(manifest_name(pinned.generation))
        findings.add(place.finding(Code.BAD_MANIFEST, "config.masks and config.release", found))
        return FileSettings(None, with_images=True)
    return FileSettings(MaskLimits(masks.pred_iou_thresh, masks.stability_score_thresh), release.format == "images")


def _audit_shards(
    task: AuditTask,
    standing: Standing,
    report: AuditReport,
    content: ContentAudit | None,
    resources: ResourcesConfig,
    *,
    by_ray: bool,
) -> None:
    taken = _taken_down(task.storage, task.dataset_uri, task.manifest, report.findings)
    searched = 0
    if content is not None:
        searched = standing.images if content.privacy_sample is None else content.privacy_sample
    plans = _plans(task, standing, taken, report.sample, searched)
    if by_ray:
        from segmint.pipeline.audit.by_ray import audit_by_ray  # Ray takes a second to import

        results = audit_by_ray(task, plans, resources)
    else:
        results = audit_in_threads(ShardAuditor(task, None if content is None else content.looks), plans)
    with closing(results):
        for result in results:
            report.findings.extend(result.findings)
            report.checked.add(result.checked)
            if not result.compared:
                report.not_compared.append(result.shard)
            if content is not None and result.content is not None:
                first_id = task.manifest.ordinals(result.shard)[0] + 1
                content.add(result.shard, first_id, result.places, result.content)


def _plans(
    task: AuditTask, standing: Standing, taken: dict[int, frozenset[int]], sample: int, searched: int
) -> Iterator[ShardPlan]:
    seen = 0
    for commit in CommitLog(Location(task.storage, task.dataset_uri)).read_many(standing.pairs):
        end = seen + commit.counts.get("images", 0)
        yield ShardPlan(
            commit,
            ordinals=task.manifest.ordinals(commit.shard),
            bad_kinds=standing.bad_kinds.get(commit.shard, frozenset()),
            counts_hold=commit.shard not in standing.bad_counts,
            decoded=sampled(sample, standing.images, seen, end),
            searched=sampled(searched, standing.images, seen, end),
            taken=taken.get(commit.shard, frozenset()),
        )
        seen = end


def _taken_down(
    storage: Storage, dataset_uri: str, manifest: DatasetManifest, findings: Findings
) -> dict[int, frozenset[int]]:
    """Ordinals that tombstones name, by shard."""
    try:
        tombstones = read_tombstones(Location(storage, dataset_uri))
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
