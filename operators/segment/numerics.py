"""Everything that the bits of a dataset's masks depend on: resolved once, stored in the dataset, checked by workers."""

from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Literal

from segmint.catalogs.layout import fingerprint
from segmint.infra.device import Compute, Precision
from segmint.infra.version import VERSION
from segmint.model.automatic.settings import CUDA_POINTS_PER_CHUNK, DEFAULT_POINTS_PER_CHUNK
from segmint.operators.segment.mask_config import MasksConfig, ModelConfig


@dataclass(frozen=True)
class Numerics:
    """Everything besides the configuration that determines the last bit of a mask, a score or a JPEG.

    Two workers with equal numerics write equal files; a worker whose numerics differ from the dataset's is refused.
    """

    device: str  # "cpu" or "cuda"; Ray chooses which CUDA device
    device_kind: str  # CPU instruction set that torch uses, or name of the GPU
    precision: Precision
    encoder: Literal["eager", "compiled"]  # the image encoder: eager, or compiled by `torch.compile`
    points_per_chunk: int  # prompts that the decoder takes together; the last chunk is padded
    crops_per_batch: int  # crops of an image that are encoded together; the last batch is filled up
    threads: int  # torch's threads in one segment actor
    weights_sha256: str
    segmint: str
    torch: str
    torchvision: str
    numpy: str
    opencv: str
    pillow: str
    littlecms: str
    simplejpeg: str
    libjpeg_turbo: str
    pyarrow: str
    facenet_pytorch: str
    onnxruntime: str

    @property
    def compute(self) -> Compute:
        """Device, precision and threads, which set up a process."""
        return Compute(self.device, self.precision, self.threads)

    @property
    def fingerprint(self) -> str:
        """Hash of all fields, twelve hexadecimal digits; commits refer to their numerics by it."""
        return fingerprint(asdict(self))

    def differences(self, other: "Numerics") -> str:
        """List the fields in which two numerics differ, for a message; empty if they are equal."""
        ours, theirs = asdict(self), asdict(other)
        return ", ".join(f"{key} {ours[key]!r} against {theirs[key]!r}" for key in ours if ours[key] != theirs[key])


def resolve_numerics(compute: Compute, model: ModelConfig, masks: MasksConfig, weights_sha256: str) -> Numerics:
    """Return the numerics that a dataset is begun with; `auto` becomes what suits the device.

    `compute` holds the resolved device, precision and threads of `model`.
    """
    from segmint.model.sam.batch_encoder import CUDA_BATCH

    on_gpu = compute.kind == "cuda"
    chunk = masks.points_per_chunk
    if chunk == "auto":
        chunk = CUDA_POINTS_PER_CHUNK if on_gpu else DEFAULT_POINTS_PER_CHUNK
    crops = CUDA_BATCH if on_gpu and masks.crop_n_layers > 0 else 1
    encoder = "eager" if model.encoder == "auto" else model.encoder
    return observe_numerics(compute, chunk, crops, weights_sha256, encoder)


def observe_numerics(
    compute: Compute,
    points_per_chunk: int,
    crops_per_batch: int,
    weights_sha256: str,
    encoder: Literal["eager", "compiled"] = "eager",
) -> Numerics:
    """Return the numerics of this process for a resolved device, precision and number of threads."""
    import torch
    from PIL import features

    kind = (
        torch.cuda.get_device_name(compute.device)
        if compute.kind == "cuda"
        else torch.backends.cpu.get_cpu_capability()
    )
    return Numerics(
        device=compute.kind,
        device_kind=kind,
        precision=compute.precision,
        encoder=encoder,
        points_per_chunk=points_per_chunk,
        crops_per_batch=crops_per_batch,
        threads=compute.threads,
        weights_sha256=weights_sha256,
        segmint=VERSION,
        torch=torch.__version__,
        torchvision=version("torchvision"),
        numpy=version("numpy"),
        opencv=version("opencv-python-headless"),
        pillow=version("pillow"),
        littlecms=str(features.version("littlecms2")),
        simplejpeg=version("simplejpeg"),
        libjpeg_turbo=str(features.version_feature("libjpeg_turbo")),
        pyarrow=version("pyarrow"),
        facenet_pytorch=version("facenet-pytorch"),
        onnxruntime=version("onnxruntime"),
    )
