"""What the stages are told, by the configuration and by what a dataset has pinned: in a build and in a sample."""

from collections.abc import Mapping

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.operators.prepare.prepare import PrepareConfig
from segmint.operators.segment.numerics import Numerics
from segmint.operators.segment.segment import SegmentSettings
from segmint.pipeline.config.config import Config


def detector_hashes(config: Config, standing: DatasetManifest) -> dict[str, str]:
    """SHA-256 of each detector's file as the dataset pins it, by how the configuration names it."""
    pinned = standing.config["deidentify"]
    return {file: pinned[kind]["detector"] for kind, file in config.deidentify.detector_files.items()}


def prepare_config(config: Config, detector_sha256: Mapping[str, str] | None = None) -> PrepareConfig:
    """What the first stage is told. Originals are kept where crops are cut from them."""
    masks = config.masks
    return PrepareConfig(
        ingest=config.ingest,
        deidentify=config.deidentify,
        release=config.release,
        keep_original=masks.profile == "sa1b" and masks.crop_n_layers > 0,
        detector_sha256=dict(detector_sha256 or {}),
    )


def segment_settings(config: Config, numerics: Numerics) -> SegmentSettings:
    """What a segment actor is made from."""
    return SegmentSettings(
        masks=config.masks.settings(numerics.points_per_chunk),
        weights=config.model.weights,
        numerics=numerics,
        assets=config.assets,
        storage_options=config.storage,
        allow_mixed_numerics=config.allow_mixed_numerics,
    )
