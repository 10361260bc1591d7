"""Starting or joining Ray; nothing else does."""

import contextlib
import fcntl
import json
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segmint.infra.errors import UsageError

MIN_LOCAL_CPUS = 8
"""Logical CPUs of a local Ray, unless two a core plus four are more: stages need slots to run in parallel, and most of
them wait rather than compute."""


RETRIES = 16
"""The most restarts of an actor and retries of a block; without a bound Ray would go on forever."""


_ONE_ARENA = ("MALLOC_ARENA_MAX", "1")
"""In the environment of workers. Ray calls actors in threads, and glibc maps what does not fit into a thread's arena of
64 MB again each time: a quarter of a gigabyte of fresh pages an image. The main arena keeps freed memory."""


_KIND = "accelerator_type:"
"""Begins the name of the resource by which Ray says the kind of a node's GPUs: `accelerator_type:H100`."""

NAME_GPUS = f"""GPUs that Ray does not name get a name with their nodes: ray start --resources='{{"{_KIND}NAME": 1}}'"""
"""What to do where a kind is asked for by its name, and there are GPUs without one."""


@dataclass(frozen=True)
class GpuNodes:
    """Nodes whose GPUs are of one kind."""

    gpus: float
    nodes: int
    cpus: float  # logical CPUs of these nodes


@dataclass(frozen=True)
class Cluster:
    """The resources of the connected Ray."""

    local: bool  # whether we started it, on this machine
    cpus: float  # logical CPUs of all nodes
    gpus: float
    nodes: int  # that have CPUs; the head of a cluster often has none
    cores: int  # CPU cores that this process may run on; on a cluster, those of the driver's node
    gpu_nodes: int = 0  # that have GPUs
    gpu_node_cpus: float = 0.0  # logical CPUs of these nodes
    gpu_kinds: Mapping[str, GpuNodes] = field(default_factory=dict)  # by Ray's name; "" where it names none

    @property
    def most_workers(self) -> int:
        """How many workers of one CPU can work at once: a local Ray is given more logical CPUs than there are cores."""
        return max(1, self.cores if self.local else int(self.cpus))

    @property
    def names_gpus(self) -> bool:
        """Whether Ray names the kind of any GPU: it can only be asked for by that name."""
        return any(self.gpu_kinds)

    @property
    def has_unnamed_gpus(self) -> bool:
        """Whether there are GPUs whose kind Ray does not name."""
        return "" in self.gpu_kinds


def cores_here() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def joins_cluster(address: str) -> bool:
    """Whether `ray_session(address)` joins a Ray that is already running; does not import Ray."""
    ray = sys.modules.get("ray")
    return (ray is not None and ray.is_initialized()) or _target(address) != "local"


def _target(address: str) -> str:
    return os.environ.get("RAY_ADDRESS", "local") if address == "auto" else address


@contextlib.contextmanager
def ray_session(address: str = "auto", *, object_store_memory: int | None = None) -> Iterator[Cluster]:
    """Join the cluster at `address`, or start a local Ray; at the end, disconnect or stop it.

    "auto" joins the cluster in `RAY_ADDRESS`, and is local without it; "local" is always local. A local Ray has a
    private folder, deleted at the end, unless `RAY_TMPDIR` names another.
    `object_store_memory` (bytes) is for a local Ray only. Raises `UsageError` when no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's core writes its own log lines to the terminal; its folder of logs keeps what matters.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if _target(address) == "local":
        os.environ.setdefault(*_ONE_ARENA)
        # Ray's control store would keep the history of each task for a dashboard, 4 KB for up to 100,000 of them.
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    import ray

    # Ray Data prints the traceback of an error that it also raises.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    # Nothing else limits how often Ray Data restarts an actor; check for another way when the pinned Ray is upgraded.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    if ray.is_initialized():
        yield observe(local=False)
        return
    target = _target(address)
    local = target == "local"
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(private_folder()) if local else None
        _start(address, target, folder, object_store_memory)
        try:
            yield observe(local=local)
        finally:
            ray.shutdown()


def _start(address: str, target: str, folder: Path | None, object_store_memory: int | None) -> None:
    """Start a local Ray, whose files go to `folder` (None: to Ray's own), or join the cluster at `target`."""
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
            raise UsageError(
                f"resources.address is {address!r}, and no Ray cluster answers at {target!r}: {error}. "
                "Start one, name another, or use 'local'"
            ) from error


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Make a Ray that starts in this block listen on 127.0.0.1 only.

    Ray does so by default on macOS and Windows. The switch is read when Ray is imported, here and in its processes.
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
"""Methods of Ray's node: they start what copies the workers' logs to the driver, scales a cluster, and answers for a
dashboard."""


@contextlib.contextmanager
def _without_helpers() -> Iterator[None]:
    """Start a Ray in this block without processes that a local one does not use: each takes 80 MB and a core's second.

    Ray has no public switch for them.
    """
    from ray._private.node import Node

    before = {name: getattr(Node, name) for name in _HELPERS}
    for name in _HELPERS:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(Node, name, method)


def _keep_token_private() -> None:
    """Create the token of a local Ray readable by its owner only: Ray would make it readable by all users.

    A user with the token may run code in that Ray. Settings of Ray's authentication in the environment are kept.
    """
    if any(name.startswith("RAY_AUTH_") for name in os.environ):
        return
    path = Path.home() / ".ray" / "auth_token"
    with contextlib.suppress(OSError):  # Ray reports what is wrong with the folder
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.touch(mode=0o600)
        path.chmod(0o600)
        if not path.stat().st_size:
            path.write_text(secrets.token_hex(32), encoding="ascii")


_SUBMITTED_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable of a driver that `ray job submit` started: the configuration of its job."""

_EXCLUDES = [
    ".git",
    ".venv",
    "demo",
    "data",
    "bundle",
    "tests",
    "/pipeline",  # Ray follows the links of segmint/, which bring these five
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
    """Discard what Ray's native code writes to the terminal while it starts; exceptions still report errors."""
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a descriptor is needed
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def _check_answers(address: str) -> None:
    """Raise `OSError` when nothing listens at host:port; Ray itself would wait for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _runtime_env() -> dict[str, Any] | None:
    """The runtime environment of a cluster's workers: this checkout; None if segmint is installed, as it is there too.

    A driver that `ray job submit --working-dir` started runs in that folder, and so do its workers: Ray refuses a
    second folder.
    """
    checkout = Path(__file__).resolve().parent.parent
    submitted = json.loads(os.environ.get(_SUBMITTED_JOB) or "{}").get("runtime_env") or {}
    if not (checkout / "pyproject.toml").is_file() or "working_dir" in submitted:
        return None
    given = submitted.get("env_vars", {})
    added = {name: value for name, value in (("OMP_WAIT_POLICY", "PASSIVE"), _ONE_ARENA) if name not in given}
    return {"working_dir": str(checkout), "excludes": _EXCLUDES, "env_vars": added}


def observe(*, local: bool) -> Cluster:
    """The resources of the connected Ray now: nodes come and go."""
    import ray

    resources = ray.cluster_resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with_gpus = [node for node in nodes if node.get("GPU", 0) > 0]
    return Cluster(
        local=local,
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
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


def gpu_kind(resources: Mapping[str, float]) -> str:
    """Return the kind of GPU that a node's resources name; "" for none."""
    named = sorted(name.removeprefix(_KIND) for name in resources if name.startswith(_KIND))
    return named[0] if named else ""


def accelerator_types(gpu: str) -> set[str]:
    """Return the names that Ray may have for a GPU of this kind, as `segmint.infra.device.device_kind` writes it.

    Ray makes them from the driver's name of the GPU, from which `device_kind` takes the maker: with it and without it.
    """
    from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager

    name = gpu.partition(",")[0]
    name_of = NvidiaGPUAcceleratorManager._gpu_name_to_accelerator_type
    return {name_of(f"NVIDIA {name}"), name_of(name)}


def alive_nodes() -> frozenset[str]:
    """Ids of the live nodes of the connected Ray."""
    import ray

    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])


PREFIX = "segmint-ray-"
_LONGEST_PARENT = 18
"""Characters: a socket's path has 107 at most, of which Ray takes 64 below its folder, and these two folders 23."""

_NEW_S = 60.0  # a folder may be this young without being locked


@contextlib.contextmanager
def private_folder() -> Iterator[Path | None]:
    """Make a folder inside one that only this user may enter, and delete both; None where `RAY_TMPDIR` names one.

    Ray makes the inner one writable for all. The outer one is in the system's folder for temporary files, or in /tmp
    where that has a long path. Folders that killed processes left there are deleted first: a living process holds a
    lock on its folder.
    """
    if os.environ.get("RAY_TMPDIR"):
        yield None
        return
    parent = tempfile.gettempdir()
    if len(parent) > _LONGEST_PARENT:
        parent = "/tmp"
    sweep(Path(parent))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))  # mode 0700
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "r").mkdir()
        yield folder / "r"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def sweep(parent: Path) -> None:
    """Delete this user's folders in `parent` whose processes are no more."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or of another user
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                found = os.fstat(lock)
                if found.st_uid != os.getuid() or time.time() - found.st_mtime < _NEW_S:
                    continue
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
