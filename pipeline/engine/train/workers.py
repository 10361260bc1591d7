"""Training with several workers: Ray Train's TorchTrainer around the loop of a single process.

The command's process finds and splits the images once. In each step, every worker reads its share of the images, and
torch sums the gradients with gloo on CPUs and with NCCL on GPUs. If a worker dies, Ray Train restarts all workers, and
they resume from the run's last checkpoint. Ray's own checkpoints aren't used.

Code that runs in a Ray Train worker, and the controller's policy for workers that have ended.
"""

import contextlib
import io
import math
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch.distributed as dist
from ray.train import UserCallback, get_context
from ray.train.torch import get_device
from torch import Tensor

from segmint.infra import log
from segmint.infra.assets import resolve, sha256_of
from segmint.infra.device import apply_compute, resolve_compute
from segmint.infra.errors import SegmintError, UnfinishedError, UsageError, last_line
from segmint.infra.ray_internals import is_worker_death
from segmint.infra.ray_session import Cluster, ray_session
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.wording import counted, is_terminal
from segmint.pipeline.engine.train.reading import WorkerRank
from segmint.pipeline.engine.train.record import CHECKPOINTS, list_checkpoints
from segmint.pipeline.engine.train.session import Say, TrainingSession
from segmint.pipeline.engine.train.settings import TrainResources

_START_S, _STARTS = 600, 3
"""Seconds to wait for all workers to start, and number of tries. An autoscaler may have to add nodes first."""

_POLL_S = 0.5
"""Seconds between polls of the workers' output and health."""

_TOGETHER_S = 1800
"""Timeout in seconds of collective operations, in which the first worker may save a checkpoint."""


def train_on_workers(session: TrainingSession) -> None:
    """Train on the configured number of workers.

    Raises the `SegmintError` of a worker, `UsageError` if the workers don't fit the cluster, and `UnfinishedError` if
    workers die repeatedly or don't start.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(_POLL_S))
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_START_S))
    with ray_session(session.config.resources.address) as cluster:
        if cluster.local:  # a local cluster is never preempted
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        resources = settle(session.config.resources, cluster)
        session = replace(session, config=session.config.model_copy(update={"resources": resources}))
        _fit(session, session.find(), session.say)


def settle(keys: TrainResources, cluster: Cluster) -> TrainResources:
    """Replace `auto` in the resources with numbers. Raises `UsageError` if the cluster lacks them."""
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
        f"{asked} {kind} for {keys.workers} workers, but the cluster has {there:g}"
        for kind, asked, there in (
            ("CPUs", keys.workers * cpus, cluster.cpus),
            ("GPUs", keys.workers * gpus, cluster.gpus),
        )
        if asked > there
    ]
    if problems:
        raise UsageError(
            f"resources request {'; '.join(problems)}: lower resources.workers, resources.num_cpus or "
            "resources.gpus_per_worker, or start more nodes"
        )
    return keys.model_copy(
        update={"device": "cuda" if gpus else "cpu", "threads": threads, "num_cpus": cpus, "gpus_per_worker": gpus}
    )


def _cores_of_worker(workers: int, cluster: Cluster) -> int:
    """Return the CPUs per worker, assuming that all nodes are alike and that the workers fill them."""
    if cluster.local:
        return max(1, cluster.cores // workers)
    nodes = max(1, cluster.nodes)
    return max(1, int(cluster.cpus / nodes) // math.ceil(workers / nodes))


def _fit(session: TrainingSession, found: Any, say: Say) -> None:
    """Run Ray Train to its end, and print the workers' output."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    keys = session.config.resources
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    lines = ray.remote(num_cpus=0, scheduling_strategy=here)(LogLines).remote()
    as_json = not is_terminal(sys.stderr)
    task = WorkerTask(replace(session, say=_nowhere), ray.put(found), lines, as_json)
    with ScratchFolder() as scratch:
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
                storage_path=scratch,  # only for Ray's own checkpoints
                failure_config=FailureConfig(max_failures=-1, controller_failure_limit=_STARTS - 1),
                callbacks=[DeathPolicy(session.output, session.run.fingerprint, lines)],
            ),
        )
        errors: list[BaseException] = []

        def fit() -> None:
            try:
                trainer.fit()
            except BaseException as error:  # noqa: BLE001 (raised in the command's own thread)
                errors.append(error)

        # `fit` runs in a separate thread, because it would handle interrupts itself and block the printing.
        thread = threading.Thread(target=fit, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_S)
            _print(lines, say)
        _print(lines, say)
        if errors:
            raise _explained(errors[0], session.config.resources) from None


def _nowhere(line: str) -> None:
    """Discard a line, because each worker gets its own `say`."""


def _print(lines: Any, say: Say) -> None:
    import ray

    try:
        taken = ray.get(lines.take.remote())
    except ray.exceptions.RayError:  # the run's own error comes later
        return
    for line in taken:
        say(line)


def _explained(error: BaseException, keys: TrainResources) -> BaseException:
    """Convert an error to a readable one, without Ray's tracebacks."""
    from ray.exceptions import RayError
    from ray.train import ControllerError, TrainingFailedError

    cause = error.controller_failure if isinstance(error, ControllerError) else error
    if isinstance(cause, SegmintError):
        return cause
    if not isinstance(cause, TrainingFailedError | RayError) and not isinstance(error, ControllerError):
        return cause
    if "Startup" in type(cause).__name__:
        return UnfinishedError(
            f"{counted(keys.workers, 'worker')} with {keys.num_cpus} CPUs and {keys.gpus_per_worker} GPUs each did not "
            f"start in {_STARTS} attempts: {last_line(cause)}. Add nodes or request less, and run again to resume"
        )
    return UnfinishedError(f"Ray Train ended the run: {last_line(cause)}. Run the same command again to resume")


MOST_DEATHS = 3
"""Number of deaths without a new checkpoint that ends the run, because another start would fail the same way."""


class LogLines:
    """Ray actor that collects the workers' lines for the driver to print, because Ray doesn't forward them."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def put(self, line: str) -> None:
        """Add a line."""
        self._lines.append(line)

    def take(self) -> list[str]:
        """Return the new lines and clear the buffer."""
        lines, self._lines = self._lines, []
        return lines


@dataclass(frozen=True)
class WorkerTask:
    """Arguments of a worker.

    `session` has no `say`, and its path of the weights is valid only on the driver's machine. `found` is a reference to
    a `TrainingInputs` in Ray's object store.
    """

    session: TrainingSession
    found: Any
    lines: Any  # the handle of a `LogLines`
    as_json: bool  # whether log lines are JSON


def work(config: Mapping[str, WorkerTask]) -> None:
    """Run one worker's share of the training. Ray Train calls this function in each worker."""
    task = config["task"]
    session, keys = task.session, task.session.config

    def say(line: str) -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # losing a line doesn't stop the training
            ray.get(task.lines.put.remote(line))

    log.configure(json=task.as_json, stream=_LogStream(say))
    device = str(get_device()) if keys.resources.gpus_per_worker == 1 else "cpu"
    compute = resolve_compute(device, keys.precision, keys.resources.threads)
    apply_compute(compute)
    weights = resolve(keys.weights, mirror=keys.assets, storage=Storage(keys.storage))
    if sha256_of(weights) != session.run.parent.weights:
        raise UsageError(f"weights: {keys.weights} differs between machines: expected the same file everywhere")
    replace(session, weights=weights, say=say, world=world_of_group()).train(ray.get(task.found), compute)


def world_of_group() -> WorkerRank:
    """Return this worker's rank. Its collective operations use torch's process group."""
    context = get_context()

    def add(values: Tensor) -> Tensor:
        dist.all_reduce(values)
        return values

    def gather(value: Any) -> list[Any]:
        gathered = [None] * context.get_world_size()
        dist.all_gather_object(gathered, value)
        return gathered

    return WorkerRank(context.get_world_rank(), context.get_world_size(), add, gather, context.get_local_rank())


class _LogStream(io.StringIO):
    """Stream that forwards log lines to `say`."""

    def __init__(self, say: Say) -> None:
        super().__init__()
        self._say = say

    def write(self, text: str) -> int:
        """Forward a line."""
        if text.strip():
            self._say(text.rstrip("\n"))
        return len(text)


class DeathPolicy(UserCallback):  # type: ignore[misc] # Ray has no types here
    """Policy that Ray Train's controller applies when workers fail. An exception that it raises ends the run.

    A `SegmintError` would occur again, so it ends the run. After any other failure, such as a kill, Ray Train restarts
    all workers.
    """

    def __init__(self, output: Location, run: str, lines: Any) -> None:
        """Store the output and `run`, the fingerprint that the run's checkpoints contain."""
        self._output = output
        self._run = run
        self._lines = lines
        self._step = -1
        self._count = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise an error that ends the run, or count the death of a worker."""
        for _, error in sorted(worker_exceptions.items()):
            if isinstance(error, SegmintError):
                raise error
        # When a worker dies, the others fail as well, because they wait for it.
        dead = {rank: error for rank, error in worker_exceptions.items() if is_worker_death(error)}
        rank, error = min((dead or worker_exceptions).items())
        why = f"worker {rank} of the training ended: {last_line(error)}"
        found = [each.step for each in list_checkpoints(self._output / CHECKPOINTS) if each.run == self._run]
        step = max(found, default=0)
        self._count = self._count + 1 if step == self._step else 1
        self._step = step
        if self._count >= MOST_DEATHS:
            raise UnfinishedError(
                f"{why}. Workers ended {self._count} times since the checkpoint of step {step}, so no more are "
                "started. Check their memory and Ray's logs. The same command resumes from that checkpoint"
            )
        self._lines.put.remote(f"{why}; restarting all workers")
