"""Several workers for one run: Ray Train's TorchTrainer above the loop of a single process.

The command's own process finds the images and splits them once; each worker then reads the images of its part of every
step. Gradients are added up by torch (gloo on CPUs, NCCL on GPUs). If a worker dies, Ray Train starts all of them
again, and they go on from the run's last checkpoint; Ray's own checkpoints are not used.
"""

import math
import os
import tempfile
import threading
from dataclasses import replace
from typing import Any

from segmint.infra.errors import SegmintError, UnfinishedError, UsageError, last_line
from segmint.infra.ray_session import Cluster, ray_session
from segmint.infra.wording import counted
from segmint.pipeline.engine.train.session import Say, TrainingSession
from segmint.pipeline.engine.train.settings import TrainResources

_START_S, _STARTS = 600, 3
"""Seconds for all workers to start, and how often that is tried: an autoscaler may have to bring nodes."""

_POLL_S = 0.5
"""Seconds between two looks at what the workers have printed, and at whether one has ended."""

_TOGETHER_S = 1800
"""Seconds that workers wait for one another, as the first one puts a checkpoint or draws pictures."""


def train_on_workers(session: TrainingSession) -> None:
    """Train on as many workers as the configuration says.

    Raises what a worker raised that a user has to know about; `UsageError` if they do not fit the cluster, and
    `UnfinishedError` if they die again and again or do not start.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(_POLL_S))
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_START_S))
    with ray_session(session.config.resources.address) as cluster:
        if cluster.local:  # no machine is ever taken away from it
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        resources = settle(session.config.resources, cluster)
        session = replace(session, config=session.config.model_copy(update={"resources": resources}))
        _fit(session, session.find(), session.say)


def settle(keys: TrainResources, cluster: Cluster) -> TrainResources:
    """Return the resources without `auto`; raises `UsageError` if the cluster does not have them."""
    gpus = keys.gpus_per_worker
    if gpus == "auto":
        gpus = int(keys.device == "cuda" or (keys.device == "auto" and cluster.gpus >= 1))
    if keys.device != "auto" and gpus != int(keys.device == "cuda"):
        raise UsageError(
            f"resources.device is {keys.device} and resources.gpus_per_worker {gpus}: expected 1 with cuda, 0 with cpu"
        )
    threads = keys.threads if isinstance(keys.threads, int) else keys.num_cpus
    if not isinstance(threads, int):
        threads = 1 if gpus else _cores_of_worker(keys.workers, cluster)
    cpus = keys.num_cpus if isinstance(keys.num_cpus, int) else threads
    problems = [
        f"{asked} {kind} for {keys.workers} workers, and the cluster has {there:g}"
        for kind, asked, there in (
            ("CPUs", keys.workers * cpus, cluster.cpus),
            ("GPUs", keys.workers * gpus, cluster.gpus),
        )
        if asked > there
    ]
    if problems:
        raise UsageError(
            f"resources ask for {'; '.join(problems)}: lower resources.workers, resources.num_cpus or "
            "resources.gpus_per_worker, or start more nodes"
        )
    return keys.model_copy(
        update={"device": "cuda" if gpus else "cpu", "threads": threads, "num_cpus": cpus, "gpus_per_worker": gpus}
    )


def _cores_of_worker(workers: int, cluster: Cluster) -> int:
    """CPUs of one worker if all nodes are alike and the workers fill them."""
    if cluster.local:
        return max(1, cluster.cores // workers)
    nodes = max(1, cluster.nodes)
    return max(1, int(cluster.cpus / nodes) // math.ceil(workers / nodes))


def _fit(session: TrainingSession, found: Any, say: Say) -> None:
    """Run Ray Train to its end, and print what the workers say."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from segmint.pipeline.engine.train.workers.worker import DeathPolicy, LogLines, WorkerTask, stderr_is_json, work

    keys = session.config.resources
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    lines = ray.remote(num_cpus=0, scheduling_strategy=here)(LogLines).remote()
    task = WorkerTask(replace(session, say=_nowhere), ray.put(found), lines, stderr_is_json())
    with tempfile.TemporaryDirectory(prefix="segmint-train-") as scratch:
        trainer = TorchTrainer(
            work,
            train_loop_config={"task": task},
            torch_config=TorchConfig("cpu:gloo,cuda:nccl" if keys.gpus_per_worker else "gloo", timeout_s=_TOGETHER_S),
            scaling_config=ScalingConfig(
                num_workers=keys.workers,
                use_gpu=bool(keys.gpus_per_worker),
                resources_per_worker={"CPU": keys.num_cpus, "GPU": keys.gpus_per_worker},
            ),
            run_config=RunConfig(
                name="run",
                storage_path=scratch,  # Ray's own checkpoints would be there
                failure_config=FailureConfig(max_failures=-1, controller_failure_limit=_STARTS - 1),
                callbacks=[DeathPolicy(session.output, session.run.fingerprint, lines)],
            ),
        )
        ended = _RayTrainEnd()

        def fit() -> None:
            try:
                trainer.fit()
            except BaseException as error:  # noqa: BLE001 (raised in the command's own thread)
                ended.error = error

        # In a separate thread: fit would handle an interrupt itself, and print nothing meanwhile.
        thread = threading.Thread(target=fit, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_S)
            _print(lines, say)
        _print(lines, say)
        if ended.error is not None:
            raise _explained(ended.error, session.config.resources) from None


class _RayTrainEnd:
    """How Ray Train ended."""

    error: BaseException | None = None


def _nowhere(line: str) -> None:
    """Say nothing; each worker has another `say`."""


def _print(lines: Any, say: Say) -> None:
    import ray

    try:
        taken = ray.get(lines.take.remote())
    except ray.exceptions.RayError:  # what remains to be said is the error of the run
        return
    for line in taken:
        say(line)


def _explained(error: BaseException, keys: TrainResources) -> BaseException:
    """The error for people, without Ray's tracebacks."""
    from ray.exceptions import RayError
    from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

    cause = error.controller_failure if isinstance(error, ControllerError) else error
    if isinstance(cause, SegmintError):
        return cause
    if not isinstance(cause, TrainingFailedError | RayError) and not isinstance(error, ControllerError):
        return cause
    if "Startup" in type(cause).__name__:
        return UnfinishedError(
            f"{counted(keys.workers, 'worker')} with {keys.num_cpus} CPUs and {keys.gpus_per_worker} GPUs each did not "
            f"start, {_STARTS} times: {last_line(cause)}. Start more nodes or ask for less, and run again: it goes on"
        )
    return UnfinishedError(f"Ray Train ended the run: {last_line(cause)}. The same command goes on")
