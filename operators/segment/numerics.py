"""Numerics that determine the bits of a dataset's masks, resolved once, stored in the manifest, checked by workers."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, fields, replace
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Literal

from segmint.catalogs.layout import fingerprint
from segmint.infra.device import Compute, DecoderPrecision, Precision, cpu_bits, device_kind, fix_products
from segmint.infra.errors import UsageError
from segmint.infra.version import BITS_VERSION, VERSION, installed_version
from segmint.model.automatic.settings import small_chunk
from segmint.model.kernels.cpu.library import LANES16, kernels_named, reason
from segmint.operators.segment.mask_config import MasksConfig, ModelConfig

GPU_ONLY = frozenset({"cuda", "cudnn", "triton", "attention", "chunks"})
"""Fields that are recorded only for a GPU."""

DETECTORS_ONLY = frozenset({"detectors"})
"""Fields that are recorded only if detectors run on a GPU, whatever the model's device is."""

OWN_DECODER_ONLY = frozenset({"decoder_precision"})
"""Fields that are recorded only if the decoder's precision isn't that of the image encoder."""

CPU_ONLY = frozenset({"cpu", "kernels"})
"""Fields that are recorded only for a CPU. Masks from a GPU hardly depend on the host's CPU."""

SEGMENTER = "segmenter"
"""`device` of a dataset whose masks a segmenter makes. Only what determines the bits of released images is recorded."""

MASKS_ONLY = frozenset({"device_kind", "precision", "encoder", "points_per_chunk", "crops_per_batch", "threads"})
"""Fields that are recorded only if SAM makes the masks."""

ADDED: Mapping[str, str] = {}
"""Fields that a later version of segmint added, each with the value that all earlier versions used.

If a dataset's numerics lack such a field, an earlier version created the dataset, so all of its shards used this value.
The fingerprint covers only recorded fields and so stays the same. Any other missing field is an error.
"""


class MixedNumericsError(UsageError):
    """Raised when the results of this machine would differ in some bits from the dataset's."""


@dataclass(frozen=True)
class Numerics:
    """Everything besides the configuration that determines the last bit of a mask, a score, or a JPEG.

    Workers with equal numerics write equal files. A worker whose numerics differ from the dataset's is rejected.
    """

    device: str  # "cpu", "cuda", or `SEGMENTER`; Ray chooses the CUDA device
    device_kind: str  # CPU instruction set that torch uses, or model of the GPU
    precision: Precision
    encoder: Literal["eager", "compiled"]  # mode of the image encoder; compiled: by `torch.compile`
    points_per_chunk: int  # prompts that the decoder takes together; the last chunk is padded
    crops_per_batch: int  # crops, or images without crops, that are encoded together; the last batch is padded
    threads: int  # number of torch's threads in one segment actor
    weights_sha256: str
    segmint: str  # the last version that changed any bit of the results
    torch: str
    torchvision: str  # like facenet_pytorch and onnxruntime, "none" if no detector uses it
    numpy: str
    opencv: str
    pillow: str
    littlecms: str
    simplejpeg: str
    libjpeg_turbo: str
    pyarrow: str
    facenet_pytorch: str
    onnxruntime: str
    pi_heif: str  # reads HEIC; "none" if not installed
    _: KW_ONLY
    cpu: str = ""  # CPU vendor, MKL's mode if it's fixed, and a hash of results; not with a GPU
    kernels: str = ""  # on a CPU: lanes16-1 or torch; not with a GPU
    cuda: str = ""  # like the next four fields, only recorded with a GPU
    cudnn: str = ""
    triton: str = ""  # "none" if not installed; also says if FP fusion is off
    attention: str = ""  # the encoder's kernel for attention: triton, flash, or efficient
    chunks: str = ""  # sizes of chunks; points go into the smallest chunk that fits
    detectors: str = ""  # GPU of the face and plate detectors; not with a CPU
    decoder_precision: DecoderPrecision = ""  # only with a GPU
    unrecorded: frozenset[str] = frozenset()  # fields of other devices

    @classmethod
    def recorded(cls, values: Mapping[str, Any]) -> "Numerics":
        """Return the numerics that a dataset's manifest records.

        Raises `UsageError` if this version of segmint doesn't know a field. Also raises it if a field for the device is
        missing and isn't in `ADDED`.
        """
        known = {one.name: one for one in fields(cls) if one.name != "unrecorded"}
        unknown = sorted(values.keys() - known)
        if unknown:
            raise UsageError(
                f"the dataset's numerics include {', '.join(unknown)}, which segmint {VERSION} doesn't support. Use "
                "the version that created the dataset, or a later one."
            )
        missing = frozenset(known.keys() - values.keys())
        others = {"cuda": CPU_ONLY, SEGMENTER: MASKS_ONLY | CPU_ONLY | GPU_ONLY}
        needed = missing - DETECTORS_ONLY - OWN_DECODER_ONLY - others.get(str(values.get("device")), GPU_ONLY)
        lacking = sorted(needed - ADDED.keys())
        if lacking:
            raise UsageError(f"the dataset's numerics lack {', '.join(lacking)}")
        blank: dict[str, Any] = {name: ADDED[name] if name in needed else "" for name in missing}
        return cls(**values, **blank, unrecorded=missing)

    def to_dict(self) -> dict[str, Any]:
        """Return the recorded fields in the manifest's format."""
        return {key: value for key, value in asdict(self).items() if key not in {*self.unrecorded, "unrecorded"}}

    def with_detectors(self, kind: str) -> "Numerics":
        """Return a copy that records the detectors' GPU, given as `detector_numerics`."""
        return replace(self, detectors=kind, unrecorded=self.unrecorded - DETECTORS_ONLY)

    def with_decoder(self, precision: DecoderPrecision) -> "Numerics":
        """Return a copy that records the decoder's own precision, unless it's ""."""
        if not precision:
            return self
        return replace(self, decoder_precision=precision, unrecorded=self.unrecorded - OWN_DECODER_ONLY)

    @property
    def compute(self) -> Compute:
        """Device, precision, and number of threads, for setting up a process."""
        return Compute(self.device, self.precision, self.threads)

    @property
    def fingerprint(self) -> str:
        """Hash of the recorded fields as twelve hexadecimal digits. Every commit contains it."""
        return fingerprint(self.to_dict())

    def differences(self, other: "Numerics") -> str:
        """Describe the fields that both numerics record with different values. Return "" if there are none."""
        ours, theirs = ({**each.to_dict(), **{name: getattr(each, name) for name in ADDED}} for each in (self, other))
        differing = [key for key in ours if key in theirs and ours[key] != theirs[key]]
        return ", ".join(f"{key} {ours[key]!r} instead of {theirs[key]!r}" for key in differing)


def resolve_numerics(compute: Compute, model: ModelConfig, masks: MasksConfig, weights_sha256: str) -> Numerics:
    """Return the numerics for a new dataset, with `auto` resolved for the device.

    `compute` contains the resolved device, precision, and threads of `model`. Raises `UsageError` in these cases:

    - A chunk contains more points than the device supports.
    - The requested kernels are missing.
    - A batch contains several images, but the device is a CPU or there are crops.
    - The decoder's precision is fp16, but the encoder's isn't bf16.
    """
    from segmint.model.sam.load import CUDA_BATCH

    fix_products()
    on_gpu = compute.kind == "cuda"
    try:
        chunk = masks.settings().chunk_on(compute.kind)
    except ValueError as error:
        raise UsageError(f"{error} on a GPU") from error
    if model.images_per_batch > 1 and not (on_gpu and masks.crop_n_layers == 0):
        raise UsageError(
            f"model.images_per_batch is {model.images_per_batch}, which needs a GPU and masks.crop_n_layers: 0. Set "
            "model.images_per_batch: 1"
        )
    crops = CUDA_BATCH if on_gpu and masks.crop_n_layers > 0 else model.images_per_batch
    encoder = model.encoder
    if encoder == "auto":
        encoder = "compiled" if on_gpu and find_spec("triton") is not None else "eager"
    kernels = "torch" if on_gpu else _resolve_kernels(model.kernels)
    numerics = observe_numerics(compute, chunk, crops, weights_sha256, encoder, kernels)
    return numerics.with_decoder(resolve_decoder(model, compute.precision))


def resolve_decoder(model: ModelConfig, precision: str) -> DecoderPrecision:
    """Return the decoder's own precision for a new dataset, or "" for `precision`, which is fp32 or bf16.

    Raises `UsageError` if the decoder's precision is fp16, but `precision` isn't bf16.
    """
    if model.decoder_precision == "auto":
        return ""
    if precision != "bf16":
        raise UsageError(
            f"model.decoder_precision is {model.decoder_precision}, which needs a GPU and model.precision: bf16, but "
            f"the precision is {precision}. Set model.decoder_precision: auto"
        )
    return model.decoder_precision


def _resolve_kernels(wanted: str) -> str:
    from segmint.operators.segment.models import cpu_kernels

    if wanted == "auto":
        return "torch" if cpu_kernels("cpu") is None else LANES16
    if wanted == LANES16 and reason() is not None:
        raise UsageError(f"model.kernels is {LANES16}, but {reason()}, or set model.kernels: torch")
    return wanted


def observe_numerics(
    compute: Compute,
    points_per_chunk: int,
    crops_per_batch: int,
    weights_sha256: str,
    encoder: Literal["eager", "compiled"] = "eager",
    kernels: str = "torch",
) -> Numerics:
    """Return the numerics of this process for a resolved device, precision, and number of threads.

    `kernels` names the requested CPU kernels. If this process doesn't have them, torch's kernels are recorded instead.
    """
    import torch

    return Numerics(
        device=compute.kind,
        device_kind=device_kind(compute),
        precision=compute.precision,
        encoder=encoder,
        points_per_chunk=points_per_chunk,
        crops_per_batch=crops_per_batch,
        threads=compute.threads,
        weights_sha256=weights_sha256,
        torch=str(torch.__version__),  # a `TorchVersion` would import torch in each process that gets it
        **_of_packages(),
        **(_of_gpu(compute, points_per_chunk) if compute.kind == "cuda" else _of_cpu(compute, kernels)),
    )


def observe_release_numerics(segmenter_sha256: str) -> Numerics:
    """Return the numerics of this process for a dataset whose masks a segmenter makes. Doesn't import torch."""
    values = {"weights_sha256": segmenter_sha256, "torch": version("torch"), **_of_packages()}
    return Numerics.recorded({"device": SEGMENTER, **values})


def check_release_numerics(wanted: Numerics) -> None:
    """Raise `MixedNumericsError` if this process may release other images than the one that started the dataset."""
    differences = observe_release_numerics(wanted.weights_sha256).differences(wanted)
    if differences:
        raise MixedNumericsError(
            f"this machine can't reproduce the dataset's released images bit for bit: {differences}. Use the same "
            "versions, or set allow_mixed_numerics: true."
        )


def _of_packages() -> dict[str, Any]:
    """Return the versions of segmint and of packages other than torch."""
    from PIL import features

    return {
        "segmint": BITS_VERSION,
        "torchvision": installed_version("torchvision"),
        "numpy": version("numpy"),
        "opencv": version("opencv-python-headless"),
        "pillow": version("pillow"),
        "littlecms": str(features.version("littlecms2")),
        "simplejpeg": version("simplejpeg"),
        "libjpeg_turbo": str(features.version_feature("libjpeg_turbo")),
        "pyarrow": version("pyarrow"),
        "facenet_pytorch": installed_version("facenet-pytorch"),
        "onnxruntime": installed_version("onnxruntime"),
        "pi_heif": installed_version("pi-heif"),
    }


def _of_cpu(compute: Compute, kernels: str) -> dict[str, Any]:
    return {
        "cpu": cpu_bits(compute.threads),
        "kernels": "torch" if kernels_named(kernels) is None else kernels,
        "unrecorded": GPU_ONLY | DETECTORS_ONLY | OWN_DECODER_ONLY,
    }


def _of_gpu(compute: Compute, points_per_chunk: int) -> dict[str, Any]:
    import torch

    from segmint.model.sam.image_encoder_vit import attention_kernels

    cudnn: Any = torch.backends.cudnn  # its functions are untyped
    return {
        "cuda": str(torch.version.cuda),
        "cudnn": str(cudnn.version()),
        "triton": _triton(),
        "attention": attention_kernels(torch.bfloat16 if compute.precision == "bf16" else torch.float32),
        "chunks": f"{small_chunk(points_per_chunk)} {points_per_chunk}",
        "unrecorded": CPU_ONLY | DETECTORS_ONLY | OWN_DECODER_ONLY,
    }


def _triton() -> str:
    """Return Triton's version, with a note if FP fusion is off, as with `TRITON_DEFAULT_FP_FUSION=0`."""
    if find_spec("triton") is None:
        return "none"
    found, knobs = str(import_module("triton").__version__), import_module("triton").knobs.language
    fuses = knobs.default_fp_fusion and not getattr(knobs, "force_disable_fp_fusion", False)
    return found if fuses else f"{found} without FP fusion"
