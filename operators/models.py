"""The model on its device, made in one place for the pipeline's actors and for single photographs."""

from pathlib import Path

import torch

from infra.device import Compute, apply_compute
from infra.errors import UsageError
from model.sam.load import SamWeightsError, load_sam
from model.sam.sam import Sam


def load_model(weights: Path, compute: Compute) -> Sam:
    """The model of a checkpoint on a resolved device; sets up torch in this process.

    In bf16 the weights themselves are bf16; positional encodings, scores and masks stay in fp32. Raises `UsageError`
    where the file is no SAM's checkpoint.
    """
    apply_compute(compute)
    try:
        sam = load_sam(weights, device=compute.device)
    except SamWeightsError as error:
        raise UsageError(str(error)) from error
    return sam.to(torch.bfloat16) if compute.precision == "bf16" else sam
