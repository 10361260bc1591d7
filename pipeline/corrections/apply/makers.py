"""Stages that `segmint apply` runs, sized for a cluster: a custom stage, a segmenter, or SAM."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import ValidationError

from segmint.catalogs.dataset.manifest import AppliedSegmenter, DatasetManifest, ModelTerms
from segmint.catalogs.layout import wrong_fields
from segmint.infra.assets.cache import sha256_of
from segmint.infra.assets.known import known_license, plain_name
from segmint.infra.assets.resolve import resolve_default
from segmint.infra.errors import UsageError
from segmint.infra.ray_session import Cluster
from segmint.infra.row_ledger import RowLedger
from segmint.infra.storage.storage import Storage
from segmint.operators.custom.load import StageSpec
from segmint.operators.segment.artifacts import RedactionArtifacts
from segmint.operators.segment.mask_config import MasksConfig
from segmint.operators.segment.overlap import HostThreads
from segmint.operators.segment.segment import Segment, SegmentSettings
from segmint.operators.segment.segment_alone import SegmentAlone
from segmint.operators.segmenter.filters import MaskFilters
from segmint.pipeline.building.dataset.dataset import name_weights
from segmint.pipeline.building.dataset.first_numerics import first_device, numerics_of_masks
from segmint.pipeline.building.execution.pools import CustomPool, custom_pool, pool_of, segmenter_pool
from segmint.pipeline.building.execution.stages import cpu_actors
from segmint.pipeline.config.config import ROWS_PER_BLOCK, Config, SegmenterConfig, StageConfig
from segmint.pipeline.config.stage_settings import model_terms, segment_settings, segmenter_settings
from segmint.pipeline.corrections.apply.engine import AppliedStage, FindStage


def custom_stage(stage: StageConfig, spec: StageSpec) -> FindStage:
    """Return a custom stage, which gets described rows."""
    return _custom(custom_pool(1, spec, stage), f"the stage {stage.stage}")


def own_segmenter(segmenter: SegmenterConfig, manifest: DatasetManifest) -> tuple[AppliedSegmenter, FindStage]:
    """Return a user's segmenter. It drops redaction artifacts at least as strictly as the dataset's build.

    Raises `UsageError` if the segmenter is invalid, or if it needs what a dataset doesn't contain.
    """
    spec = segmenter.load()
    if spec.wants_original or spec.wants_prompts:
        wanted = "wants_original" if spec.wants_original else "wants_prompts"
        raise UsageError(
            f"the segmenter {segmenter.stage} sets {wanted}, which isn't in a dataset: only a build has it"
        )
    settings = segmenter_settings(segmenter, artifact_iou=recorded_artifact_iou(manifest.config))
    pool = segmenter_pool(1, spec, segmenter, replace(settings, rejects=False))
    filters = settings.filters.model_dump(mode="json", exclude_none=True)
    applied = AppliedSegmenter(
        name=segmenter.stage, identity={**spec.identity, "filters": filters}, model=model_terms(segmenter)
    )
    grows = segmenter.resources.actors == "auto"
    return applied, _custom(pool, f"the segmenter {segmenter.stage}", makes_masks=True, grows=grows)


def sam(config: Config, manifest: DatasetManifest) -> tuple[AppliedSegmenter, FindStage]:
    """Return SAM with the weights and settings of a configuration, without crops of originals.

    Raises `AssetError` if the weights aren't found.
    """
    asked = config.model.weights
    config = name_weights(config, None, first_device)
    weights = resolve_default(config.model.weights, asked, "model.weights", config.assets, Storage(config.storage))
    limits = [iou for iou in (recorded_artifact_iou(manifest.config), config.masks.artifact_iou) if iou is not None]
    artifacts = RedactionArtifacts(min(limits, default=None))
    masks = config.masks.model_dump(mode="json", exclude={"points_per_chunk"})
    masks["drop_redaction_artifacts"] = artifacts.iou
    digest = sha256_of(weights)
    applied = AppliedSegmenter(
        name=plain_name(config.model.weights),
        identity={"model": {"weights": digest}, "masks": masks},
        model=ModelTerms(license=known_license(digest), weights_sha256=digest),
    )

    def find() -> Callable[[Cluster], AppliedStage]:
        settings = replace(segment_settings(config, numerics_of_masks(config, weights)), artifacts=artifacts)
        return partial(_sam_on, config=config, settings=settings, weights_bytes=weights.stat().st_size)

    return applied, find


def recorded_artifact_iou(tree: Mapping[str, Any]) -> float | None:
    """Return the IoU with a redacted region from which on a dataset's build dropped masks, from its identity keys.

    Raises `UsageError` if they are invalid.
    """
    try:
        if "segmenter" in tree:
            return MaskFilters.model_validate(tree["segmenter"].get("filters")).drop_redaction_artifacts
        return MasksConfig.model_validate(tree.get("masks")).artifact_iou
    except ValidationError as error:
        raise UsageError(f"the manifest's settings of masks are invalid: {wrong_fields(error)}") from error


def _custom(pool: CustomPool, title: str, *, makes_masks: bool = False, grows: bool = False) -> FindStage:
    """Return a stage with users' code. If it `grows`, it has as many actors as fit on the GPUs, if it uses any."""

    def size(cluster: Cluster) -> AppliedStage:
        gpus, sized = pool.pool.num_gpus, pool.pool
        if grows and 0 < gpus <= cluster.gpus:
            actors = int(cluster.gpus // gpus)
            sized = replace(sized, smallest=actors, largest=actors)
        return AppliedStage(
            label=pool.spec.label,
            title=title,
            actor=pool.actor(),
            arguments=pool.arguments,
            alone=pool.alone(),
            alone_arguments=pool.arguments(None),
            pool=sized,
            timeout_s=pool.timeout_s,
            makes_masks=makes_masks,
        )

    return lambda: size


def _sam_on(cluster: Cluster, *, config: Config, settings: SegmentSettings, weights_bytes: int) -> AppliedStage:
    resources, numerics = config.resources.segment, settings.numerics
    gpus = 1.0 if numerics.device == "cuda" else 0.0
    if resources.num_gpus != "auto":
        gpus = float(resources.num_gpus)
    if gpus:
        actors = max(1, int(cluster.gpus // gpus))
    else:
        actors = cpu_actors(cluster, numerics.threads, weights_bytes, rows=cluster.cores)
    pool = pool_of(resources, actors, actors, gpus)
    threads = HostThreads.of(numerics.device, pool.num_cpus, config.model.images_per_batch)
    kind = resources.accelerator_type

    def arguments(ledger: RowLedger | None) -> tuple[Any, ...]:
        return settings, False, ledger, resources.timeout_s, threads

    return AppliedStage(
        label="segment",
        title=f"SAM with the weights {settings.weights}",
        actor=Segment,
        arguments=arguments,
        alone=SegmentAlone,
        alone_arguments=(settings, resources.timeout_s),
        pool=replace(pool, calls_at_once=threads.calls(ROWS_PER_BLOCK)),
        timeout_s=resources.timeout_s,
        makes_masks=True,
        gpu_kind=None if kind == "auto" else kind,
    )
