"""Settings of the stages, from the configuration and a dataset's pinned values, for builds and samples."""

from collections.abc import Mapping

from segmint.catalogs.dataset.manifest import DatasetManifest, ModelTerms
from segmint.catalogs.licenses import canonical_identifier, fit_to_store
from segmint.infra.assets.cache import pinned
from segmint.infra.assets.resolve import resolve
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.operators.custom.load import stated_terms
from segmint.operators.opt_out.refusals import RefusalLists, read_refusal_lists
from segmint.operators.prepare.left_alone import Entries, read_left_alone
from segmint.operators.prepare.prepare import PrepareConfig
from segmint.operators.prepare.release import WHOLE_ORIGINAL
from segmint.operators.segment.artifacts import RedactionArtifacts
from segmint.operators.segment.numerics import Numerics
from segmint.operators.segment.segment import SegmentSettings
from segmint.operators.segmenter.segmenter import SegmenterSettings
from segmint.pipeline.config.config import Config, SegmenterConfig, StageConfig, as_pinned


def detector_hashes(config: Config, manifest: DatasetManifest) -> dict[str, str]:
    """Return the pinned SHA-256 of each detector file, keyed by the file's name in the configuration."""
    pinned = manifest.config["deidentify"]
    return {file: pinned[kind]["detector"] for kind, file in config.deidentify.detector_files.items()}


def read_listed(config: Config, manifest: DatasetManifest | None = None) -> Mapping[str, Entries]:
    """Read the regions to leave alone, by the SHA-256 of the photograph. Without a list, there are none.

    Raises `UsageError` if the list is invalid, and `AssetError` if it is missing or not the one that `manifest` pinned.
    """
    name = config.deidentify.left_alone
    if name is None:
        return {}
    storage = Storage(config.storage)
    file = resolve(name, mirror=config.assets, storage=storage)
    expected = None if manifest is None else manifest.config["deidentify"]["left_alone"]
    return read_left_alone(Location(storage, str(pinned(file, expected))))


def read_refused(config: Config) -> RefusalLists:
    """Read the lists of `license.refuse`. Raises the errors of `read_refusal_lists`."""
    storage = Storage(config.storage)
    return read_refusal_lists(Location(storage, file) for file in config.license.refuse)


def prepare_config(config: Config, manifest: DatasetManifest | None = None) -> PrepareConfig:
    """Return the settings of `prepare` for the dataset of `manifest`, or for a new dataset if `manifest` is None.

    If the mask settings cut crops from the originals, or the segmenter wants them, `prepare` keeps the originals.
    Raises the errors of `read_listed`.
    """
    detector_sha256 = {} if manifest is None else detector_hashes(config, manifest)
    # Name of the GPU that the dataset's detectors must run on, or "" for CPUs.
    recorded = "" if manifest is None or config.allow_mixed_numerics else Numerics.recorded(manifest.numerics).detectors
    config = config if manifest is None else as_pinned(config, manifest.config)
    crops = config.masks.original_crops
    if config.segmenter is not None:
        crops = WHOLE_ORIGINAL if config.segmenter.load().wants_original else None
    return PrepareConfig(
        ingest=config.ingest,
        deidentify=config.deidentify,
        release=config.release,
        crops=crops,
        detector_sha256=detector_sha256,
        left_alone=read_listed(config, manifest),
        respect_opt_out=config.license.respects_opt_out,
        detector_numerics=recorded,
    )


def segment_settings(config: Config, numerics: Numerics, manifest: DatasetManifest | None = None) -> SegmentSettings:
    """Return a segment actor's settings for the dataset of `manifest`, or for a new dataset if `manifest` is None.

    If a segmenter makes the masks, no actor uses the settings of SAM.
    """
    config = config if manifest is None else as_pinned(config, manifest.config)
    return SegmentSettings(
        masks=config.masks.settings(numerics.points_per_chunk or None),
        weights=config.model.weights,
        numerics=numerics,
        assets=config.assets,
        storage_options=config.storage,
        allow_mixed_numerics=config.allow_mixed_numerics,
        artifacts=RedactionArtifacts(config.masks.artifact_iou),
    )


def segmenter_settings(
    segmenter: SegmenterConfig | StageConfig, numerics: Numerics | None = None, artifact_iou: float | None = None
) -> SegmenterSettings:
    """Return the settings of the actors of a segmenter, or of a stage that adds masks.

    If `numerics` is given, the actors must have them. `artifact_iou` is the IoU with a redacted region from which on
    the other masks of an image are dropped, if they are. The added masks are then dropped from the same IoU on, unless
    their own filter starts lower.
    """
    filters = segmenter.filters
    limits = [iou for iou in (artifact_iou, filters.drop_redaction_artifacts) if iou is not None]
    if limits:
        filters = filters.model_copy(update={"drop_redaction_artifacts": min(limits)})
    threads = max(1, int(segmenter.resources.num_cpus) - 1)
    return SegmenterSettings(filters, segmenter.on_error == "reject", threads, numerics)


def artifact_iou(config: Config, manifest: DatasetManifest) -> float | None:
    """Return the IoU with a redacted region from which on a dataset's masks are dropped, or None if they aren't.

    Stages that add masks may drop more of theirs.
    """
    if config.segmenter is not None:
        return config.segmenter.filters.drop_redaction_artifacts
    return as_pinned(config, manifest.config).masks.artifact_iou


def model_terms(segmenter: SegmenterConfig | StageConfig) -> ModelTerms:
    """Return the license and terms of a segmenter's model as a dataset stores them: without credentials, and shortened.

    The segmenter may also be a stage that adds masks. Those in the configuration take precedence. Raises `UsageError`
    if the class states them in an invalid form.
    """
    stated = stated_terms(segmenter.stage, segmenter.arguments)
    license, terms = segmenter.license or stated.license, segmenter.terms or stated.terms
    if license is not None:
        license = canonical_identifier(license.strip()) or fit_to_store(license)
    if terms is not None:
        terms = fit_to_store(terms)
    return ModelTerms(license=license, terms=terms, weights_sha256=stated.weights_sha256)
