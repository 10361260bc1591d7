"""Ray's internals: the only module that uses parts of Ray that aren't public, and that knows how its versions differ.

ruff bans Ray's private modules in all other files. This module imports Ray Data, so commands that may run without Ray
import it inside functions. Before you allow another version of Ray in pyproject.toml, run the tests marked `ray` with
that version.
"""

import contextlib
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray.data
import ray.exceptions
from ray._private import ray_constants, utils
from ray._private.node import Node
from ray._raylet import Config  # type: ignore[attr-defined]
from ray.data._internal import stats
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)
from ray.data._internal.execution.execution_callback import ExecutionCallback as ExecutionCallback
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from segmint.infra.stopping import reinstall_handlers

_THREAD_S = 60.0
"""Maximum time in seconds to wait for a thread of Ray Data before Ray shuts down. An interrupted command has less."""

_BATCH_THREADS = ("iter_threaded", "map_tp_")
"""Prefixes of the names of threads that prefetch batches, in current and older versions of Ray."""

_BATCH_S = 1.0
"""Maximum time in seconds to wait for such a thread. One that takes longer waits for its consumer, not for Ray."""

_WAITING_KEY = "segmint.waiting_blocks"


def require_token() -> None:
    """Make local Ray instances that start later require Ray's token, unless `RAY_AUTH_MODE` is set.

    Only newer versions do so by default. A process reads the setting when it imports Ray, so this reads it again.
    """
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        Config.initialize("")


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Keep our SIGTERM handler while Ray starts or stops.

    Ray replaces the handler, even in native code. When Ray shuts down, it resets the signal before it stops its
    processes.
    """
    before = utils.set_sigterm_handler, Node.kill_all_processes
    if reinstall_handlers():
        utils.set_sigterm_handler = lambda _: None
        Node.kill_all_processes = lambda *args, **kwargs: reinstall_handlers() and before[1](*args, **kwargs)
    try:
        yield
    finally:
        utils.set_sigterm_handler, Node.kill_all_processes = before
        reinstall_handlers()


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Make local Ray instances that start in this context listen only on 127.0.0.1.

    This is Ray's default on macOS and Windows. A process reads the setting when it imports Ray, so this changes it both
    here and in the environment of the processes that Ray starts.
    """
    switch = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    before = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(switch)
    ray_constants.ENABLE_RAY_CLUSTER, os.environ[switch] = False, "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before[0]
        if before[1] is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before[1]


_HELPERS = ("start_log_monitor", "start_monitor", "start_api_server")
"""Methods of Ray's node that start optional processes: one forwards worker logs to the driver, one runs the autoscaler,
and one serves the dashboard."""


def without_helpers() -> contextlib.AbstractContextManager[None]:
    """Skip the processes that a local Ray instance doesn't need. Each takes 80 MB and one second of CPU time to start.

    Ray has no public option for this.
    """
    return _replaced(Node, dict.fromkeys(_HELPERS, lambda *_, **__: None))


@contextlib.contextmanager
def _replaced(owner: object, functions: Mapping[str, object]) -> Iterator[None]:
    """Replace functions of a class in this context. The class itself must define all of them."""
    before = {name: vars(owner)[name] for name in functions}
    for name, function in functions.items():
        setattr(owner, name, function)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(owner, name, function)


_STATISTICS: Mapping[str, Callable[..., object]] = {
    "gen_dataset_id_from_stats_actor": lambda: uuid.uuid4().hex,  # Ray Data does the same if the actor fails
    "register_dataset_to_stats_actor": lambda *_, **__: None,
    "update_execution_metrics": lambda *_, **__: None,
    "update_iteration_metrics": lambda *_, **__: None,
}
"""Replacements for the functions of Ray Data's `_StatsManager` that use its statistics actor."""


def without_statistics() -> contextlib.AbstractContextManager[None]:
    """Prevent Ray Data from starting its statistics actor, which feeds a dashboard that we don't start.

    Starting the actor takes two seconds of CPU time, and Ray has no public option to turn it off. Functions that this
    version of Ray Data lacks are skipped.
    """
    manager = getattr(stats, "_StatsManager", object)
    return _replaced(manager, {name: staticmethod(new) for name, new in _STATISTICS.items() if name in vars(manager)})


def end_executions() -> None:
    """End the threads of Ray Data's executions in this process, which may outlive an interrupted execution.

    If such a thread used Ray while it shuts down, Ray would end this process at once, with exit code 1.
    """
    for thread in threading.enumerate():
        if isinstance(thread, StreamingExecutor):
            with contextlib.suppress(Exception):  # Ray may already be gone
                thread.shutdown(force=False)
            thread.join(_THREAD_S)
    for thread in threading.enumerate():
        if thread.name.startswith(_BATCH_THREADS):
            thread.join(_BATCH_S)


def accelerator_type(gpu: str) -> str | None:
    """Return the name that Ray gives to the kind of a GPU whose driver calls it `gpu`."""
    from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager

    name: str | None = NvidiaGPUAcceleratorManager._gpu_name_to_accelerator_type(gpu)
    return name


def session_name() -> str:
    """Return the name of the connected Ray's session, which its processes have on their command lines."""
    name: str = ray._private.worker.global_worker.node.session_name
    return name


def kuberay_cluster(namespace: str, name: str) -> dict[str, Any]:
    """Return a RayCluster resource. The head pod of a cluster may read its own."""
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

    resource: dict[str, Any] = KubernetesHttpApiClient(namespace).get(f"rayclusters/{name}")
    return resource


def autoscaling_config(ray_cluster: dict[str, Any]) -> dict[str, Any]:
    """Derive the autoscaler's configuration from a RayCluster resource."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    config: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(ray_cluster)
    return config


def iter_blocks(dataset: ray.data.Dataset) -> Iterator[tuple[Any, int]]:
    """Execute `dataset` and yield each block in order, as a reference with the block's number of rows.

    The driver never fetches a block.
    """
    for bundle in dataset.iter_internal_ref_bundles():
        for entry in bundle.blocks:
            # Before Ray 2.56, an entry is a tuple.
            reference, metadata = entry if isinstance(entry, tuple) else (entry.ref, entry.metadata)
            yield reference, metadata.num_rows


def call_back(context: ray.data.DataContext, callback: type[ExecutionCallback]) -> None:
    """Make Ray Data call only this class of ours at each step of the executions that start with `context`."""
    if hasattr(context, "custom_execution_callback_classes"):
        context.custom_execution_callback_classes = [callback]
    else:  # before Ray 2.56
        context.set_config("execution_callbacks", [callback()])


def operators_of(executor: StreamingExecutor) -> Iterator[tuple[str, int, float]]:
    """Yield the operators of an execution: name, rows that left it, and seconds that its workers spent on blocks."""
    for operator in executor._topology:
        yield operator.name, operator.metrics.row_outputs_taken, operator.metrics.block_generation_time


def limit_waiting_blocks(context: ray.data.DataContext, most: int) -> None:
    """Let at most about `most` blocks wait for an operator in the executions that start with `context`."""
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*ENABLED_BACKPRESSURE_POLICIES, WaitingBlocks])
    context.set_config(_WAITING_KEY, most)


class WaitingBlocks(BackpressurePolicy):  # type: ignore[misc]
    """Policy that stops an operator's input while too many blocks wait for the next operator.

    Each waiting block takes several kilobytes of the driver's memory. Read tasks run one at a time, because each task
    produces many blocks. A test checks that Ray calls the policy.
    """

    def can_add_input(self, op: Any) -> bool:
        """Return whether the operator may start another task."""
        reads, cuts = op.name.startswith("Read"), op.name.startswith("StreamingRepartition")
        if (reads or cuts) and op.num_active_tasks():
            return False
        followers = [self._topology[follower] for follower in op.output_dependencies]
        if reads:
            # A read's rows stay one block until Ray Data cuts them. The remainder then waits for the next read's rows.
            return not any(queue.num_blocks for state in followers for queue in state.input_queues)
        most = self._data_context.get_config(_WAITING_KEY)
        return all(state.total_enqueued_input_blocks() < most for state in followers)


def is_worker_death(error: BaseException) -> bool:
    """Return whether an error of Ray Train's worker says that its process or node died."""
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    return isinstance(error, WorkerHealthCheckFailedError | ray.exceptions.RayActorError)
