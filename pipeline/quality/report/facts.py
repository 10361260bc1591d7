"""Facts about a dataset for report and card, from its manifest, commits, and tables."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.dataset.manifest import DatasetManifest, ModelTerms, load_manifest, name_of
from segmint.catalogs.dataset.mask_labels import MODEL
from segmint.catalogs.dataset.regions import RedactionTotals
from segmint.catalogs.dataset.tables import DatasetTables, Kind
from segmint.catalogs.dataset.tombstones import read_tombstones, removed_images
from segmint.catalogs.dataset.versions import Version, VersionName, latest_version, name_now
from segmint.infra.assets import known_license
from segmint.operators.prepare.deidentify import BUNDLED_DETECTORS, NO_DETECTOR
from segmint.operators.rows import AUTOMATIC
from segmint.pipeline.quality.statistics.ratings import (
    AnnotatorAgreement,
    PrivacyScore,
    Ratings,
    measure_agreement,
    measure_ratings,
)
from segmint.pipeline.quality.statistics.statistics import sum_redactions

_CREDITS_SHOWN = 200
_CREDITED = "(attribution <> '' OR provider <> '')"
_LABELS = f"""
SELECT if(starts_with(label_source, '{MODEL}'), 'model', label_source) AS name, count(*) AS masks FROM masks
WHERE label IS NOT NULL GROUP BY name ORDER BY name"""
_PROMPTS = """
SELECT prompt.kind AS name, count(DISTINCT annotation_id) AS masks
FROM (SELECT annotation_id, unnest(prompts) AS prompt FROM masks) GROUP BY name ORDER BY name"""
_MADE_BY_BUILD = "SELECT count(*) FROM masks WHERE model IS NULL AND origin IS NULL AND source <> 'manual'"
_FILLED = """
SELECT count(attribution) AS attributions, count(source_url) AS pages, count(annotator) AS annotators FROM images"""
DOMAINS = rf"""
SELECT lower(regexp_extract(source_url, '(?i)^https?://(?:[^/?#@]*@)?([^/?#:]+)', 1)) AS domain, count(*) AS images,
  count(*) OVER () AS total
FROM images GROUP BY domain HAVING domain <> '' ORDER BY images DESC, domain LIMIT {_CREDITS_SHOWN}"""
_ANNOTATED = "SELECT count(*) FROM images WHERE submission IS NOT NULL OR annotator IS NOT NULL"


@dataclass(frozen=True)
class CreditFact:
    """License, provider, and attribution, with the number of images that share them. Each is None if it is missing."""

    license: str | None
    provider: str | None
    attribution: str | None
    images: int


@dataclass(frozen=True)
class AnnotatedMaskCounts:
    """Counts of annotated masks from one source. `license` is the license of the imported file."""

    source: str
    license: str | None
    masks: int
    images: int


@dataclass(frozen=True)
class RedactedRegions:
    """Counts of redacted regions of one kind from one detector or from `segmint redact` (`manual`)."""

    kind: str
    source: str
    regions: int
    images: int

    @property
    def found_by(self) -> str:
        """Detector or command that the regions come from."""
        if self.source == "manual":
            return "segmint redact"
        return self.source


@dataclass(frozen=True)
class DetectorFact:
    """Detector that a build used for one kind of region. `name` is None if the build used none."""

    kind: str  # faces or plates
    name: str | None  # for a detector file, the start of its SHA-256

    @property
    def bundled(self) -> bool:
        """True if the detector ships with segmint. Bundled detectors are only meant for trials."""
        return self.name in BUNDLED_DETECTORS


SAM = "Segment Anything"
"""Name of the masks' maker if the build had no segmenter."""


@dataclass(frozen=True)
class BuildFacts:
    """Settings of a dataset's build. A setting is None if the manifest doesn't contain it."""

    allowed: tuple[str, ...]  # allowed licenses
    require_redistributable: bool
    format: str | None
    short_side: int | None
    jpeg_quality: int | None
    profile: str | None
    points_per_side: int | None
    crop_n_layers: int | None
    pred_iou_thresh: float | None
    stability_score_thresh: float | None
    device: str | None
    precision: str | None
    decoder_precision: str | None  # None: like `precision`
    model: ModelTerms  # license and terms of the model that made the masks
    segmenter: str | None = None  # the segmenter that made the masks, and its settings; None: SAM made them
    adding: tuple[str, ...] = ()  # segmenters that added masks to them, and the licenses of their models
    respects_opt_out: bool | None = None

    @property
    def maker(self) -> str:
        """Name of the masks' maker for a sentence."""
        if self.segmenter is None:
            return SAM
        return "a segmenter"

    @property
    def model_license(self) -> str:
        """License and terms of the model for a sentence."""
        return terms_of(self.model)


def terms_of(model: ModelTerms) -> str:
    """Return a model's license and terms for a sentence."""
    license = model.license or "not stated"
    if model.terms is None:
        return license
    return f"{license}; terms: {model.terms}"


@dataclass(frozen=True)
class Facts:
    """Facts about a dataset. A fact is None or empty if foreign data doesn't state it."""

    name: str
    kind: Kind
    manifest: DatasetManifest | None
    version: VersionName | None
    build: BuildFacts | None
    commits: tuple[Commit, ...]
    images: int
    masks: int
    bytes: int | None  # total size of the committed files
    taken_down: int | None
    licenses: tuple[tuple[str | None, int], ...]  # with image counts, most frequent first; None: no license
    credits: tuple[CreditFact, ...]  # those with an attribution or a provider, most frequent first
    credits_total: int
    redacted: tuple[RedactedRegions, ...]
    detectors: tuple[DetectorFact, ...]
    released: tuple[int, int] | None  # median width and height of the released images
    sources: tuple[int, int] | None  # median width and height of their source images
    redactions: RedactionTotals = field(default_factory=RedactionTotals)
    people: tuple[AnnotatedMaskCounts, ...] = ()
    made_by_build: int = 0  # masks that the model of the build made, or predicted for annotators
    labels: Mapping[str, int] = field(default_factory=dict)  # masks with a label by its source: import, model, person
    prompts: Mapping[str, int] = field(default_factory=dict)  # masks with prompts by their kind: box, mask, point, text
    annotated: int = 0  # images whose masks people reviewed, changed, or deleted
    agreement: AnnotatorAgreement | None = None  # between two people who annotated the same images
    study: PrivacyScore | None = None  # what detectors missed, according to people, if the report includes a study
    ratings: Ratings | None = None  # human ratings of masks
    recorded: Version | None = None  # the version that records the dataset's state
    domains: tuple[tuple[str, int], ...] = ()  # of source pages, with image counts, most frequent first
    domains_total: int = 0
    filled: Mapping[str, int] = field(default_factory=dict)  # images with a value: attributions, pages, annotators
    reused: str = ""  # a sentence, if the report shows an earlier audit
    uncredited: int = 0  # images without an attribution and a provider

    @property
    def with_images(self) -> bool:
        """True if the dataset contains images in addition to annotations."""
        return self.build is None or self.build.format != "annotations"

    @property
    def is_licensed(self) -> bool:
        """True if any image has a license."""
        return any(license for license, _ in self.licenses)

    @property
    def masks_of_build(self) -> bool:
        """False if none of the masks comes from the model of the build."""
        return bool(self.made_by_build) or self.build is None or not (self.masks or self.build.adding)

    @property
    def labeled(self) -> int:
        """Number of masks with a label."""
        return sum(self.labels.values())

    @property
    def rejected(self) -> int | None:
        """Number of rejected rows, or None if unknown."""
        if self.manifest is None:
            return None
        return sum(commit.counts.get("rejected", 0) for commit in self.commits)


def gather_facts(tables: DatasetTables) -> Facts:
    """Collect facts from a dataset's manifest, commits, tombstones, and tables.

    Raises `DamagedDatasetError` if any of these is unreadable.
    """
    manifest = None
    if tables.kind == "segmint":
        manifest = load_manifest(tables.location)
    credits_total, credited, credits = _credits(tables)
    domains, domains_total = tables.query(DOMAINS).to_pylist(), 0
    if domains:
        domains_total = domains[0]["total"]
    images = _number(tables, "SELECT count(*) FROM images")
    facts = Facts(
        name=name_of(manifest, tables.location.uri),
        kind=tables.kind,
        manifest=manifest,
        version=None,
        build=None,
        commits=(),
        images=images,
        masks=_number(tables, "SELECT count(*) FROM masks"),
        bytes=None,
        taken_down=None,
        licenses=_licenses(tables),
        credits=credits,
        credits_total=credits_total,
        uncredited=images - credited,
        redacted=(),
        redactions=sum_redactions(tables),
        detectors=(),
        released=_median_size(tables, "width", "height"),
        sources=_median_size(tables, "source_width", "source_height"),
        domains=tuple((row["domain"], row["images"]) for row in domains),
        domains_total=domains_total,
    )
    if manifest is None:
        return facts
    commits = tuple(CommitLog(tables.location).read_all())
    version = name_now(tables.location)
    if version.number is not None:
        facts = replace(facts, recorded=latest_version(tables.location))
    return replace(
        facts,
        version=version,
        build=_build(manifest),
        commits=commits,
        bytes=sum(file.size for commit in commits for file in commit.files),
        taken_down=len(removed_images(read_tombstones(tables.location))),
        redacted=_redacted(tables),
        detectors=_detectors(manifest),
        people=_people(tables),
        made_by_build=_number(tables, _MADE_BY_BUILD),
        labels=_masks_by_name(tables, _LABELS),
        prompts=_masks_by_name(tables, _PROMPTS),
        filled=tables.query(_FILLED).to_pylist()[0],
        annotated=_number(tables, _ANNOTATED),
        ratings=measure_ratings(tables),
        agreement=measure_agreement(tables.location),
    )


def _build(manifest: DatasetManifest) -> BuildFacts:
    license, release, masks = (manifest.config.get(part) or {} for part in ("license", "release", "masks"))
    adding = []
    for name, stage in manifest.config.get("stages", {}).items():
        if "filters" in stage:
            terms = manifest.adding.get(name, ModelTerms())
            adding.append(f"{_describe_segmenter(stage)}, license of its model: {terms_of(terms)}")
    for applied in manifest.applied.values():
        adding.append(f"segmenter {applied.name}, license of its model: {terms_of(applied.model)}")
    allowed, respects, segmenter = license.get("allow"), license.get("respect_opt_out"), None
    if not isinstance(allowed, list):
        allowed = []
    if not isinstance(respects, bool):
        respects = None
    if "segmenter" in manifest.config:
        segmenter = _describe_segmenter(manifest.config["segmenter"])
    return BuildFacts(
        allowed=tuple(each for each in allowed if isinstance(each, str)),
        require_redistributable=bool(license.get("require_redistributable")),
        format=_text(release.get("format")),
        short_side=_plain_number(release.get("short_side")),
        jpeg_quality=_plain_number(release.get("jpeg_quality")),
        profile=_text(masks.get("profile")),
        points_per_side=_plain_number(masks.get("points_per_side")),
        crop_n_layers=_plain_number(masks.get("crop_n_layers")),
        pred_iou_thresh=_plain_number(masks.get("pred_iou_thresh")),
        stability_score_thresh=_plain_number(masks.get("stability_score_thresh")),
        device=_text(manifest.numerics.get("device")),
        precision=_text(manifest.numerics.get("precision")),
        decoder_precision=_text(manifest.numerics.get("decoder_precision")),
        model=manifest.segmenter or ModelTerms(license=known_license(manifest.weights.sha256)),
        segmenter=segmenter,
        adding=tuple(adding),
        respects_opt_out=respects,
    )


def _describe_segmenter(segmenter: Mapping[str, Any]) -> str:
    """Return the identity of a segmenter as text."""
    parts = [f"segmenter {segmenter.get('stage')}", f"version {segmenter.get('version')}"]
    for name in ("arguments", "filters"):
        if segmenter.get(name):
            parts.append(f"{name} {json.dumps(segmenter[name], ensure_ascii=False, sort_keys=True)}")
    if segmenter.get("wants_original"):
        parts.append("made from the redacted originals")
    if segmenter.get("wants_prompts"):
        parts.append("made from the catalog's prompts")
    return ", ".join(parts)


def _text(value: Any) -> str | None:
    """Return `value` if it is a string, or else None. Foreign or damaged data may contain other values."""
    if isinstance(value, str):
        return value
    return None


def _plain_number(value: Any) -> Any:
    """Return `value` if it is a printable number, or else None. Foreign or damaged data may contain other values."""
    if type(value) in (int, float) and abs(value) < 1 << 53:
        return value
    return None


def _number(tables: DatasetTables, sql: str) -> int:
    return int(tables.query(sql).column(0)[0].as_py())


def _masks_by_name(tables: DatasetTables, sql: str) -> dict[str, int]:
    return {row["name"]: row["masks"] for row in tables.query(sql).to_pylist()}


def _licenses(tables: DatasetTables) -> tuple[tuple[str | None, int], ...]:
    rows = tables.query("SELECT license, count(*) AS images FROM images GROUP BY ALL ORDER BY images DESC, license")
    return tuple((row["license"], row["images"]) for row in rows.to_pylist())


def _credits(tables: DatasetTables) -> tuple[int, int, tuple[CreditFact, ...]]:
    """Return the number of credits, the number of images that have one, and the most frequent credits."""
    grouped = f"SELECT license, provider, attribution, count(*) AS images FROM images WHERE {_CREDITED} GROUP BY ALL"
    total = _number(tables, f"SELECT count(*) FROM ({grouped})")
    credited = _number(tables, f"SELECT count(*) FROM images WHERE {_CREDITED}")
    rows = tables.query(f"{grouped} ORDER BY images DESC, license, provider, attribution LIMIT {_CREDITS_SHOWN}")
    return total, credited, tuple(CreditFact(**row) for row in rows.to_pylist())


def _redacted(tables: DatasetTables) -> tuple[RedactedRegions, ...]:
    rows = tables.query(
        "SELECT region.kind AS kind, region.source AS source, count(*) AS regions, count(DISTINCT id) AS images "
        "FROM (SELECT id, unnest(regions) AS region FROM images) GROUP BY ALL ORDER BY kind, source"
    )
    return tuple(RedactedRegions(**row) for row in rows.to_pylist())


def _people(tables: DatasetTables) -> tuple[AnnotatedMaskCounts, ...]:
    rows = tables.query(
        "SELECT source, origin.license AS license, count(*) AS masks, count(DISTINCT id) AS images FROM masks "
        f"WHERE source <> '{AUTOMATIC}' GROUP BY ALL ORDER BY source, license NULLS FIRST"
    )
    return tuple(AnnotatedMaskCounts(**row) for row in rows.to_pylist())


def _detectors(manifest: DatasetManifest) -> tuple[DetectorFact, ...]:
    config = manifest.config.get("deidentify") or {}
    found = []
    for kind in ("faces", "plates"):
        name = (config.get(kind) or {}).get("detector")
        if name in (None, NO_DETECTOR):
            found.append(DetectorFact(kind, None))
        else:
            found.append(DetectorFact(kind, str(name)))
    return tuple(found)


def _median_size(tables: DatasetTables, width: str, height: str) -> tuple[int, int] | None:
    middle = f"approx_quantile({width}, 0.5) AS width, approx_quantile({height}, 0.5) AS height"
    (row,) = tables.query(f"SELECT {middle} FROM images").to_pylist()
    if row["width"] is None or row["height"] is None:
        return None
    return round(row["width"]), round(row["height"])
