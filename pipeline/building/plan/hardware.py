"""The devices that a plan is for, and their ceiling."""

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.infra.assets.known import ASSETS
from segmint.infra.assets.resolve import resolve
from segmint.infra.device import Compute
from segmint.infra.errors import UsageError
from segmint.infra.peak import measure_peak
from segmint.infra.ray_session import cores_here
from segmint.infra.storage.storage import Storage
from segmint.pipeline.building.dataset.cpu_actors import actors_that_fit
from segmint.pipeline.building.dataset.first_numerics import compute_here
from segmint.pipeline.building.execution.ceiling import Ceiling, flop_per_image
from segmint.pipeline.building.plan.options import PlanOptions
from segmint.pipeline.config.config import Config


def find_ceiling(
    config: Config, options: PlanOptions, manifest: DatasetManifest | None, storage: Storage
) -> tuple[Ceiling, Compute | None]:
    """Return the ceiling of the devices planned for, and what this machine computes with if it is one of them.

    What the dataset's manifest pins goes before the configuration. Raises `UsageError` for options that do not fit
    the device.
    """
    work = flop_per_image(config, lambda: resolve(config.model.weights, mirror=config.assets, storage=storage))
    pinned = manifest.numerics if manifest is not None else {}
    device = str(pinned.get("device", config.model.device))
    precision = str(pinned.get("precision", config.model.precision))
    if options.flops is not None:
        if device == "cpu":
            raise UsageError("--flops is the peak of a GPU, and model.device is cpu: leave one of them out")
        return Ceiling("cuda", "", precision, 1, options.gpus or 1, options.flops, work), None
    model = config.model.model_copy(update={"device": device, "precision": precision})
    if "threads" in pinned:
        model = model.model_copy(update={"threads": pinned["threads"]})
    weights_bytes = _weights_bytes(config, storage)
    compute = compute_here(model, weights_bytes)
    kind, devices = _devices_here(config, options, compute, weights_bytes)
    peak = measure_peak(compute)
    return Ceiling(compute.kind, kind, compute.precision, compute.threads, devices, peak, work), compute


def _devices_here(config: Config, options: PlanOptions, compute: Compute, weights_bytes: int) -> tuple[str, int]:
    """The name and number of this machine's devices; on a CPU, the number of segment actors that share its cores."""
    import torch

    if compute.kind == "cuda":
        return torch.cuda.get_device_name(compute.device), options.gpus or torch.cuda.device_count()
    if options.gpus is not None:
        raise UsageError(
            "--gpus was given, but the plan is for a CPU (torch sees no GPU here, or model.device is cpu): for "
            "another machine's GPUs give the peak of one, such as --flops 9.9e14, from its data sheet or a build"
        )
    actors = config.resources.segment.actors
    devices = max(1, cores_here() // compute.threads)
    if actors == "auto":
        devices = actors_that_fit(devices, weights_bytes)
    else:
        devices = min(devices, actors if isinstance(actors, int) else actors[1])
    return torch.backends.cpu.get_cpu_capability(), devices


def _weights_bytes(config: Config, storage: Storage) -> int:
    """The checkpoint's size; for a known name it is known without the file."""
    name = config.model.weights
    if name in ASSETS:
        return ASSETS[name].size
    return resolve(name, mirror=config.assets, storage=storage).stat().st_size
