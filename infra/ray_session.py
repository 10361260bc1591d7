"""Ray sessions: start a local Ray instance or join a cluster. No other module does this."""

import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from segmint.infra.device import cores_here
from segmint.infra.errors import UnfinishedError, UsageError
from segmint.infra.log import get_logger
from segmint.infra.node_groups import GPU_KIND, belongs, gpu_kind, node_groups, with_gpu_kind
from segmint.infra.scratch import ScratchFolder
from segmint.infra.stopping import uninterrupted
from segmint.infra.wording import open_stream

MIN_LOCAL_CPUS = 8
"""Minimum number of logical CPUs of a local Ray instance. On larger machines, Ray gets two per core, plus four. Each
stage needs slots to run in parallel with the others, but most stages wait more than they compute."""


RETRIES = 16
"""Maximum number of times that Ray restarts an actor or retries a block. Without a limit, it would retry forever."""


_ONE_ARENA = ("MALLOC_ARENA_MAX", "1")
"""Environment variable that limits workers to one malloc arena. Ray calls actors in threads, and glibc gives each
thread an arena of 64 MB. Memory that doesn't fit is mapped again each time, which costs 250 MB of fresh pages per
image. The main arena keeps freed memory instead."""


NAME_GPUS = f"""Name unnamed GPUs when you start their nodes: ray start --resources='{{"{GPU_KIND}NAME": 1}}'"""
"""Advice for users who request a GPU kind by name when Ray doesn't name the kind of every GPU."""


STORE_S = 5.0
"""Seconds between two checks of a local instance's control store."""


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

    from segmint.infra.ray_internals import end_executions, own_signals, without_statistics

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
            stack.enter_context(without_statistics())
        ended = threading.Event()
        try:
            with uninterrupted(), own_signals():
                _start(address, target, folder, object_store_memory)
            if local:
                store = ray.get_runtime_context().gcs_address
                threading.Thread(target=_stop_without_store, args=(store, ended), name="store", daemon=True).start()
            yield observe(local=local)
        finally:
            ended.set()
            with uninterrupted(), own_signals():
                end_executions()
                ray.shutdown()


def _start(address: str, target: str, folder: Path | None, object_store_memory: int | None) -> None:
    """Start a local Ray instance with its files in `folder`, or join the cluster at `target`.

    If `folder` is None, a local instance uses its default folder. Raises `UsageError` if the place doesn't work, and
    `UnfinishedError` if this machine is too slow.
    """
    import ray

    from segmint.infra.ray_internals import on_loopback, require_token, without_helpers

    with warnings.catch_warnings(), without_native_output():
        warnings.simplefilter("ignore")
        try:
            if target == "local":
                keep_token_private()
                require_token()
                with on_loopback(), without_helpers():
                    ray.init(
                        address="local",
                        num_cpus=_local_cpus(),
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
        except Exception as error:
            if "timed out during startup" not in str(error):  # Ray raises a plain exception
                raise
            raise UnfinishedError(
                "Ray didn't start in time on this machine, which may be overloaded. Run the same command again"
            ) from error


def _stop_without_store(address: str, ended: threading.Event) -> None:
    """Stop this process, as SIGTERM does, if nothing listens at `address` anymore before `ended` is set.

    Without its control store, Ray ends the process after a minute, with exit code 1 and without a message.
    """
    host, _, port = address.rpartition(":")
    while not ended.wait(STORE_S):
        try:
            socket.create_connection((host, int(port)), timeout=STORE_S).close()
        except ConnectionRefusedError:
            if not ended.is_set():
                get_logger("ray").error("Ray's control store died; the machine may be out of memory")
                os.kill(os.getpid(), signal.SIGTERM)
            return
        except OSError:
            continue  # such as a timeout on an overloaded machine


def _local_cpus() -> int:
    return max(MIN_LOCAL_CPUS, 2 * cores_here() + 4)


def keep_token_private() -> None:
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
def without_native_output() -> Iterator[None]:
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


def local_cluster(gpus: int) -> Cluster:
    """Return the resources of a local Ray instance on this machine, which has `gpus` GPUs, without starting it."""
    return _sum([{"CPU": _local_cpus(), "GPU": gpus}], local=True)


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
    from segmint.infra.ray_internals import accelerator_type

    name = gpu.partition(",")[0]
    names = accelerator_type(f"NVIDIA {name}"), accelerator_type(name)
    return {each for each in names if each is not None}


def alive_nodes() -> frozenset[str]:
    """Return the IDs of the live nodes of the connected Ray."""
    import ray

    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])


PREFIX = "segmint-ray-"
LONGEST_PARENT = 18
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
        if len(parent) > LONGEST_PARENT:
            parent = "/tmp"
        scratch = ScratchFolder(parent, PREFIX)
        (Path(scratch.name) / "r").mkdir()
    except OSError as error:
        raise UsageError(
            f"Ray's folder on this machine can't be created: {error}. Set RAY_TMPDIR to a folder that you can write"
        ) from error
    with scratch as name:
        yield Path(name) / "r"
