"""Numerics of a new dataset and a trial of its segmenter, on the kind of machine that will compute its masks.

Plans run without Ray, so functions import Ray only when they need it.

Numbers of segment actors and of threads per actor on a machine that computes masks on its CPU.

Threads of one process wait for Python's lock and for each other, so single-threaded actors use the cores best. If there
is enough memory, each core therefore gets an actor. Otherwise, fewer actors run several threads each.
"""

import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from segmint.infra.assets import sha256_of
from segmint.infra.device import BF16_NEEDS_GPU, Compute, memory_here, resolve_compute
from segmint.infra.errors import SegmintError, UsageError, last_line
from segmint.infra.log import get_logger
from segmint.infra.version import NOT_INSTALLED
from segmint.infra.wording import counted
from segmint.model.kernels.cpu.library import LANES16, reason
from segmint.operators.custom.contract import StageSpec
from segmint.operators.prepare.detector_process import detector_numerics
from segmint.operators.segment.mask_config import MasksConfig, ModelConfig
from segmint.operators.segment.numerics import Numerics, observe_release_numerics, resolve_numerics
from segmint.operators.segmenter.segmenter import CustomSegmenter, control_rows
from segmint.pipeline.config.config import Config, StageConfig, segmenter_settings

if TYPE_CHECKING:
    from segmint.infra.ray_session import Cluster


_GIB = 2**30

BASE_MEMORY = 3 * _GIB // 2
"""Bytes that an actor needs in addition to its model, for images, embeddings, and chunks of prompts."""

PER_WEIGHT_BYTE = 2
"""Bytes of memory per byte of the checkpoint: the weights, and the working memory of larger encoders."""

SHARE_OF_MEMORY = 0.5
"""Fraction of a machine's memory for all segment actors. The rest is for Ray, the other stages, and other processes."""


def actors_that_fit(cores: int, weights_bytes: int, memory: int | None = None) -> int:
    """Return the number of segment actors for a machine with `cores` cores: at least 1, and at most one per core.

    `weights_bytes` is the size of the checkpoint. `memory` is the machine's memory in bytes (default: this machine's).
    """
    room = int(SHARE_OF_MEMORY * (memory_here() if memory is None else memory))
    return max(1, min(cores, room // (BASE_MEMORY + PER_WEIGHT_BYTE * weights_bytes)))


def threads_of_an_actor(cores: int, weights_bytes: int, memory: int | None = None) -> int:
    """Return the number of torch threads per segment actor, at least 1."""
    return max(1, cores // actors_that_fit(cores, weights_bytes, memory))


def first_numerics(config: Config, weights: Path) -> Numerics:
    """Resolve `model.*` and `masks.points_per_chunk` on this machine or, on a cluster, on a GPU node.

    `weights` is this machine's copy of the checkpoint.

    A cluster's driver runs on a head node, which seldom has a GPU. If `model.device` is cuda and this process has no
    GPU, a task on a GPU node therefore resolves the numerics. On a cluster, `auto` means cuda if the cluster has GPUs,
    and cpu otherwise. The same rules apply to `deidentify.device`. If CPUs compute the masks, the dataset uses the CPU
    kernels only if this machine and all nodes for segment actors have them.

    Raises `UsageError` if neither this machine nor the cluster has the device, if no device becomes free within
    `stall_timeout`, if the node lacks a package that the bundled detectors need, or if a node lacks the kernels that
    `model.kernels` needs.
    """
    return _with_detectors(config, numerics_of_masks(config, weights))


def first_release_numerics(config: Config, segmenter_sha256: str) -> Numerics:
    """Return the numerics of a new dataset whose masks a segmenter makes, as observed on this machine.

    The detectors' numerics are resolved as in `first_numerics`, which also lists the errors.
    """
    return _with_detectors(config, observe_release_numerics(segmenter_sha256))


def _with_detectors(config: Config, numerics: Numerics) -> Numerics:
    versions = {name: getattr(numerics, name.replace("-", "_"), "") for name in sorted(config.deidentify.packages)}
    missing = [name for name, version in versions.items() if version == NOT_INSTALLED]
    if missing:
        raise UsageError(
            f"the node that resolved `model` lacks {', '.join(missing)}, which the detectors need: install "
            "'segmint[build]' on every node"
        )
    return numerics.with_detectors(_of_detectors(config)) if config.detectors_share else numerics


def first_device(config: Config) -> str:
    """Return the kind of device for a new dataset's masks, "cuda" or "cpu", by the rules of `first_numerics`."""
    from segmint.infra.ray_session import joins_cluster, ray_session

    if config.model.device != "auto":
        return config.model.device
    if not joins_cluster(config.resources.address):
        return "cuda" if sees_cuda() else "cpu"
    with ray_session(config.resources.address) as cluster:
        return "cuda" if counts_on_gpus(config, cluster) else "cpu"


def require_gpu_for_bf16(config: Config) -> None:
    """Raise `UsageError` if `model.precision` is bf16, but CPUs would compute a new dataset's masks."""
    if config.model.precision == "bf16" and first_device(config) == "cpu":
        raise UsageError(f"model.{BF16_NEEDS_GPU}")


def numerics_of_masks(config: Config, weights: Path) -> Numerics:
    """Resolve the numerics as in `first_numerics`, but without those of the detectors."""
    from segmint.infra.ray_session import joins_cluster

    digest = sha256_of(weights)
    if not joins_cluster(config.resources.address):
        return resolve_numerics(compute_here(config.model, weights.stat().st_size), config.model, config.masks, digest)
    if config.model.device != "cpu" and not (config.model.device == "cuda" and sees_cuda()):
        return _ask_cluster(config, digest)
    return _on_nodes(config, config.model, digest)


def _of_detectors(config: Config) -> str:
    """Resolve the detectors' numerics on this machine, or on a GPU node of a cluster if this machine has no GPU."""
    from segmint.infra.ray_session import joins_cluster, ray_session

    device = config.deidentify.device
    if sees_cuda() or not joins_cluster(config.resources.address):
        return detector_numerics(device)
    with ray_session(config.resources.address) as cluster:
        of_kind = kind_of_gpu(config, cluster)
        asked = _GpuQuestion(
            "deidentify.device", device, config.detectors_share, 1, "resources.prepare.num_gpus", of_kind
        )
        kind: str = _ask(asked, config.stall_timeout, cluster.gpus, detector_numerics, device)
    return kind


def compute_here(model: ModelConfig, weights_bytes: int) -> Compute:
    """Resolve `model` on this machine. On a CPU, divide the machine's cores among the actors.

    `weights_bytes` is the size of the checkpoint. Raises `UsageError` if this machine doesn't have the device.
    """
    compute = resolve_compute(model.device, model.precision, model.threads)
    if model.threads != "auto" or compute.kind != "cpu":
        return compute
    return replace(compute, threads=threads_of_an_actor(compute.threads, weights_bytes))


def sees_cuda() -> bool:
    """Return whether torch sees a CUDA device in this process."""
    import torch

    return torch.cuda.is_available()


def numerics_here(model: ModelConfig, masks: MasksConfig, weights_sha256: str) -> Numerics:
    """Return the numerics that a new dataset gets on this machine. Raises the errors of `resolve_compute`."""
    compute = resolve_compute(model.device, model.precision, model.threads)
    return resolve_numerics(compute, model, masks, weights_sha256)


def _ask_cluster(config: Config, weights_sha256: str) -> Numerics:
    """Resolve the numerics on a GPU node. If `model.device` is auto and no GPUs are used, resolve them on this CPU."""
    from segmint.infra.ray_session import ray_session

    with ray_session(config.resources.address) as cluster:
        if config.model.device == "cuda" or counts_on_gpus(config, cluster):
            model = config.model.model_copy(update={"device": "cuda"})
            return ask_gpu_node(config, model, weights_sha256, cluster)
        return _on_nodes(config, config.model.model_copy(update={"device": "cpu"}), weights_sha256)


def _on_nodes(config: Config, model: ModelConfig, weights_sha256: str) -> Numerics:
    """Resolve the numerics on this machine. Use the CPU kernels only if the cluster's nodes have them as well."""
    numerics = numerics_here(model, config.masks, weights_sha256)
    if numerics.kernels != LANES16:
        return numerics
    missing = nodes_without_kernels(config)
    if not missing:
        return numerics
    name, why = next(iter(missing.items()))
    nodes = f"{counted(len(missing), 'node')} of the cluster can't use the CPU kernels; on {name}, {why}"
    if model.kernels == LANES16:
        raise UsageError(f"model.kernels is {LANES16}, but {nodes}, or set model.kernels: torch")
    get_logger("model").warning("no_cpu_kernels", reason=nodes, note="using torch, which is slower")
    return replace(numerics, kernels="torch")


def nodes_without_kernels(config: Config) -> dict[str, str]:
    """Return the nodes that have room for a segment actor but lack the CPU kernels, each with the reason.

    A node that doesn't respond within `stall_timeout` counts as lacking the kernels. Nodes that have left the cluster
    in the meantime are skipped.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from segmint.infra.ray_session import ray_session

    def nodes() -> dict[str, str]:
        """Return the addresses of the nodes by ID."""
        alive = (node for node in ray.nodes() if node["Alive"])
        cpus = config.resources.segment.num_cpus
        return {node["NodeID"]: node["NodeManagerAddress"] for node in alive if node["Resources"].get("CPU", 0) >= cpus}

    ask = ray.remote(num_cpus=0, max_retries=3)(reason)
    missing = {}
    with ray_session(config.resources.address):
        asked = {
            node: ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
            for node in nodes()
        }
        deadline = time.monotonic() + config.stall_timeout
        for node, answer in asked.items():
            try:
                why = ray.get(answer, timeout=max(0, deadline - time.monotonic()))
            except GetTimeoutError:
                why = f"no answer within stall_timeout = {config.stall_timeout:g} seconds"
            except RayError as error:
                why = str(error).splitlines()[0]
            if why is not None and node in (left := nodes()):
                missing[left[node]] = why
    return missing


def counts_on_gpus(config: Config, cluster: "Cluster") -> bool:
    """Return whether segment actors will use GPUs of the connected cluster or GPUs that its autoscaler may add."""
    from segmint.infra.ray_session import observe_growth

    wanted = config.resources.segment.num_gpus
    if wanted != "auto":
        return wanted > 0
    most = cluster if cluster.local else observe_growth().grown or cluster
    return most.gpus > 0


def ask_gpu_node(config: Config, model: ModelConfig, weights_sha256: str, cluster: "Cluster") -> Numerics:
    """Resolve `model` in a task on a GPU node of the connected cluster."""
    wanted = config.resources.segment.num_gpus
    num_gpus = 1.0 if wanted == "auto" else float(wanted)
    asked = _GpuQuestion(
        "model.device",
        config.model.device,
        num_gpus,
        config.resources.segment.num_cpus,
        "resources.segment.*",
        kind_of_gpu(config, cluster),
    )
    numerics: Numerics = _ask(
        asked, config.stall_timeout, cluster.gpus, numerics_here, model, config.masks, weights_sha256
    )
    return numerics


def kind_of_gpu(config: Config, cluster: "Cluster") -> str | None:
    """Return the kind of GPU to request from Ray, or None for any kind.

    If Ray names no kind of GPU in this cluster, returns None. If Ray names the kind of only some GPUs, raises
    `UsageError`: Ray would pick a GPU at random, and if the dataset were created on an unnamed GPU, later builds
    couldn't request this kind again.
    """
    from segmint.infra.ray_session import NAME_GPUS

    wanted = config.resources.segment.accelerator_type
    if wanted != "auto":
        return wanted if cluster.names_gpus or not cluster.has_unnamed_gpus else None
    if cluster.names_gpus and cluster.has_unnamed_gpus and not config.allow_mixed_numerics:
        names = ", ".join(sorted(filter(None, cluster.gpu_kinds)))
        raise UsageError(
            f"the cluster has {names} GPUs and others that Ray does not name: set "
            f"resources.segment.accelerator_type to the kind to create the dataset with. {NAME_GPUS}"
        )
    return None


@dataclass(frozen=True)
class _GpuQuestion:
    """Key that selects a GPU, the key's value, and the resources of the task that inspects the GPU."""

    key: str
    value: str
    num_gpus: float
    num_cpus: float
    sized_by: str  # the keys that set these resources
    accelerator_type: str | None  # None: any

    @property
    def of_kind(self) -> str:
        """Kind of GPU as part of a message."""
        return "" if self.accelerator_type is None else f" of the kind {self.accelerator_type}"


def _ask(asked: _GpuQuestion, timeout_s: float, gpus: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function on a GPU node of the connected cluster. `gpus` is the cluster's number of GPUs."""
    import ray
    import ray.exceptions

    task = ray.remote(
        num_gpus=asked.num_gpus, num_cpus=asked.num_cpus, accelerator_type=asked.accelerator_type, max_retries=3
    )(function)
    try:
        return ray.get(task.remote(*arguments), timeout=timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        raise UsageError(
            f"{asked.key} is {asked.value}, but no node with {asked.num_gpus:g} GPUs{asked.of_kind} and "
            f"{asked.num_cpus:g} CPUs became "
            f"free within stall_timeout = {timeout_s:g} seconds; the cluster has {gpus:g} GPUs: add GPU nodes, lower "
            f"{asked.sized_by}, or set {asked.key}: cpu"
        ) from error
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SegmintError):
            meaning = f" ({asked.key} is {asked.value}, and the cluster has {gpus:g} GPUs; set cpu to ignore them)"
            shown = meaning if asked.value == "auto" else ""
            raise UsageError(f"on a worker of the cluster: {error.cause}{shown}") from error
        raise


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
            worker = partial(CustomSegmenter, spec, 1, timeout_s, None, on_gpu, segmenter_settings(each))
            controls = controls_of(spec, adds=isinstance(each, StageConfig))
            title = f"the segmenter {each.stage}"
            try_on_control(title, each.resources, timeout_s, worker, controls, cluster, config.stall_timeout)


def try_on_control(
    title: str,
    resources: Any,
    timeout_s: float,
    make_worker: Callable[[], Any],
    controls: Sequence[pa.Table],
    cluster: "Cluster",
    stall_timeout: float,
) -> None:
    """Try a stage on control images in a Ray worker; see `problem_on` for `make_worker` and `controls`.

    The Ray worker has the `num_cpus` and `num_gpus` of `resources`. `title` names the stage in messages, and
    `timeout_s` is its time limit per image. Raises `UsageError` if there is a problem, if the Ray worker ends, or if
    none finishes within `stall_timeout`.
    """
    import ray
    import ray.exceptions

    from segmint.infra.ray_session import observe_growth

    failed = f"{title} failed on a control image of 256 x 192 pixels"
    most = cluster if cluster.local else observe_growth().grown or cluster
    for name, wanted, found in (("CPUs", resources.num_cpus, most.cpus), ("GPUs", resources.num_gpus, most.gpus)):
        if wanted > found:
            raise UsageError(f"an actor of {title} needs {wanted:g} {name}, but the cluster has {found:g}")
    task = ray.remote(num_cpus=resources.num_cpus, num_gpus=resources.num_gpus, max_retries=0)(problem_on)
    try:
        problem = ray.get(task.remote(make_worker, controls), timeout=stall_timeout)
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


def problem_on(make_worker: Callable[[], Any], controls: Iterable[pa.Table]) -> str | None:
    """Make a worker that tries a single row, and run it on control images. Return the error's traceback, or None."""
    try:
        worker = make_worker()
        if all(map(worker.has_memory_for, controls)):
            return None
    except Exception:  # noqa: BLE001 - any bug of the stage is shown
        return traceback.format_exc()
    return "its memory ran out"


def controls_of(spec: StageSpec, *, adds: bool) -> list[pa.Table]:
    """Return the control images of a segmenter, or of a stage that `adds` masks.

    One that wants prompts gets a box and points and then, because it may reject them, a phrase.
    """
    controls = [control_rows(adds=adds)]
    if spec.wants_prompts:
        controls.append(control_rows(adds=adds, phrase="disc"))
    return controls
