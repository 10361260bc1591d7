"""Numerics of a GPU for tests of layouts, which start no process there."""

from collections.abc import Mapping
from typing import Any

GPU_FIELDS = {
    "device": "cuda",
    "cuda": "13.0",
    "cudnn": "91300",
    "triton": "3.7.0",
    "attention": "triton",
    "chunks": "64,256",
}


def on_a_gpu(numerics: Mapping[str, Any], **more: str) -> dict[str, Any]:
    """Return a CPU's numerics as a dataset on a GPU would record them, with `more` fields."""
    return {key: value for key, value in numerics.items() if key not in ("cpu", "kernels")} | GPU_FIELDS | more
