"""Trial of a segmenter on a control image before a dataset is created, so that its bugs show at once."""

import traceback

from segmint.infra.errors import UsageError, last_line
from segmint.operators.custom.load import StageSpec
from segmint.operators.segmenter.segmenter import SegmenterSettings
from segmint.pipeline.config.config import Config
from segmint.pipeline.config.stage_settings import segmenter_settings


def try_segmenter(config: Config) -> None:
    """Run the segmenter, if any, on a control image in a worker with the resources of its actors.

    Raises `UsageError`, which contains the traceback, if the segmenter raises an error or returns an invalid mask, if
    it ends its worker, or if no worker gets the resources and finishes within `stall_timeout`.
    """
    segmenter = config.segmenter
    if segmenter is None:
        return
    import ray
    import ray.exceptions

    from segmint.infra.ray_session import observe_growth, ray_session

    spec, resources = config.load_stages()[-1], segmenter.resources
    failed = f"the segmenter {segmenter.stage} failed on a control image of 256 x 192 pixels"
    session = ray_session(config.resources.address, object_store_memory=config.resources.object_store_memory)
    with session as cluster:
        most = cluster if cluster.local else observe_growth().grown or cluster
        for name, wanted, found in (("CPUs", resources.num_cpus, most.cpus), ("GPUs", resources.num_gpus, most.gpus)):
            if wanted > found:
                raise UsageError(f"an actor of the segmenter needs {wanted:g} {name}, but the cluster has {found:g}")
        task = ray.remote(num_cpus=resources.num_cpus, num_gpus=resources.num_gpus, max_retries=0)(_problem)
        try:
            problem = ray.get(
                task.remote(spec, resources.timeout_s, resources.num_gpus > 0, segmenter_settings(segmenter)),
                timeout=config.stall_timeout,
            )
        except ray.exceptions.GetTimeoutError as error:
            limit = f"stall_timeout = {config.stall_timeout:g} seconds"
            raise UsageError(f"{failed}: no worker with its resources finished within {limit}") from error
        except ray.exceptions.RayError as error:
            limit = f"segmenter.resources.timeout_s = {resources.timeout_s:g} seconds"
            raise UsageError(
                f"{failed}: it ended its worker, or it took longer than {limit} ({last_line(error)})"
            ) from error
    if problem is not None:
        raise UsageError(f"{failed}:\n{problem}")


def _problem(spec: StageSpec, timeout_s: float, on_gpu: bool, settings: SegmenterSettings) -> str | None:
    """Run a segmenter on the control image in a Ray task. Return the traceback of its error, or None."""
    from segmint.operators.segment.segment_alone import control_table
    from segmint.operators.segmenter.segmenter import SegmenterAlone

    try:
        if SegmenterAlone(spec, 1, timeout_s, None, on_gpu, settings).has_memory_for(control_table()):
            return None
    except Exception:  # noqa: BLE001 - any bug of the segmenter is shown
        return traceback.format_exc()
    return "its memory ran out"
