"""Parts of a GPU day about the image encoder: matrix products, attention by kernel, and the complete ViT."""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.gpu.run import NotMeasuredError, PartRun, memory, synchronize, timed

WAYS = ("triton", "flash", "efficient", "math", "cudnn")
"""Our kernels, and torch's alternatives. The product never uses cuDNN's."""


@contextlib.contextmanager
def attending_by(way: str) -> Iterator[None]:
    """Restrict the ViT's attention on a GPU to one kind of kernels while the block runs."""
    from torch.nn.attention import SDPBackend

    from segmint.model.sam import image_encoder_vit
    from segmint.model.sam import image_encoder_vit as gpu_attention

    if way == "triton":
        yield
        return
    names = {"flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "math": "MATH", "cudnn": "CUDNN_ATTENTION"}
    with (
        patch.object(image_encoder_vit, "relative_attention", lambda *_: None),
        patch.object(gpu_attention, "HALF_BACKENDS", [SDPBackend.__members__[names[way]]]),
    ):
        yield


def need_triton(way: str) -> None:
    """Raise `NotMeasuredError` if our kernels are requested and Triton is missing."""
    from segmint.model.sam.image_encoder_vit import attention_kernels

    if way == "triton" and attention_kernels(torch.bfloat16) != "triton":
        raise NotMeasuredError("Triton is not installed")


def measure_products(run: PartRun, batch: int) -> dict[str, Any]:
    """Measure the milliseconds and TFLOP/s of the encoder's matrix products in bfloat16, by shape, at a batch size."""
    width = next(iter(run.sizes.vits.values()))[0]
    tokens = batch * (run.sizes.image_side // 16) ** 2
    shapes = {
        "patches": (768, width),
        "qkv": (width, 3 * width),
        "proj": (width, width),
        "mlp in": (width, 4 * width),
        "mlp out": (4 * width, width),
        "neck": (width, 256),
    }
    found: dict[str, Any] = {}
    for name, (inner, outer) in shapes.items():
        x = torch.randn(tokens, inner, device=run.device, dtype=run.dtype)
        weight = torch.randn(outer, inner, device=run.device, dtype=run.dtype)
        bias = torch.randn(outer, device=run.device, dtype=run.dtype)
        seconds = timed(run, partial(torch.nn.functional.linear, x, weight, bias))["median_s"]
        tflops = 2 * tokens * inner * outer / seconds / 1e12
        found[name] = {"ms": seconds * 1e3, "tflops": tflops, "of_peak": run.of_peak(tflops)}
    return found


def measure_attention(run: PartRun, dimensions: int, side: int, way: str, batch: int) -> dict[str, Any]:
    """Measure a bfloat16 attention layer with 16 heads, including its products, and its difference from float32.

    `side` is the side in tokens of its windows, or of the whole map for global attention.
    """
    run.need_cuda()
    need_triton(way)
    from segmint.model.sam.image_encoder_vit import RelativeAttention

    grid = run.sizes.image_side // 16
    torch.manual_seed(0)
    layer = RelativeAttention(16 * dimensions, 16, side)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    layer = layer.to(run.device)
    x = torch.randn(batch, grid, grid, 16 * dimensions, device=run.device)
    exact = layer(x[:1])  # in float32, with torch's kernels
    layer, x = layer.bfloat16(), x.bfloat16()
    with attending_by(way), memory(run) as peak, torch.inference_mode():
        difference = float((layer(x[:1]).float() - exact).abs().max())
        seconds = timed(run, lambda: layer(x))
    return {**seconds, **peak, "largest_difference": difference, "largest": float(exact.abs().max())}


def random_encoder(run: PartRun, name: str) -> Any:
    """Create a ViT with random weights. They cost as much as real weights, and are the same each time."""
    from segmint.model.sam.image_encoder_vit import ImageEncoderViT, VitShape

    torch.manual_seed(0)
    with torch.device(run.device):
        encoder = ImageEncoderViT(VitShape(*run.sizes.vits[name]), run.sizes.image_side).eval()
        for parameter in encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    return encoder.to(run.dtype)


class Encoders:
    """Holder of the ViT that is being measured, so that only one ViT is on the GPU at a time."""

    def __init__(self) -> None:
        self._name = ""
        self._encoder: Any = None

    def get(self, run: PartRun, name: str) -> Any:
        """Return the ViT of this name."""
        if name != self._name:
            self._encoder = None
            torch.compiler.reset()
            self._encoder, self._name = random_encoder(run, name), name
        return self._encoder


def measure_encoder(
    run: PartRun, encoders: Encoders, name: str, batch: int, way: str = "triton", compiled: bool = True
) -> dict[str, Any]:
    """Measure a ViT in bfloat16: its images per second, its share of the peak, its memory, and its compile time."""
    from segmint.model.sam.load import compile_arguments

    if compiled or way != "triton":
        run.need_cuda()
    if run.on_cuda:
        need_triton(way)
    encoder: Callable[[Any], Any] = encoders.get(run, name)
    found: dict[str, Any] = {}
    side = run.sizes.image_side
    images = torch.randn(batch, 3, side, side, device=run.device, dtype=run.dtype)
    with attending_by(way), torch.inference_mode():
        if compiled:
            torch.compiler.reset()  # because compiled code uses another kernel
            encoder = torch.compile(encoder, dynamic=False, **compile_arguments("default", run.device))
            started = time.monotonic()
            encoder(images)
            synchronize(run)
            found["compile_s"] = round(time.monotonic() - started, 1)
        with memory(run) as peak:
            seconds = timed(run, lambda: encoder(images))
    rate = batch / seconds["median_s"]
    return {**found, **seconds, "images_s": rate, **of_ceiling(run, name, rate), **peak}


def of_ceiling(run: PartRun, name: str, images_s: float) -> dict[str, Any]:
    """Convert an encoding rate to TFLOP/s and a fraction of the peak. Empty for sizes other than SAM's."""
    from segmint.model.cost import encode_flop

    if run.quick:
        return {}
    tflops = images_s * encode_flop(name) / 1e12  # type: ignore[arg-type]
    return {"tflops": tflops, "of_peak": run.of_peak(tflops)}
