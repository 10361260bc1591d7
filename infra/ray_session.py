"""Ray sessions: start a local Ray instance or join a cluster. No other module does this."""

import contextlib
import json
import logging
import os
import secrets
import socket
import sys
import tempfile
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from segmint.infra.errors import UsageError
from segmint.infra.node_groups import GPU_KIND, belongs, gpu_kind, node_groups, with_gpu_kind
from segmint.infra.scratch import ScratchFolder
from segmint.infra.stopping import reinstall_handlers, uninterrupted
from segmint.infra.wording import open_stream

MIN_LOCAL_CPUS = 8
"""Minimum number of logical CPUs of a local Ray instance. On larger machines, Ray gets two per core, plus four. Each
stage needs slots to run in parallel with the others, but most stages wait more than they compute."""


_THREAD_S = 60.0
"""Maximum time in seconds to wait for a thread of Ray Data before Ray shuts down. An interrupted command has less."""


RETRIES = 16
"""Maximum number of times that Ray restarts an actor or retries a block. Without a limit, it would retry forever."""


_ONE_ARENA = ("MALLOC_ARENA_MAX", "1")
"""Environment variable that limits workers to one malloc arena. Ray calls actors in threads, and glibc gives each
thread an arena of 64 MB. Memory that doesn't fit is mapped again each time, which costs 250 MB of fresh pages per
image. The main arena keeps freed memory instead."""


NAME_GPUS = f"""Name unnamed GPUs when you start their nodes: ray start --resources='{{"{GPU_KIND}NAME": 1}}'"""
"""Advice for users who request a GPU kind by name when Ray doesn't name the kind of every GPU."""


@dataclass(frozen=True)
class GpuNodes:
    """Group of nodes whose GPUs are of the same kind."""

    gpus: float
    nodes: int
    cpus: float  # logical CPUs of these nodes


@dataclass(frozen=True)
class Cluster:
    """Resources of the Ray cluster that this process is connected to."""

    local: bool  # True if this process started it on this machine
    cpus: float  # logical CPUs of all nodes
    gpus: float
    nodes: int  # nodes with CPUs; a cluster's head node often has none
    cores: int  # CPU cores that this process may use; on a cluster, the cores of the driver's node
    gpu_nodes: int = 0  # nodes with GPUs
    gpu_node_cpus: float = 0.0  # logical CPUs of the nodes with GPUs
    gpu_kinds: Mapping[str, GpuNodes] = field(default_factory=dict)  # by Ray's name; "" for GPUs that Ray doesn't name
    grown: "Cluster | None" = None  # including all nodes that the autoscaler may add; None if it can't add any

    @property
    def most_workers(self) -> int:
        """Maximum number of one-CPU workers that can run at once. A local instance has more logical CPUs than cores."""
        return max(1, self.cores if self.local else int(self.cpus))

    @property
    def names_gpus(self) -> bool:
        """True if Ray names the kind of at least one GPU. A stage can only request a GPU kind by this name."""
        return any(self.gpu_kinds)

    @property
    def has_unnamed_gpus(self) -> bool:
        """True if Ray doesn't name the kind of some GPUs."""
        return "" in self.gpu_kinds


def cores_here() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def joins_cluster(address: str) -> bool:
    """Return whether `ray_session(address)` would join a running cluster. Doesn't import Ray."""
    ray = sys.modules.get("ray")
    return (ray is not None and ray.is_initialized()) or _target(address) != "local"


def _target(address: str) -> str:
    return os.environ.get("RAY_ADDRESS", "local") if address == "auto" else address


@contextlib.contextmanager
def ray_session(address: str = "auto", *, object_store_memory: int | None = None) -> Iterator[Cluster]:
    """Join the cluster at `address`, or start a local Ray instance. On exit, disconnect or stop the instance.

    "auto" joins the cluster whose address is in the environment variable `RAY_ADDRESS`, or starts a local instance if
    the variable isn't set. "local" always starts a local instance. A local instance stores its files in a private
    folder, which is deleted on exit unless you set `RAY_TMPDIR`. `object_store_memory`, in bytes, applies only to a
    local instance. Raises `UsageError` if the cluster can't be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's core prints its own log lines to the terminal, but everything that matters is also in Ray's log folder.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if _target(address) == "local":
        os.environ.setdefault(*_ONE_ARENA)
        # By default, Ray's control store keeps the history of up to 100,000 tasks for the dashboard, at 4 KB per task.
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    import ray

    # Ray Data raises these errors, so it doesn't need to print their tracebacks as well.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    # Ray Data has no other way to limit actor restarts. Check this again when you upgrade the pinned Ray.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    # A short run has fewer blocks than actors, and users can't change the setting that the warning suggests.
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")
    if ray.is_initialized():
        yield observe(local=False)
        return
    target = _target(address)
    local = target == "local"
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(private_folder()) if local else None
        if local:
            stack.enter_context(_without_statistics())
        try:
            with uninterrupted(), _with_own_signals():
                _start(address, target, folder, object_store_memory)
            yield observe(local=local)
        finally:
            with uninterrupted(), _with_own_signals():
                _end_executions()
                ray.shutdown()


def _start(address: str, target: str, folder: Path | None, object_store_memory: int | None) -> None:
    """Start a local Ray instance with its files in `folder`, or join the cluster at `target`.

    If `folder` is None, a local instance uses its default folder.
    """
    import ray

    with warnings.catch_warnings(), _without_native_output():
        warnings.simplefilter("ignore")
        try:
            if target == "local":
                _keep_token_private()
                with _on_loopback(), _without_helpers():
                    ray.init(
                        address="local",
                        num_cpus=max(MIN_LOCAL_CPUS, 2 * cores_here() + 4),
                        object_store_memory=object_store_memory,
                        _temp_dir=None if folder is None else str(folder),
                        include_dashboard=False,
                        configure_logging=True,
                        logging_level=logging.ERROR,
                        log_to_driver=False,
                    )
            else:
                _check_answers(target)
                ray.init(
                    address=target,
                    runtime_env=_runtime_env(),
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
        except OSError as error:
            if target == "local":
                place = os.environ.get("RAY_TMPDIR") if folder is None else folder
                raise UsageError(
                    f"Ray can't start on this machine: {error}. Ray's folder is {place}. If it can't be written or its "
                    "disk is full, set RAY_TMPDIR to another folder"
                ) from error
            raise UsageError(
                f"resources.address is {address!r}, but no Ray cluster responds at {target!r}: {error}. "
                "Start one, use another address, or use 'local'"
            ) from error


def _end_executions() -> None:
    """End the threads of Ray Data's executions in this process, which may outlive an interrupted execution.

    If such a thread used Ray while it shuts down, Ray would end this process at once, with exit code 1.
    """
    execution = sys.modules.get("ray.data._internal.execution.streaming_executor")
    if execution is None:
        return
    for thread in threading.enumerate():
        if isinstance(thread, execution.StreamingExecutor):
            with contextlib.suppress(Exception):  # Ray may already be gone
                thread.shutdown(force=False)
            thread.join(_THREAD_S)


@contextlib.contextmanager
def _with_own_signals() -> Iterator[None]:
    """Keep our SIGTERM handler while Ray starts or stops.

    Ray replaces the handler, even in native code. When Ray shuts down, it resets the signal before it stops its
    processes.
    """
    from ray._private import utils
    from ray._private.node import Node

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
def _on_loopback() -> Iterator[None]:
    """Make local Ray instances that start in this context listen only on 127.0.0.1.

    This is Ray's default on macOS and Windows. A process reads the setting when it imports Ray, so this changes it both
    here and in the environment of the processes that Ray starts.
    """
    from ray._private import ray_constants

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


def _without_helpers() -> contextlib.AbstractContextManager[None]:
    """Skip the processes that a local Ray instance doesn't need. Each takes 80 MB and one second of CPU time to start.

    Ray has no public option for this.
    """
    from ray._private.node import Node

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


def _without_statistics() -> contextlib.AbstractContextManager[None]:
    """Prevent Ray Data from starting its statistics actor, which feeds a dashboard that we don't start.

    Starting the actor takes two seconds of CPU time, and Ray has no public option to turn it off. If Ray Data isn't
    imported, nothing changes. Functions that this version of Ray Data lacks are skipped.
    """
    if "ray.data" not in sys.modules:
        return contextlib.nullcontext()
    from ray.data._internal import stats

    manager = getattr(stats, "_StatsManager", object)
    return _replaced(manager, {name: staticmethod(new) for name, new in _STATISTICS.items() if name in vars(manager)})


def _keep_token_private() -> None:
    """Create a local Ray instance's auth token so that only its owner can read it.

    Anyone with the token can run code in that instance, and by default, Ray makes the token readable by all users. If
    the environment contains Ray's own authentication settings, they take precedence. If there is no home folder, or one
    that can't be written, this process and the instance's processes share a token in their environment instead.
    """
    if any(name.startswith("RAY_AUTH_") for name in os.environ):
        return
    try:
        path = Path.home() / ".ray" / "auth_token"
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.touch(mode=0o600)
        path.chmod(0o600)
        if not path.stat().st_size:
            path.write_text(secrets.token_hex(32), encoding="ascii")
    except (OSError, RuntimeError):  # RuntimeError: no home folder
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


SUBMITTED_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable that passes a job's configuration to a driver started by `ray job submit`."""

_EXCLUDES = [
    ".git",
    ".venv",
    "demo",
    "data",
    "bundle",
    "bundle-ray",
    "tests",
    "/pipeline",  # Ray follows symbolic links in segmint/, and these five folders are linked there
    "/operators",
    "/model",
    "/catalogs",
    "/infra",
    "*.tar",
    "*.parquet",
    "*.pt",
    "*.pth",
    "*.onnx",
]


@contextlib.contextmanager
def _without_native_output() -> Iterator[None]:
    """Discard the terminal output of Ray's native code during startup. Errors are still raised as exceptions."""
    open_stream(sys.stderr).flush()
    try:
        terminal = os.dup(2)
    except OSError:  # standard error is closed
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a descriptor is needed
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def _check_answers(address: str) -> None:
    """Raise `OSError` if nothing listens at `address`. Without this check, Ray would wait for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _runtime_env() -> dict[str, Any] | None:
    """Return the runtime environment for cluster workers, or None if they don't need one.

    If segmint runs from a checkout, workers get that checkout. Workers don't need it if segmint is an installed
    package. They don't need it either if `ray job submit --working-dir` started the driver: its workers already run in
    that folder, and Ray rejects a second one.
    """
    checkout = Path(__file__).resolve().parent.parent
    submitted = json.loads(os.environ.get(SUBMITTED_JOB) or "{}").get("runtime_env") or {}
    if not (checkout / "pyproject.toml").is_file() or "working_dir" in submitted:
        return None
    given = submitted.get("env_vars", {})
    added = {name: value for name, value in (("OMP_WAIT_POLICY", "PASSIVE"), _ONE_ARENA) if name not in given}
    return {"working_dir": str(checkout), "excludes": _EXCLUDES, "env_vars": added}


def observe(*, local: bool) -> Cluster:
    """Return the current resources of the connected Ray. They change as nodes join and leave."""
    import ray

    return _sum([node["Resources"] for node in ray.nodes() if node["Alive"]], local=local)


def observe_growth() -> Cluster:
    """Return the connected cluster's current resources. `grown` adds the nodes that its autoscaler can still start."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    now = [node["Resources"] for node in nodes]
    missing = [
        group.resources
        for group in with_gpu_kind(node_groups(), nodes)
        for _ in range(group.most - sum(belongs(node, group) for node in nodes))
    ]
    cluster = _sum(now, local=False)
    return replace(cluster, grown=_sum([*now, *missing], local=False)) if missing else cluster


def _sum(nodes: Sequence[Mapping[str, float]], *, local: bool) -> Cluster:
    """Add up the resources of these nodes."""
    with_gpus = [node for node in nodes if node.get("GPU", 0) > 0]
    return Cluster(
        local=local,
        cpus=sum(node.get("CPU", 0.0) for node in nodes),
        gpus=sum(node.get("GPU", 0.0) for node in nodes),
        nodes=sum(node.get("CPU", 0) > 0 for node in nodes),
        cores=cores_here(),
        gpu_nodes=len(with_gpus),
        gpu_node_cpus=sum(node.get("CPU", 0.0) for node in with_gpus),
        gpu_kinds=_by_kind(with_gpus),
    )


def _by_kind(with_gpus: Sequence[Mapping[str, float]]) -> dict[str, GpuNodes]:
    kinds: dict[str, GpuNodes] = {}
    for node in with_gpus:
        before = kinds.get(gpu_kind(node), GpuNodes(0, 0, 0))
        kinds[gpu_kind(node)] = GpuNodes(
            before.gpus + node["GPU"], before.nodes + 1, before.cpus + node.get("CPU", 0.0)
        )
    return kinds


def accelerator_types(gpu: str) -> set[str]:
    """Return the names that Ray may use for a GPU kind as returned by `segmint.infra.device.device_kind`.

    Ray derives its name from the GPU's name in the driver. `device_kind` removes the vendor from that name, so the set
    contains the names that Ray derives with and without the vendor.
    """
    from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager

    name = gpu.partition(",")[0]
    name_of = NvidiaGPUAcceleratorManager._gpu_name_to_accelerator_type
    return {name_of(f"NVIDIA {name}"), name_of(name)}


def alive_nodes() -> frozenset[str]:
    """Return the IDs of the live nodes of the connected Ray."""
    import ray

    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])


PREFIX = "segmint-ray-"
_LONGEST_PARENT = 18
"""Maximum length in characters of the parent folder's path. Socket paths can have 107 characters; Ray uses 64 of them
below its folder, and our two folders use 23."""


@contextlib.contextmanager
def private_folder() -> Iterator[Path | None]:
    """Create a private folder for Ray, and delete it on exit. If `RAY_TMPDIR` is set, yield None instead.

    Ray makes its folder writable for everyone, so this folder is inside another one that only this user can enter. The
    outer folder is in the system's temporary folder, or in /tmp if that path is too long. Before it creates the folder,
    this function deletes the folders of killed processes. A live process holds a lock on its folder, so an unlocked
    folder is a leftover. Raises `UsageError` if the folder can't be created.
    """
    if os.environ.get("RAY_TMPDIR"):
        yield None
        return
    try:
        parent = tempfile.gettempdir()
        if len(parent) > _LONGEST_PARENT:
            parent = "/tmp"
        scratch = ScratchFolder(parent, PREFIX)
        (Path(scratch.name) / "r").mkdir()
    except OSError as error:
        raise UsageError(
            f"Ray's folder on this machine can't be created: {error}. Set RAY_TMPDIR to a folder that you can write"
        ) from error
    with scratch as name:
        yield Path(name) / "r"
