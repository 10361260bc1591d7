"""Trials of segmenters on a control image before a dataset is created, so that their bugs show at once."""

import traceback
from typing import TYPE_CHECKING

from segmint.infra.errors import UsageError, last_line
from segmint.operators.custom.load import StageSpec
from segmint.operators.segmenter.segmenter import SegmenterSettings
from segmint.pipeline.config.config import Config, SegmenterConfig, StageConfig
from segmint.pipeline.config.stage_settings import segmenter_settings

if TYPE_CHECKING:
    from segmint.infra.ray_session import Cluster


def try_segmenters(config: Config) -> None:
    """Run each segmenter on a control image, in a worker with the resources of its actors.

    These are the segmenter in place of SAM and the stages that add masks, if any. Raises `UsageError`, which contains
    the traceback, if one of them raises an error or returns an invalid mask, if it ends its worker, or if no worker
    gets the resources and finishes within `stall_timeout`.
    """
    segmenters = []
    for each, spec in zip((*config.stages, config.segmenter), config.load_stages(), strict=False):
        if each is not None and spec.masks:
            segmenters.append((each, spec))
    if not segmenters:
        return
    from segmint.infra.ray_session import ray_session

    session = ray_session(config.resources.address, object_store_memory=config.resources.object_store_memory)
    with session as cluster:
        for each, spec in segmenters:
            _try(each, spec, cluster, config.stall_timeout)


def _try(segmenter: SegmenterConfig | StageConfig, spec: StageSpec, cluster: "Cluster", stall_timeout: float) -> None:
    import ray
    import ray.exceptions

    from segmint.infra.ray_session import observe_growth

    resources = segmenter.resources
    failed = f"the segmenter {segmenter.stage} failed on a control image of 256 x 192 pixels"
    most = cluster if cluster.local else observe_growth().grown or cluster
    for name, wanted, found in (("CPUs", resources.num_cpus, most.cpus), ("GPUs", resources.num_gpus, most.gpus)):
        if wanted > found:
            raise UsageError(
                f"an actor of the segmenter {segmenter.stage} needs {wanted:g} {name}, but the cluster has {found:g}"
            )
    task = ray.remote(num_cpus=resources.num_cpus, num_gpus=resources.num_gpus, max_retries=0)(_problem)
    adds = isinstance(segmenter, StageConfig)
    settings = segmenter_settings(segmenter)
    try:
        problem = ray.get(
            task.remote(spec, resources.timeout_s, resources.num_gpus > 0, settings, adds), timeout=stall_timeout
        )
    except ray.exceptions.GetTimeoutError as error:
        limit = f"stall_timeout = {stall_timeout:g} seconds"
        raise UsageError(f"{failed}: no worker with its resources finished within {limit}") from error
    except ray.exceptions.RayError as error:
        limit = f"its resources.timeout_s = {resources.timeout_s:g} seconds"
        raise UsageError(
            f"{failed}: it ended its worker, or it took longer than {limit} ({last_line(error)})"
        ) from error
    if problem is not None:
        raise UsageError(f"{failed}:\n{problem}")


def _problem(spec: StageSpec, timeout_s: float, on_gpu: bool, settings: SegmenterSettings, adds: bool) -> str | None:
    """Run a segmenter on the control image in a Ray task. Return the traceback of its error, or None.

    One that wants prompts gets a box and points and then, because it may reject them, a phrase. `adds` says that it
    adds masks to others.
    """
    from segmint.operators.segmenter.segmenter import SegmenterAlone, control_rows

    try:
        alone = SegmenterAlone(spec, 1, timeout_s, None, on_gpu, settings)
        tables = [control_rows(adds=adds)]
        if spec.wants_prompts:
            tables.append(control_rows(adds=adds, phrase="disc"))
        if all(map(alone.has_memory_for, tables)):
            return None
    except Exception:  # noqa: BLE001 - any bug of the segmenter is shown
        return traceback.format_exc()
    return "its memory ran out"
