"""Stages that `segmint apply` runs, sized for a cluster: a custom stage, a segmenter, or SAM."""

from collections.abc import Callable
from functools import partial

from segmint.infra.errors import UsageError
from segmint.infra.ray_session import Cluster
from segmint.operators.custom.load import StageSpec
from segmint.pipeline.building.execution.pools import CustomPool, pool_of
from segmint.pipeline.config.config import StageConfig
from segmint.pipeline.corrections.apply.engine import AppliedStage


def custom_stage(stage: StageConfig, spec: StageSpec) -> Callable[[Cluster], AppliedStage]:
    """Return a function that sizes a custom stage for a cluster. The stage gets described rows."""
    resources = stage.resources
    pool = CustomPool(
        number=1,
        spec=spec,
        after="describe",
        pool=pool_of(resources, 1, 1, resources.num_gpus),
        batch_size=None if stage.batch_size == "auto" else stage.batch_size,
        timeout_s=resources.timeout_s,
    )
    return partial(on_cluster, pool=pool, title=f"the stage {stage.stage}", described=True)


def on_cluster(
    cluster: Cluster, *, pool: CustomPool, title: str, described: bool, makes_masks: bool = False
) -> AppliedStage:
    """Return a stage with users' code. Raises `UsageError` if the cluster has too few GPUs."""
    gpus = pool.pool.num_gpus
    if gpus > cluster.gpus:
        raise UsageError(f"{title} needs {gpus:g} GPUs per actor, but the cluster has {cluster.gpus:g}")
    return AppliedStage(
        number=pool.number,
        label=pool.spec.label,
        title=title,
        actor=pool.actor(),
        arguments=pool.arguments,
        alone=pool.alone(),
        alone_arguments=pool.arguments(None),
        pool=pool.pool,
        timeout_s=pool.timeout_s,
        described=described,
        makes_masks=makes_masks,
    )
