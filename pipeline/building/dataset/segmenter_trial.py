"""Trials of segmenters on a control image before a dataset is created, so that their bugs show at once."""

import traceback
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from segmint.infra.errors import UsageError, last_line
from segmint.operators.custom.load import StageSpec
from segmint.operators.segmenter.segmenter import SegmenterSettings
from segmint.pipeline.config.config import Config, StageConfig
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
            timeout_s, on_gpu = each.resources.timeout_s, each.resources.num_gpus > 0
            adds, settings = isinstance(each, StageConfig), segmenter_settings(each)
            problem = partial(problem_of, spec, timeout_s, on_gpu, settings, adds)
            title = f"the segmenter {each.stage}"
            try_on_control(title, each.resources, timeout_s, problem, cluster, config.stall_timeout)


def try_on_control(
    title: str,
    resources: Any,
    timeout_s: float,
    find_problem: Callable[[], str | None],
    cluster: "Cluster",
    stall_timeout: float,
) -> None:
    """Call `find_problem`, which tries a stage on a control image and returns a traceback or None, in a worker.

    The worker has the `num_cpus` and `num_gpus` of `resources`. `title` names the stage in messages, and `timeout_s` is
    its time limit per image. Raises `UsageError` if there is a problem, if the worker ends, or if none finishes within
    `stall_timeout`.
    """
    import ray
    import ray.exceptions

    from segmint.infra.ray_session import observe_growth

    failed = f"{title} failed on a control image of 256 x 192 pixels"
    most = cluster if cluster.local else observe_growth().grown or cluster
    for name, wanted, found in (("CPUs", resources.num_cpus, most.cpus), ("GPUs", resources.num_gpus, most.gpus)):
        if wanted > found:
            raise UsageError(f"an actor of {title} needs {wanted:g} {name}, but the cluster has {found:g}")
    task = ray.remote(num_cpus=resources.num_cpus, num_gpus=resources.num_gpus, max_retries=0)(_call)
    try:
        problem = ray.get(task.remote(find_problem), timeout=stall_timeout)
    except ray.exceptions.GetTimeoutError as error:
        limit = f"stall_timeout = {stall_timeout:g} seconds"
        raise UsageError(f"{failed}: no worker with its resources finished within {limit}") from error
    except ray.exceptions.RayError as error:
        limit = f"its resources.timeout_s = {timeout_s:g} seconds"
        raise UsageError(
            f"{failed}: it ended its worker, or it took longer than {limit} ({last_line(error)})"
        ) from error
    if problem is not None:
        raise UsageError(f"{failed}:\n{problem}")


def _call(find_problem: Callable[[], str | None]) -> str | None:
    return find_problem()


def problem_on(make_worker: Callable[[], Any], controls: Iterable[Any]) -> str | None:
    """Make a worker that tries a single row, and run it on control images. Return the error's traceback, or None."""
    try:
        worker = make_worker()
        if all(map(worker.has_memory_for, controls)):
            return None
    except Exception:  # noqa: BLE001 - any bug of the stage is shown
        return traceback.format_exc()
    return "its memory ran out"


def problem_of(spec: StageSpec, timeout_s: float, on_gpu: bool, settings: SegmenterSettings, adds: bool) -> str | None:
    """Run a segmenter on the control image in a Ray task. Return the traceback of its error, or None.

    One that wants prompts gets a box and points and then, because it may reject them, a phrase. `adds` says that it
    adds masks to others.
    """
    from segmint.operators.segmenter.segmenter import SegmenterAlone, control_rows

    controls = [control_rows(adds=adds)]
    if spec.wants_prompts:
        controls.append(control_rows(adds=adds, phrase="disc"))
    return problem_on(partial(SegmenterAlone, spec, 1, timeout_s, None, on_gpu, settings), controls)
