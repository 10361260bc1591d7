"""Audit of a dataset's integrity: every file is intact and consistent with the others.

Audit of a dataset's catalog parts and commits. `content.py` audits the contents of a shard's files.
"""

import re
from bisect import bisect_left
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any

from pydantic import ValidationError

from segmint.catalogs.dataset.commits import PRIVACY_COUNTS, REJECTED, Commit, CommitLog
from segmint.catalogs.dataset.inventory import Inventory, judge_unnamed, take_inventory
from segmint.catalogs.dataset.manifest import (
    GROWING_FIELDS,
    CatalogPart,
    DatasetManifest,
    LatestManifest,
    load_latest_manifest,
    manifest_name,
    read_generation,
)
from segmint.catalogs.dataset.outputs import damaged_notes
from segmint.catalogs.dataset.sweep import GRACE
from segmint.catalogs.dataset.tombstones import (
    NO_NAMES,
    Removals,
    by_shard,
    damaged_fingerprints,
    damaged_tombstones,
    read_removals,
)
from segmint.catalogs.findings import Code, Finding, FindingCollector, FindingLocation
from segmint.catalogs.layout import (
    DATA_KINDS,
    SCHEMA_VERSION,
    DamagedDatasetError,
    commit_path,
    data_path,
    json_sha256,
    parse_data_path,
    part_path,
)
from segmint.catalogs.source.files import NormalizedRows
from segmint.infra.errors import UnfinishedError, UsageError
from segmint.infra.log import get_logger
from segmint.infra.progress import track
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.wording import some
from segmint.operators.audit.masks import MaskLimits
from segmint.operators.audit.submissions import audit_submissions
from segmint.operators.custom.contract import adding_models
from segmint.operators.prepare.release import ReleaseConfig
from segmint.operators.segment.mask_config import MasksConfig
from segmint.operators.segmenter.found_masks import MaskFilters
from segmint.operators.shards.near_copies import near_copies, wanted_pictures
from segmint.pipeline.config.config import LOCAL, ResourcesConfig
from segmint.pipeline.quality.audit.content import ContentAudit, FileSettings, ShardAuditResult, ShardPlan
from segmint.pipeline.quality.audit.result import AuditReport, CheckedCounts
from segmint.pipeline.quality.audit.versions import (
    AuditedVersion,
    audit_index,
    audit_version,
    takedowns_without_version,
)
from segmint.pipeline.quality.audit.workers import AuditTask, ShardAuditor, audit_by_ray, audit_in_threads

_THREADS = 16
_READ_AHEAD = 512
_SHA256 = re.compile(r"[0-9a-f]{64}")

RAY_FROM_MASKS = 1_000_000
"""Minimum number of masks for an audit with Ray. Smaller datasets are audited in threads of this process.

Ray takes about ten seconds to start. In that time, one process audits half a million masks.
"""


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
    kinds = sorted(entry.kind for entry in commit.files)
    if kinds != sorted(DATA_KINDS):
        return f"one file in each of {', '.join(sorted(DATA_KINDS))}", f"files in {', '.join(kinds) or 'no folder'}"
    for entry in commit.files:
        if not _SHA256.fullmatch(entry.sha256) or entry.size < 0:
            return f"size and SHA-256 of {entry.path}", f"{entry.size} and {entry.sha256!r}"
        named = parse_data_path(entry.path)
        right = data_path(entry.kind, commit.shard, entry.sha256)
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
    own = manifest.model_copy(update={"config_sha256": json_sha256(manifest.config)})  # audited on its own
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


@dataclass
class CommittedState:
    """Latest commits of a dataset, and facts about their files that are known before the files are read."""

    findings: FindingCollector = field(default_factory=FindingCollector)
    commits: int = 0  # including replaced commits
    pairs: list[tuple[int, int]] = field(default_factory=list)  # shards and generations of usable commits
    doubtful: set[int] = field(default_factory=set)  # shards whose commit is unusable
    bad_kinds: dict[int, frozenset[str]] = field(default_factory=dict)  # folders of damaged files, by shard
    bad_counts: set[int] = field(default_factory=set)
    recent: list[str] = field(default_factory=list)  # replaced commits and files that a correction may delete soon
    images: int = 0  # number according to the commits, like `masks`
    masks: int = 0


def audit_committed_state(inventory: Inventory, manifest: DatasetManifest, limit: datetime) -> CommittedState:
    """Audit the latest and the replaced commits, and remove the files that they name from `inventory.unnamed`.

    A commit that was replaced after `limit` isn't a finding, because a correction may be about to delete it.
    """
    dataset, unnamed = inventory.dataset, inventory.unnamed
    state = CommittedState()
    latest = {commit.shard: commit.generation for commit in inventory.latest}
    for audited in _audit_latest(dataset, manifest, list(latest.items())):
        state.findings.extend(audited.findings)
        state.commits += 1
        if audited.commit is None:
            state.doubtful.add(audited.shard)
            continue
        state.pairs.append((audited.shard, audited.generation))
        state.images += audited.commit.counts.get("images", 0)
        state.masks += audited.commit.counts.get("masks", 0)
        if audited.has(Code.BAD_COUNTS):
            state.bad_counts.add(audited.shard)
        bad = _audit_named(inventory, audited.commit, state.findings)
        if bad:
            state.bad_kinds[audited.shard] = bad
    state.pairs.sort()
    replaced = [commit.key for commit in inventory.commits if commit.generation < latest[commit.shard]]
    for audited in audit_commits(dataset, manifest, replaced):
        entries = audited.commit.files if audited.commit is not None else ()
        left = [entry.path for entry in entries if unnamed.pop(entry.path, None) is not None]
        place = FindingLocation(commit_path(audited.shard, audited.generation), audited.shard)
        state.commits += 1
        old, new = unnamed.pop(place.file, None), unnamed.get(commit_path(audited.shard, latest[audited.shard]))
        if old is None or new is None or old.modified <= new.modified >= limit:
            state.recent += [place.file, *left]
            continue
        found = f"this one too, with {len(left)} files that only it names{': ' if left else ''}{', '.join(left)}"
        expected = f"only generation {latest[audited.shard]}"
        state.findings.add(place.finding(Code.REPLACED_GENERATION, expected, found))
    return state


def _audit_latest(dataset: Location, manifest: DatasetManifest, held: list[tuple[int, int]]) -> Iterator[AuditedCommit]:
    """Audit the latest commits. If a correction replaces a shard in the meantime, audit the shard's new commit."""
    while held:
        waiting = {shard for shard, _ in held}
        for audited in audit_commits(dataset, manifest, held):
            waiting.discard(audited.shard)
            yield audited
        held = [(shard, max(found)) for shard in sorted(waiting) if (found := CommitLog(dataset).generations_of(shard))]


def _audit_named(inventory: Inventory, commit: Commit, findings: FindingCollector) -> frozenset[str]:
    """Check the files that a commit names. Returns the folders in which a file is missing or has the wrong size."""
    bad = set()
    for file in inventory.find_files(commit):
        entry, found = file.entry, file.size
        place = FindingLocation(entry.path, commit.shard)
        if found is None:
            if CommitLog(inventory.dataset).is_replaced(commit.shard, commit.generation):
                continue
            findings.add(place.finding(Code.MISSING_FILE, f"{entry.size} bytes", "no such file"))
            bad.add(entry.kind)
        elif found != entry.size:
            findings.add(place.finding(Code.FILE_SIZE, f"{entry.size} bytes", found))
            bad.add(entry.kind)
    return frozenset(bad)


def audit_integrity(
    dataset: Location,
    sample: int = 100,
    now: datetime | None = None,
    content: ContentAudit | None = None,
    resources: ResourcesConfig = LOCAL,
    ray_from: int = RAY_FROM_MASKS,
) -> AuditReport:
    """Read every file of a dataset once and report problems. Changes nothing.

    For `sample` images, spread evenly, the JPEG and the masks are decoded to pixels. For all other images, they are
    measured without decoding. Files that no commit names are judged by their age at the time `now`, which defaults to
    the local clock. `content` runs further checks on the data while it is in memory.

    With at least `ray_from` masks, Ray audits the shards as `resources` specify. If Ray isn't installed, this process
    logs a warning and uses threads; the report is the same. Only a few shards and the names of all files are in memory.

    Raises `UsageError` if there is no dataset, and `UnfinishedError` if Ray fails or if a correction replaces the
    catalog in the meantime. Storage errors propagate.
    """
    inventory = take_inventory(dataset)  # before the manifest
    pinned = load_latest_manifest(dataset)
    manifest = pinned.manifest
    findings = FindingCollector()
    version, damaged_parts, removals = audit_records(dataset, pinned, findings)
    findings.extend(takedowns_without_version(dataset))  # a repair lists these takedowns as unfinished instead
    if damaged_parts and load_latest_manifest(dataset).generation > pinned.generation:
        raise UnfinishedError(f"{dataset}: a correction replaced the catalog while it was audited. Audit again")
    settings = _settings(pinned, findings)
    limit = (now or datetime.now(UTC)) - GRACE
    state = audit_committed_state(inventory, manifest, limit)
    findings.extend(state.findings)
    for part in manifest.catalog:
        inventory.unnamed.pop(part.path, None)
    unaccounted = judge_unnamed(inventory, limit, state.doubtful)
    findings.extend(unaccounted.findings)
    if not state.doubtful and not version.changing:
        findings.extend(audit_index(dataset, manifest, state.pairs, version.name))
    plan = None if content is None else content.plan
    task = AuditTask(dataset, manifest, frozenset(damaged_parts), settings, plan, removals.names)
    removed_by_shard = by_shard(removals.images, manifest.images_per_shard)
    checked = CheckedCounts(commits=state.commits, catalog_parts=len(manifest.catalog))
    not_compared = []
    plans = _plans(task, state, removed_by_shard, sample, 0 if content is None else content.wanted(state.images))
    audited, before, log = set(state.doubtful), dict(state.pairs), CommitLog(dataset)
    with closing(_results(task, plans, content, resources, by_ray=state.masks >= ray_from)) as results:
        for result in track(results, "shards", len(state.pairs)):
            if result.findings.total and log.is_replaced(result.shard, before[result.shard]):
                continue
            audited.add(result.shard)
            findings.extend(result.findings)
            checked += result.checked
            if not result.compared:
                not_compared.append(result.shard)
            if content is not None and result.content is not None:
                content.add(result.shard, manifest.ordinals(result.shard)[0] + 1, result.places, result.content)
    committed = {commit.shard for commit in inventory.commits}
    return AuditReport(
        dataset=dataset.uri,
        scope="integrity",
        kind="segmint",
        shards=manifest.shards,
        sample=sample,
        findings=findings.collected(),
        checked=checked,
        not_built=_gaps(committed, manifest.shards),
        recent_unnamed=tuple(sorted([*state.recent, *unaccounted.recent])),
        other_files=unaccounted.others,
        not_compared=tuple(not_compared),
        unusable_commits=tuple(sorted(state.doubtful)),
        replaced=tuple(sorted(committed - audited)),
        unfinished=tuple(
            f"rows and license terms against {part}, which is missing or damaged" for part in sorted(damaged_parts)
        ),
        notes=(*version.notes, *_near_removed(dataset, dict(state.pairs).keys() - set(not_compared))),
        version=version.name,
    )


def audit_records(
    dataset: Location, pinned: LatestManifest, findings: FindingCollector
) -> tuple[AuditedVersion, set[str], Removals]:
    """Audit manifests, catalog parts, versions, tombstones, and submissions.

    Returns the version, the paths of damaged parts, and the takedowns.
    """
    manifest, per_shard = pinned.manifest, pinned.manifest.images_per_shard
    findings.extend(audit_manifest(dataset, pinned))
    damaged_parts = set()
    for part in manifest.catalog:
        found = list(audit_catalog_part(dataset, part, per_shard))
        if found:
            damaged_parts.add(part.path)
        findings.extend(found)
    version = audit_version(dataset)
    findings.extend(version.findings)
    damaged = {**damaged_tombstones(dataset), **damaged_fingerprints(dataset)}
    for path, problem in damaged.items():
        findings.add(FindingLocation(path).finding(Code.BAD_TOMBSTONE, "what a takedown writes", problem))
    for path, problem in damaged_notes(dataset).items():
        findings.add(FindingLocation(path).finding(Code.STRAY_FILE, "the note of an output", problem))
    removals = None if damaged else read_removals(dataset)
    spans = [range(first := part.first_shard * per_shard, first + part.rows) for part in manifest.catalog]
    removals = removals or Removals({}, NO_NAMES)
    findings.extend(audit_submissions(dataset, spans, removals.images.keys()))
    return version, damaged_parts, removals


def _near_removed(dataset: Location, shards: Collection[int]) -> list[str]:
    """Return a note on committed images that look like images that were taken down. Empty if there are none."""
    try:
        pictures = wanted_pictures(dataset)
        commits = CommitLog(dataset).read_all(only=shards) if pictures.ids else ()
        similar = [each.line() for each in near_copies(dataset, commits, pictures)]
    except DamagedDatasetError as error:
        return [f"images that look like pictures that were taken down aren't listed: {error}"]
    return [f"like pictures that were taken down: {some(similar)}"] if similar else []


def with_missing_commits(report: AuditReport) -> AuditReport:
    """Add a finding for each range of shards without a commit to a report.

    The audit can't distinguish a shard that was never built from a shard whose commit was deleted.
    """
    findings = FindingCollector()
    findings.extend(report.findings)
    for first, last in report.not_built:
        place = FindingLocation(commit_path(first, 1), first)
        expected = f"a commit of each of {report.shards} shards"
        findings.add(place.finding(Code.NOT_COMMITTED, expected, f"none of {last - first + 1}, {first} to {last}"))
    return replace(report, findings=findings.collected())


def _settings(pinned: LatestManifest, findings: FindingCollector) -> FileSettings:
    """Return the manifest's settings for files. If the configuration is invalid, add a finding."""
    config, stages, version = pinned.manifest.config, pinned.manifest.stages, pinned.manifest.schema_version
    try:
        limits = _limits_of(config, frozenset(pinned.manifest.applied))
        release = ReleaseConfig.model_validate(config.get("release"))
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        place = FindingLocation(manifest_name(pinned.generation))
        expected = "config.masks or config.segmenter, and config.release"
        findings.add(place.finding(Code.BAD_MANIFEST, expected, found))
        return FileSettings(None, with_images=True, stages=stages, schema_version=version)
    return FileSettings(limits, release.format == "images", release.jpeg_quality, stages, version)


def _limits_of(config: Mapping[str, Any], applied: frozenset[str]) -> MaskLimits:
    """Return the limits of a build's masks. `applied` contains the segmenters that `segmint apply` ran later.

    Raises `ValidationError` if the configuration is invalid.
    """
    if "segmenter" in config:
        filters = MaskFilters.model_validate(config["segmenter"].get("filters"))
        artifact_iou = filters.drop_redaction_artifacts
        return MaskLimits(0.0, 0.0, by_segmenter=True, applied=applied, artifact_iou=artifact_iou)
    masks = MasksConfig.model_validate(config.get("masks"))
    adding = adding_models(config) | applied
    return MaskLimits(
        masks.pred_iou_thresh,
        masks.stability_score_thresh,
        adding=adding,
        applied=applied,
        artifact_iou=masks.artifact_iou,
    )


def _results(
    task: AuditTask,
    plans: Iterator[ShardPlan],
    content: ContentAudit | None,
    resources: ResourcesConfig,
    *,
    by_ray: bool,
) -> Generator[ShardAuditResult, None, None]:
    """Audit all shards with Ray or in threads of this process, and yield the results in the order of the plans."""
    if by_ray and find_spec("ray") is None:  # the extra `audit` doesn't include Ray
        get_logger("audit").warning(
            "Ray isn't installed, so this large dataset is audited in threads", install="pip install 'segmint[build]'"
        )
    elif by_ray:
        return audit_by_ray(task, plans, resources)
    return audit_in_threads(ShardAuditor(task, None if content is None else content.looks), plans)


def _plans(
    task: AuditTask, state: CommittedState, taken: dict[int, frozenset[int]], sample: int, searched: int
) -> Iterator[ShardPlan]:
    seen = 0
    for commit in CommitLog(task.dataset).read_latest_of(state.pairs):
        end = seen + commit.counts.get("images", 0)
        yield ShardPlan(
            commit,
            ordinals=task.manifest.ordinals(commit.shard),
            bad_kinds=state.bad_kinds.get(commit.shard, frozenset()),
            counts_hold=commit.shard not in state.bad_counts,
            decoded=sampled(sample, state.images, seen, end),
            searched=sampled(searched, state.images, seen, end),
            taken=taken.get(commit.shard, frozenset()),
        )
        seen = end


def sampled(wanted: int, total: int, start: int, stop: int) -> frozenset[int]:
    """Spread `wanted` images evenly over `total`, and return the ones in [start, stop) as offsets from `start`."""
    number = min(wanted, total)

    def position(index: int) -> int:
        return (2 * index + 1) * total // (2 * number)

    first, last = (bisect_left(range(number), bound, key=position) for bound in (start, stop))
    return frozenset(position(index) - start for index in range(first, last))


def _gaps(committed: Iterable[int], shards: int) -> tuple[tuple[int, int], ...]:
    """Return the ranges [first, last] of shards without a commit."""
    gaps = []
    after = 0
    for shard in [*sorted(s for s in committed if s < shards), shards]:
        if shard > after:
            gaps.append((after, shard - 1))
        after = shard + 1
    return tuple(gaps)


def audit_manifest(dataset: Location, standing: LatestManifest) -> Iterator[Finding]:
    """Check that the latest manifest is consistent in itself and with all earlier generations."""
    manifest, generation = standing
    place = FindingLocation(manifest_name(generation))
    digest = json_sha256(manifest.config)
    if digest != manifest.config_sha256:
        yield place.finding(Code.BAD_MANIFEST, f"config_sha256 {digest}", manifest.config_sha256)
    if manifest.config.get("images_per_shard") != manifest.images_per_shard:
        expected = f"images_per_shard {manifest.config.get('images_per_shard')}, as in config"
        yield place.finding(Code.BAD_MANIFEST, expected, manifest.images_per_shard)
    first_shard = 0
    for number, part in enumerate(manifest.catalog):
        path = part_path(number, part.sha256)
        if (part.path, part.first_shard) != (path, first_shard):
            expected = f"part {number} at {path} from shard {first_shard}"
            yield place.finding(Code.BAD_MANIFEST, expected, f"{part.path} from shard {part.first_shard}")
        first_shard = part.first_shard + -(-part.rows // manifest.images_per_shard)
    yield from _audit_generations(dataset, standing)


def _audit_generations(dataset: Location, standing: LatestManifest) -> Iterator[Finding]:
    """Check that each earlier generation exists and that only the fields that can grow have changed."""
    later, number = standing
    while number > 1:
        number -= 1
        place = FindingLocation(manifest_name(number))
        try:
            earlier = read_generation(dataset, number)
        except UsageError as error:
            yield place.finding(Code.BAD_MANIFEST, "a dataset's manifest", error)
            return
        if earlier is None:
            yield place.finding(Code.BAD_MANIFEST, f"the generation before {manifest_name(number + 1)}", "no such file")
            return
        yield from _compare(earlier, later, FindingLocation(manifest_name(number + 1)), place.file)
        later = earlier


def _compare(
    earlier: DatasetManifest, later: DatasetManifest, place: FindingLocation, before: str
) -> Iterator[Finding]:
    one, other = (manifest.model_dump(exclude=set(GROWING_FIELDS)) for manifest in (earlier, later))
    for key in sorted(one):
        if one[key] != other[key]:
            yield place.finding(Code.BAD_MANIFEST, f"{key} {one[key]!r}, as in {before}", repr(other[key]))
    for number, column in enumerate(earlier.applied_columns):
        now = later.applied_columns[number : number + 1]
        if now not in ((column,), (column.model_copy(update={"removed": True}),)):
            yield place.finding(Code.BAD_MANIFEST, f"the applied column {column.name}, as in {before}", now)
    spans = [[(part.first_shard, part.rows) for part in manifest.catalog] for manifest in (earlier, later)]
    if spans[1][: len(spans[0])] != spans[0]:
        expected = f"parts that continue the (first shard, rows) of {before}: {spans[0]}"
        yield place.finding(Code.BAD_MANIFEST, expected, spans[1])
