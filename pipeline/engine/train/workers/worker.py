"""What runs in a worker of Ray Train, and in its controller once one has ended."""

import contextlib
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch.distributed as dist
from ray.train import UserCallback, get_context
from ray.train.torch import get_device
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from torch import Tensor

from segmint.infra import log
from segmint.infra.assets.cache import sha256_of
from segmint.infra.assets.resolve import resolve
from segmint.infra.device import apply_compute, resolve_compute
from segmint.infra.errors import SegmintError, UnfinishedError, UsageError, last_line
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.engine.train.checkpoints import CHECKPOINTS, list_checkpoints
from segmint.pipeline.engine.train.session import Say, TrainingSession
from segmint.pipeline.engine.train.world import WorkerRank

_DEAD = (WorkerHealthCheckFailedError, ray.exceptions.RayActorError)

MOST_DEATHS = 3
"""The run ends where workers die so often without a new checkpoint between: another start would end the same way."""


class LogLines:
    """A Ray actor that holds lines for people until the driver prints them: Ray copies no worker's output there."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def put(self, line: str) -> None:
        """Add a line."""
        self._lines.append(line)

    def take(self) -> list[str]:
        """Return the lines that were not taken before."""
        lines, self._lines = self._lines, []
        return lines


@dataclass(frozen=True)
class WorkerTask:
    """What every worker is given. `session` has no `say`, and the weights' file of the driver's machine.

    `found` refers to a `Found` in Ray's object store.
    """

    session: TrainingSession
    found: Any
    lines: Any  # the handle of a `LogLines`
    as_json: bool  # whether log lines are JSON


def work(config: Mapping[str, WorkerTask]) -> None:
    """Take part in a run: what Ray Train calls in each worker."""
    task = config["task"]
    session, keys = task.session, task.session.config
    say = _sayer(task.lines)
    log.configure(json=task.as_json, stream=_LogStream(say))
    device = str(get_device()) if keys.resources.gpus_per_worker == 1 else "cpu"
    compute = resolve_compute(device, keys.precision, keys.resources.threads)
    apply_compute(compute)
    weights = resolve(keys.weights, mirror=keys.assets, storage=Storage(keys.storage))
    if sha256_of(weights) != session.run.parent.weights:
        raise UsageError(f"weights: {keys.weights} is another file on another machine: expected the same everywhere")
    replace(session, weights=weights, say=say, world=world_of_group()).train(ray.get(task.found), compute)


def world_of_group() -> WorkerRank:
    """This worker among the others, by torch's process group."""
    context = get_context()

    def add(values: Tensor) -> Tensor:
        dist.all_reduce(values)
        return values

    def gather(value: Any) -> list[Any]:
        gathered = [None] * context.get_world_size()
        dist.all_gather_object(gathered, value)
        return gathered

    return WorkerRank(context.get_world_rank(), context.get_world_size(), add, gather, context.get_local_rank())


def _sayer(lines: Any) -> Say:
    def say(line: str) -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # a line that is lost ends no training
            ray.get(lines.put.remote(line))

    return say


class _LogStream(io.StringIO):
    """A stream for log lines."""

    def __init__(self, say: Say) -> None:
        super().__init__()
        self._say = say

    def write(self, text: str) -> int:
        """Say a line."""
        if text.strip():
            self._say(text.rstrip("\n"))
        return len(text)


class DeathPolicy(UserCallback):  # type: ignore[misc] # Ray has no types here
    """Decides in Ray Train's controller what a worker's end means: what is raised here ends the run.

    An error that a user has to know about would come again; after anything else, such as a kill, Ray Train starts all
    workers again.
    """

    def __init__(self, output: Location, run: str, lines: Any) -> None:
        """`run` is the fingerprint that the checkpoints have."""
        self._output = output
        self._run = run
        self._lines = lines
        self._step = -1
        self._count = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the error that ends the run, or count a death."""
        for _, error in sorted(worker_exceptions.items()):
            if isinstance(error, SegmintError):
                raise error
        # The others fail as they wait for the one that died.
        dead = {rank: error for rank, error in worker_exceptions.items() if isinstance(error, _DEAD)}
        rank, error = min((dead or worker_exceptions).items())
        why = f"worker {rank} of the training ended: {last_line(error)}"
        found = [each.step for each in list_checkpoints(self._output / CHECKPOINTS) if each.run == self._run]
        step = max(found, default=0)
        self._count = self._count + 1 if step == self._step else 1
        self._step = step
        if self._count >= MOST_DEATHS:
            raise UnfinishedError(
                f"{why}. Workers ended {self._count} times since the checkpoint of step {step}, so no more are "
                "started. Look at their memory and at Ray's logs; the same command goes on from that checkpoint"
            )
        self._lines.put.remote(f"{why}; all workers start again")


def stderr_is_json() -> bool:
    """Whether log lines here are JSON."""
    return not sys.stderr.isatty()
