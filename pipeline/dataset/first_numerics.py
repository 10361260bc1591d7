"""The numerics that a dataset is begun with, resolved on a machine of the kind that will compute it.

Ray is imported only when it is needed: a plan runs without it.
"""

from dataclasses import replace
from pathlib import Path

from segmint.infra.assets.hashes import sha256_of
from segmint.infra.device import Compute, resolve_compute
from segmint.infra.errors import SegmintError, UsageError
from segmint.operators.segment.mask_config import MasksConfig, ModelConfig
from segmint.operators.segment.numerics import Numerics, resolve_numerics
from segmint.pipeline.config.config import Config
from segmint.pipeline.dataset.cpu_actors import threads_of_an_actor


def first_numerics(config: Config, weights: Path) -> Numerics:
    """Resolve `model.*` and `masks.points_per_chunk` on this machine or, on a cluster, on a GPU node.

    `weights` is this machine's copy of the checkpoint.

    A cluster's driver runs on a head node, which seldom has a GPU: if `model.device` is cuda and this process sees
    no GPU, a task on a GPU node resolves them. On a cluster, `auto` means cuda if the cluster has GPUs, else cpu.
    Raises `UsageError` if there is no such device either, or none becomes free within `stall_timeout`.
    """
    from segmint.infra.ray_session import joins_cluster

    digest = sha256_of(weights)
    if not joins_cluster(config.resources.address):
        return resolve_numerics(compute_here(config.model, weights.stat().st_size), config.model, config.masks, digest)
    if config.model.device != "cpu" and not (config.model.device == "cuda" and _sees_cuda()):
        return _ask_cluster(config, digest)
    return _resolve(config.model, config.masks, digest)


def compute_here(model: ModelConfig, weights_bytes: int) -> Compute:
    """Resolve `model` on this machine; on a CPU, actors share its cores.

    `weights_bytes` is the checkpoint's size. Raises `UsageError` if this machine does not have the device.
    """
    compute = resolve_compute(model.device, model.precision, model.threads)
    if model.threads != "auto" or compute.kind != "cpu":
        return compute
    return replace(compute, threads=threads_of_an_actor(compute.threads, weights_bytes))


def _sees_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _resolve(model: ModelConfig, masks: MasksConfig, weights_sha256: str) -> Numerics:
    compute = resolve_compute(model.device, model.precision, model.threads)
    return resolve_numerics(compute, model, masks, weights_sha256)


def _ask_cluster(config: Config, weights_sha256: str) -> Numerics:
    """Resolve the numerics on a node of the kind that `model.device`, auto or cuda, means on this cluster."""
    from segmint.infra.ray_session import ray_session

    with ray_session(config.resources.address) as cluster:
        if config.model.device == "cuda" or _counts_on_gpus(config, cluster.gpus):
            model = config.model.model_copy(update={"device": "cuda"})
            return _ask_gpu_node(config, model, weights_sha256, cluster.gpus)
    return _resolve(config.model.model_copy(update={"device": "cpu"}), config.masks, weights_sha256)


def _counts_on_gpus(config: Config, gpus: float) -> bool:
    wanted = config.resources.segment.num_gpus
    return gpus > 0 if wanted == "auto" else wanted > 0


def _ask_gpu_node(config: Config, model: ModelConfig, weights_sha256: str, gpus: float) -> Numerics:
    """Resolve `model` in a task on a GPU node of the connected cluster, which has so many GPUs."""
    import ray
    import ray.exceptions

    wanted = config.resources.segment.num_gpus
    num_gpus = 1.0 if wanted == "auto" else float(wanted)
    num_cpus = config.resources.segment.num_cpus
    told = config.model.device
    task = ray.remote(num_gpus=num_gpus, num_cpus=num_cpus, max_retries=3)(_resolve)
    try:
        numerics: Numerics = ray.get(task.remote(model, config.masks, weights_sha256), timeout=config.stall_timeout)
    except ray.exceptions.GetTimeoutError as error:
        raise UsageError(
            f"model.device is {told}, and no node with {num_gpus:g} GPUs and {num_cpus:g} CPUs was free within "
            f"stall_timeout = {config.stall_timeout:g} seconds; the cluster has {gpus:g} GPUs: add GPU nodes, lower "
            "resources.segment.*, or set model.device: cpu"
        ) from error
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SegmintError):
            meaning = f" (model.device is {told}, and the cluster has {gpus:g} GPUs; cpu leaves them alone)"
            raise UsageError(f"on a worker of the cluster: {error.cause}{meaning if told == 'auto' else ''}") from error
        raise
    return numerics
