"""The one place that starts or joins Ray."""

import contextlib
import json
import logging
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import UsageError

MIN_LOCAL_CPUS = 8
"""Logical CPUs of a local Ray: stages need slots to run side by side, and most of them wait rather than compute."""


@dataclass(frozen=True)
class Cluster:
    """What the Ray that we are connected to has."""

    local: bool  # whether we started it, on this machine alone
    cpus: float  # logical CPUs of all nodes
    gpus: float
    nodes: int
    cores: int  # CPU cores that this process may run on; on a cluster, those of the driver's node


def cores_here() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def joins_cluster(address: str) -> bool:
    """Whether `ray_session(address)` joins a Ray that somebody else started."""
    import ray

    return ray.is_initialized() or _target(address) != "local"


def _target(address: str) -> str:
    return os.environ.get("RAY_ADDRESS", "local") if address == "auto" else address


@contextlib.contextmanager
def ray_session(address: str = "auto", *, object_store_memory: int | None = None) -> Iterator[Cluster]:
    """Joins the cluster at `address`, or starts a local Ray; leaves it as it was found.

    "auto" joins the cluster that `RAY_ADDRESS` names and is local without it; "local" is always local.
    `object_store_memory` in bytes is for a local Ray alone. Raises `UsageError` when no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's core writes its own log lines to the terminal; its folder of logs keeps what matters.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    # Ray Data prints the traceback of an error that it also raises.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        yield _observe(local=False)
        return
    target = _target(address)
    local = target == "local"
    with warnings.catch_warnings(), _without_native_output():
        warnings.simplefilter("ignore")
        try:
            if local:
                ray.init(
                    address="local",
                    num_cpus=max(MIN_LOCAL_CPUS, cores_here()),
                    object_store_memory=object_store_memory,
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
    try:
        yield _observe(local=local)
    finally:
        ray.shutdown()


_SUBMITTED_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""In the environment of a driver that `ray job submit` started: what its job was given."""

_EXCLUDES = [
    ".git",
    ".venv",
    "demo",
    "data",
    "bundle",
    "tests",
    "*.tar",
    "*.parquet",
    "*.pt",
    "*.pth",
    "*.onnx",
]


@contextlib.contextmanager
def _without_native_output() -> Iterator[None]:
    """Keeps what Ray's native code writes to the terminal while it starts away from it; exceptions still tell."""
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a descriptor is what is wanted
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def _check_answers(address: str) -> None:
    """Raises `OSError` when nothing listens at host:port, which Ray itself would wait minutes for."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _runtime_env() -> dict[str, Any] | None:
    """What a cluster's workers run: this checkout as it stands; None where segmint is installed, as it is there.

    A driver that `ray job submit --working-dir` started runs in that folder, and so do its workers: Ray refuses to be
    told a folder twice.
    """
    checkout = Path(__file__).resolve().parent.parent
    submitted = json.loads(os.environ.get(_SUBMITTED_JOB) or "{}").get("runtime_env") or {}
    if not (checkout / "pyproject.toml").is_file() or "working_dir" in submitted:
        return None
    wait_policy = {} if "OMP_WAIT_POLICY" in submitted.get("env_vars", {}) else {"OMP_WAIT_POLICY": "PASSIVE"}
    return {"working_dir": str(checkout), "excludes": _EXCLUDES, "env_vars": wait_policy}


def _observe(*, local: bool) -> Cluster:
    import ray

    resources = ray.cluster_resources()
    return Cluster(
        local=local,
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        nodes=sum(node["Alive"] for node in ray.nodes()),
        cores=cores_here(),
    )
