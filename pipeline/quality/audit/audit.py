"""Full audit of a dataset: integrity, licenses, privacy, duplicates, and statistics."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pydantic import ValidationError

from segmint.catalogs.dataset.manifest import DatasetManifest, is_dataset, load_latest_manifest, manifest_name
from segmint.catalogs.dataset.outputs import note_output, refuse_inside
from segmint.catalogs.dataset.regions import RedactionTotals, write_regions
from segmint.catalogs.dataset.tables import DatasetTables
from segmint.catalogs.dataset.tombstones import read_tombstones, removed_images
from segmint.catalogs.findings import Code, FindingCollector, FindingLocation
from segmint.catalogs.layout import DamagedDatasetError
from segmint.catalogs.licenses import check_ending, write_attributions
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.wording import some
from segmint.operators.audit.privacy import DetectorSpec
from segmint.operators.audit.submissions import audit_ratings
from segmint.pipeline.config.config import LOCAL, Config, LicenseConfig, ResourcesConfig
from segmint.pipeline.quality.audit.content import ContentAudit, ContentPlan, LicenseRules
from segmint.pipeline.quality.audit.foreign import ForeignSearch, audit_foreign
from segmint.pipeline.quality.audit.integrity import RAY_FROM_MASKS, audit_integrity, with_missing_commits
from segmint.pipeline.quality.audit.privacy import SearchPlan
from segmint.pipeline.quality.audit.result import AuditReport
from segmint.pipeline.quality.statistics.masks import open_tables
from segmint.pipeline.quality.statistics.statistics import compute_statistics, sum_redactions
from segmint.pipeline.quality.statistics.values import Statistics

_ROWS = 10_000
_CREDITS = """
SELECT id, image_id, attribution, provider, license, source_url FROM images ORDER BY id
"""


@dataclass(frozen=True)
class AuditOptions:
    """Options of a full audit."""

    sample: int = 100
    """Number of images that the audit decodes to pixels, with their masks. It also compares each image's masks with
    each other."""
    privacy_sample: int | None = 20
    """Number of images, spread evenly, that the detectors search. None searches all images."""
    attributions: Location | None = None
    """Output file for the attribution of each image."""
    regions: Location | None = None
    """Output file for the remaining detections, in the format that `segmint redact` reads."""
    pictures: Location | None = None
    """Output folder or prefix for crops of the detections."""
    detectors: tuple[DetectorSpec, ...] = ()
    """Detectors to run in addition to the build's."""
    strict: bool = False
    """If True, detections that the build recorded as residual are findings, too."""
    device: str = "cpu"
    """Torch device of the detectors."""
    build: Config | None = None
    """Configuration of the build, which contains the paths of detector files."""
    complete: bool = False
    """If True, shards without a commit are findings."""
    now: datetime | None = None
    """Time of the audit. None uses the local clock."""
    more: tuple[Location, ...] = ()
    """Further COCO files to audit together with the dataset, which then is one, too."""
    images: Location | None = None
    """Folder of the images that COCO files or a YOLO dataset list, if they are elsewhere."""
    ray_from: int = RAY_FROM_MASKS
    """Minimum number of masks for an audit with Ray. Ray runs as `build.resources` specifies, or locally without a
    build."""

    def targets(self) -> dict[str, Location]:
        """Return the locations of the requested output files, by the option that requests them."""
        wanted = {"--attributions": self.attributions, "--regions": self.regions, "--pictures": self.pictures}
        return {option: target for option, target in wanted.items() if target is not None}

    @property
    def resources(self) -> ResourcesConfig:
        """Ray settings of the audit: the build's, or else local ones."""
        return LOCAL if self.build is None else self.build.resources


def audit_dataset(dataset: Location, options: AuditOptions = AuditOptions()) -> AuditReport:
    """Audit a dataset. For data in another layout that segmint didn't write, audit as much as possible.

    Each tar is read once. Each table is read twice, because the statistics read it again. The audit changes nothing in
    the dataset, except that it adds a note for each output file outside the dataset. Raises `UsageError` if there is no
    data of any kind, or if an option is invalid; options are checked before anything is read. Storage errors
    propagate.
    """
    if options.attributions is not None:
        check_ending(str(options.attributions))
    for option, target in options.targets().items():
        refuse_inside(dataset, target, option)
    if options.more or options.images is not None or not is_dataset(dataset):
        with open_foreign_audit(dataset, options) as (report, _):
            return report
    now = options.now or datetime.now(UTC)
    pinned = load_latest_manifest(dataset)
    with_images = pinned.manifest.config.get("release", {}).get("format") != "annotations"
    _check_detectors(options, with_images=with_images)
    content, problems = _content(pinned.manifest, dataset, options, now, with_images=with_images)
    report = audit_integrity(dataset, options.sample, options.now, content, options.resources, options.ray_from)
    if options.complete:
        report = with_missing_commits(report)
    findings = FindingCollector()
    findings.extend(report.findings)
    if problems:
        place = FindingLocation(manifest_name(pinned.generation))
        findings.add(place.finding(Code.BAD_MANIFEST, "config.license and config.deidentify", "; ".join(problems)))
    findings.extend(content.finish())
    statistics, redactions, notes, unfinished = _statistics(dataset, options, report, findings)
    if options.attributions is not None:
        unfinished += _write_credits(dataset, options.attributions, report)
    if options.regions is not None:
        write_regions(options.regions, content.privacy.regions())
    for option, target in options.targets().items():
        if option != "--pictures":  # noted before the first one was written
            _note(dataset, option, target)
    return replace(
        report,
        scope="all",
        findings=findings.collected(),
        notes=(*report.notes, *notes),
        licenses=content.licenses(),
        privacy=content.privacy.answer(),
        duplicates=content.duplicates(),
        statistics=statistics,
        redactions=redactions,
        unsearched=content.unsearched(with_images=with_images),
        unfinished=(*report.unfinished, *unfinished),
    )


def _note(dataset: Location, option: str, target: Location) -> None:
    """Record an output file in the dataset, provided that the audit has written it."""
    if target.exists():
        note_output(dataset, f"audit {option}", target, {target.name: target.sha256()})


def _check_detectors(options: AuditOptions, *, with_images: bool) -> None:
    """Raise `UsageError` if the user gave detectors, but no image would be searched."""
    if not options.detectors:
        return
    if options.privacy_sample == 0:
        raise UsageError("--detector can't be used with --privacy-sample 0, which searches no images")
    if not with_images:
        raise UsageError("the dataset has only annotations, so there are no images to search. Remove --detector")


def _content(
    manifest: DatasetManifest, dataset: Location, options: AuditOptions, now: datetime, *, with_images: bool
) -> tuple[ContentAudit, list[str]]:
    """Set up the audit of licenses and privacy. Also returns the problems in the manifest that prevent parts of it."""
    problems = []
    rules, search = None, None
    try:
        policy = LicenseConfig.model_validate(manifest.config.get("license")).policy(manifest.policy_date)
        rules = LicenseRules(policy, now.date())
    except ValidationError as error:
        problems += [f"license: {problem['msg']}" for problem in error.errors()]
    if options.privacy_sample != 0 and with_images:
        search = _search_plan(manifest, dataset.storage, options)
        try:
            plan = ContentPlan(rules, search)
            return ContentAudit(plan, dataset, options.privacy_sample, options.pictures), problems
        except DamagedDatasetError as error:
            problems.append(str(error))
        search = replace(search, with_build=False) if search.given else None
    return ContentAudit(ContentPlan(rules, search), dataset, options.privacy_sample, options.pictures), problems


def _search_plan(manifest: DatasetManifest | None, storage: Storage, options: AuditOptions) -> SearchPlan:
    """Return the plan of the search for faces and plates. `manifest` is None for data that segmint didn't write."""
    with_pictures = options.pictures is not None
    plan = SearchPlan(manifest, options.build, storage, with_pictures, device=options.device, strict=options.strict)
    return replace(plan, given=tuple(each.pinned(plan.resolve) for each in options.detectors))


def _open(dataset: Location, report: AuditReport) -> DatasetTables:
    """Open the tables of the shards in which the integrity audit found no damage."""
    return open_tables(dataset, leave_out=frozenset(_skipped(report)))


def _skipped(report: AuditReport) -> list[int]:
    """Return the shards that the statistics and the attributions leave out."""
    return sorted({*report.not_compared, *report.unusable_commits})


def _statistics(
    dataset: Location, options: AuditOptions, report: AuditReport, findings: FindingCollector
) -> tuple[Statistics | None, RedactionTotals | None, list[str], list[str]]:
    """Compute the statistics, and add findings about ratings.

    Returns the statistics and the sums about redaction (None if a file is damaged), notes, and problems.
    """
    try:
        with _open(dataset, report) as tables:
            statistics, redactions = compute_statistics(tables, options.sample), sum_redactions(tables)
            if not _skipped(report):
                findings.extend(audit_ratings(tables, _taken(dataset)))
    except DamagedDatasetError as error:
        return None, None, [], [f"statistics and ratings: {error}"]
    if not _skipped(report):
        return statistics, redactions, [], []
    shards = some(_skipped(report))
    return (
        statistics,
        redactions,
        [f"shards left out of statistics and attributions because of their findings: {shards}"],
        [],
    )


def _taken(dataset: Location) -> Collection[int]:
    """Return the ordinals of removed images, or nothing if a tombstone is damaged, which is reported elsewhere."""
    try:
        return removed_images(read_tombstones(dataset)).keys()
    except DamagedDatasetError:
        return ()


def _write_credits(dataset: Location, file: Location, report: AuditReport) -> list[str]:
    """Write the attributions, and return the problems that occurred."""
    try:
        with _open(dataset, report) as tables:
            write_attributions(tables.rows(_CREDITS, _ROWS), file)
    except DamagedDatasetError as error:
        return [f"attributions not written: {error}"]
    return []


@contextmanager
def open_foreign_audit(dataset: Location, options: AuditOptions) -> Iterator[tuple[AuditReport, DatasetTables]]:
    """Audit data that segmint didn't write. Return the result, and the tables that the data was measured into.

    Raises `UsageError` for options that only apply to data from segmint, and if there is no data of any kind.
    """
    _check_detectors(options, with_images=True)
    needless = {
        "--attributions": options.attributions is not None,
        "--complete": options.complete,
        "--strict": options.strict,
    }
    if found := [name for name, value in needless.items() if value]:
        raise UsageError(f"{dataset.uri} is not a dataset from segmint. Remove {', '.join(found)}")
    search = ForeignSearch()
    if options.privacy_sample != 0:
        searcher = _search_plan(None, dataset.storage, options).searcher()
        search = ForeignSearch(searcher, options.privacy_sample, options.regions, options.pictures)
    with open_tables(dataset, more=options.more, images=options.images) as tables:
        report = audit_foreign(tables, options.sample, search)
        yield replace(report, dataset=", ".join(map(str, (dataset, *options.more)))), tables
