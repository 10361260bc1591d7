"""Loader of the model for the pipeline's actors and for single images."""

from functools import cache
from pathlib import Path

from segmint.infra.device import Compute, apply_compute
from segmint.infra.errors import UsageError
from segmint.infra.log import get_logger
from segmint.model.kernels.cpu.library import Kernels, reason, usable_kernels
from segmint.model.sam.image_encoder_tinyvit import ImageEncoderTinyViT
from segmint.model.sam.load import SamWeightsError, load_sam
from segmint.model.sam.sam import Sam


def cpu_kernels(device_type: str, dot: bool = False) -> Kernels | None:
    """Return the CPU kernels for a model on "cpu", or None for other devices or if the kernels aren't available.

    If they aren't available, each process logs the reason once. With `dot`, the kernels draw in bf16.
    """
    if device_type != "cpu":
        return None
    found = usable_kernels(dot)
    if found is None:
        _log_missing_kernels()
    return found


@cache
def _log_missing_kernels() -> None:
    get_logger("model").warning("no_cpu_kernels", reason=reason(), note="using torch, which is slower")


def refuse_slow_bf16(compute: Compute) -> None:
    """Raise `UsageError` if bf16 is requested on a CPU without the kernels that draw in bf16."""
    why = reason(dot=True) if compute.kind == "cpu" and compute.precision == "bf16" else None
    if why is not None:
        raise UsageError(slow_bf16(why))


def slow_bf16(why: str) -> str:
    """Return the error message for bf16 on a CPU that can't use the kernels for it. `why` is the reason."""
    return (
        "precision bf16 on a CPU needs the CPU kernels and AVX512_BF16 instructions. Without them, it would be slower "
        f"than fp32 with kernels: {why}. Otherwise, use precision fp32"
    )


def load_model(weights: Path, compute: Compute) -> Sam:
    """Load a checkpoint's model onto a resolved device, and set up torch in this process.

    On a GPU, bf16 means that the weights themselves are bf16, but positional encodings, scores, and masks stay in fp32.
    MobileSAM's image encoder stays in fp32 too, because rounding it would change more masks than everything else and
    save only 2% of the time. On a CPU, bf16 means that all weights are fp32 and the CPU kernels draw in bf16; see
    `Sam.draws_in_bf16`. Raises `UsageError` if the file isn't a SAM checkpoint, or if the CPU lacks these kernels.
    """
    refuse_slow_bf16(compute)
    apply_compute(compute)
    try:
        sam = load_sam(weights, device=compute.device)
    except SamWeightsError as error:
        raise UsageError(str(error)) from error
    if compute.kind == "cpu":
        sam.draws_in_bf16 = compute.precision == "bf16"
    elif compute.precision == "bf16":
        sam.prompt_encoder.bfloat16()
        sam.mask_decoder.bfloat16()
        if not isinstance(sam.image_encoder, ImageEncoderTinyViT):
            sam.image_encoder.bfloat16()
    return sam
