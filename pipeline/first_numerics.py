"""The numerics that a dataset is begun with, resolved on a machine of the kind that will compute it.

Ray is imported only where it is asked: a plan needs none.
"""

from infra.device import resolve_compute
from infra.errors import SegmintError, UsageError
from operators.mask_config import MasksConfig, ModelConfig
from operators.numerics import Numerics, resolve_numerics
from pipeline.config import Config


def first_numerics(config: Config, weights_sha256: str) -> Numerics:
    """What `model.*` and `masks.points_per_chunk` come to here or, on a cluster, where a GPU is.

    A cluster's driver runs on a head node, which seldom has a GPU: where `model.device` is cuda and this process sees
    none, a task beside a GPU answers. Raises `UsageError` where there is no such device either, or none becomes free
    within `stall_timeout`.
    """
    import torch

    if config.model.device == "cuda" and not torch.cuda.is_available():
        from infra.ray_session import joins_cluster

        if joins_cluster(config.resources.address):
            return _ask_beside_a_gpu(config, weights_sha256)
    return _resolve(config.model, config.masks, weights_sha256)


def _resolve(model: ModelConfig, masks: MasksConfig, weights_sha256: str) -> Numerics:
    return resolve_numerics(resolve_compute(model.device, model.precision, model.threads), masks, weights_sha256)


def _ask_beside_a_gpu(config: Config, weights_sha256: str) -> Numerics:
    import ray
    import ray.exceptions

    from infra.ray_session import ray_session

    wanted = config.resources.segment.num_gpus
    num_gpus = 1.0 if wanted == "auto" else float(wanted)
    with ray_session(config.resources.address) as cluster:
        task = ray.remote(num_gpus=num_gpus, num_cpus=config.resources.segment.num_cpus, max_retries=3)(_resolve)
        try:
            numerics: Numerics = ray.get(
                task.remote(config.model, config.masks, weights_sha256), timeout=config.stall_timeout
            )
        except ray.exceptions.GetTimeoutError as error:
            raise UsageError(
                f"model.device is cuda, and no node with {num_gpus:g} GPUs and {config.resources.segment.num_cpus:g} "
                f"CPUs was free within stall_timeout = {config.stall_timeout:g} seconds; the cluster has "
                f"{cluster.gpus:g} GPUs: add GPU nodes, lower resources.segment.*, or set model.device: cpu"
            ) from error
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, SegmintError):
                raise UsageError(f"on a worker of the cluster: {error.cause}") from error
            raise
    return numerics
