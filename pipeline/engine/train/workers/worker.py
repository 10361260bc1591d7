"""Code that runs in a Ray Train worker, and the controller's policy for workers that have ended."""

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch.distributed as dist
from ray.train import UserCallback, get_context
from ray.train.torch import get_device
from torch import Tensor

from segmint.infra import log
from segmint.infra.assets.cache import sha256_of
from segmint.infra.assets.resolve import resolve
from segmint.infra.device import apply_compute, resolve_compute
from segmint.infra.errors import SegmintError, UnfinishedError, UsageError, last_line
from segmint.infra.ray_internals import is_worker_death
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.engine.train.checkpoints import CHECKPOINTS, list_checkpoints
from segmint.pipeline.engine.train.session import Say, TrainingSession
from segmint.pipeline.engine.train.world import WorkerRank

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
