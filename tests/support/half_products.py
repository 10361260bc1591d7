"""The GPU's code on a CPU in half precision: products sum in float32, as on a GPU, and take the CPU's fast kernels.

CPUs have no fast products in fp16. `HalfProducts` computes the product of two fp16 tensors in float32 and rounds it
once to fp16, as tensor cores do. In bf16, the CPU's own products do the same.
"""

# ruff: noqa: PLC2701 - torch's modes aren't public

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from segmint.infra.device import Compute, DecoderPrecision
from segmint.model.automatic import device_crops
from segmint.model.automatic.device_crops import DeviceCrops
from segmint.model.automatic.generator import MaskGenerator
from segmint.model.automatic.settings import MaskSettings
from segmint.model.kernels import factored_plainly
from segmint.model.sam.point_decoder import predicted_iou_in_float32
from segmint.model.sam.predictor import Predictor
from segmint.operators.segment.models import load_model

_STEPS = {"answer", "look", "draw"}
_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "linear", "matmul"}


class HalfProducts(TorchDispatchMode):
    """Computes products of fp16 tensors in float32, and rounds their results to fp16."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation of torch."""
        name = func.overloadpacket.__name__
        if func.namespace == "segmint" and name in _STEPS:
            with self:  # products inside of an operator, too
                return getattr(factored_plainly, name)(*args)
        half = any(isinstance(one, Tensor) and one.dtype == torch.float16 for one in args)
        if not half or name not in _PRODUCTS:
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.float(), (args, kwargs or {}))
        return func(*args, **kwargs).half()


@contextmanager
def gpu_formulas() -> Iterator[None]:
    """Compute fp16 products in float32, and as on a GPU, sum logits and predict IoUs in float32 in bf16, too."""
    with (
        HalfProducts(),
        mock.patch.object(factored_plainly, "logit_product", lambda one, other: one.float() @ other.float()),
        mock.patch.object(device_crops, "predicted_iou_of", predicted_iou_in_float32),
    ):
        yield


def generator_with_gpu_formulas(
    weights: Path, decoder_precision: DecoderPrecision, settings: MaskSettings, threads: int
) -> MaskGenerator:
    """Return a generator in bf16 on the CPU that runs the GPU's code with torch's formulas in place of kernels.

    MobileSAM's encoder stays in float32. `decoder_precision` is fp16, or "" for bf16.
    """
    sam = load_model(weights, Compute("cpu", "bf16", threads), decoder_precision)
    generator = MaskGenerator(Predictor(sam, kernels=None), settings)
    generator.device_crops = DeviceCrops(generator.predictor, settings)
    return generator
