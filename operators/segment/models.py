"""Loader of the model for the pipeline's actors and for single images."""

from functools import cache
from pathlib import Path

import torch

from segmint.infra.device import Compute, DecoderPrecision, apply_compute
from segmint.infra.errors import UsageError
from segmint.infra.log import get_logger
from segmint.model.kernels.cpu.library import Kernels, reason, usable_kernels
from segmint.model.sam.image_encoder_tinyvit import ImageEncoderTinyViT
from segmint.model.sam.load import Sam, SamWeightsError, load_sam


def cpu_kernels(device_type: str) -> Kernels | None:
    """Return the CPU kernels for a model on "cpu", or None for other devices or if the kernels aren't available.

    If they aren't available, each process logs the reason once.
    """
    if device_type != "cpu":
        return None
    found = usable_kernels()
    if found is None:
        log_missing_kernels()
    return found


@cache
def log_missing_kernels() -> None:
    """Log once per process that torch computes everything, and why."""
    get_logger("model").warning("no_cpu_kernels", reason=reason(), note="using torch, which is slower")


def load_model(weights: Path, compute: Compute, decoder_precision: DecoderPrecision = "") -> Sam:
    """Load a checkpoint's model onto a resolved device, and set up torch in this process.

    bf16 means that the weights themselves are bf16, but positional encodings, scores, and masks stay in fp32.
    MobileSAM's image encoder stays in fp32 too, because rounding it would change more masks than everything else and
    save only 2% of the time. `resolve_compute` only allows bf16 on a GPU, but tests also compute it on a CPU. If
    `decoder_precision` is fp16, the weights of the prompt encoder and the mask decoder are fp16. Raises `UsageError` if
    the file isn't a SAM checkpoint.
    """
    apply_compute(compute)
    try:
        sam = load_sam(weights, device=compute.device)
    except SamWeightsError as error:
        raise UsageError(str(error)) from error
    if compute.precision == "bf16":
        decoder = torch.float16 if decoder_precision == "fp16" else torch.bfloat16
        sam.prompt_encoder.to(decoder)
        sam.mask_decoder.to(decoder)
        if not isinstance(sam.image_encoder, ImageEncoderTinyViT):
            sam.image_encoder.bfloat16()
    return sam
