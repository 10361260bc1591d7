"""The image encoder for inference: on batches of one size, compiled if requested."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from segmint.model.device import upload
from segmint.model.sam.image_encoder_tinyvit import ImageEncoderTinyViT
from segmint.model.sam.preprocess import normalize_into
from segmint.model.sam.sam import Sam

CompileMode = Literal["default", "max-autotune-no-cudagraphs", "reduce-overhead"]
"""Modes of `torch.compile`; `reduce-overhead` replays CUDA graphs."""

MAX_BATCH = 64
"""Images encoded at once. Above about 100 a layer's output has over 2^31 elements, which kernels cannot index."""

CUDA_BATCH = 7
"""The default on a GPU: a third of the 21 crops that SA-1B's settings cut from an image."""


class CompilationError(RuntimeError):
    """`torch.compile` failed, and a compiled image encoder was required."""


class BatchEncoder:
    """Runs the image encoder of one SAM; create it once the model has its device, dtype and weights.

    For MobileSAM's encoder in float32 it keeps a copy with folded batch norms (`ImageEncoderTinyViT.folded`); folded
    bfloat16 weights would be rounded twice. Otherwise it runs the model's encoder. In bfloat16 the statistics of layer
    norms and of the attention's softmax are still computed in float32, inside torch's kernels. If compilation fails,
    the encoder runs eagerly from then on, with a RuntimeWarning; with `must_compile` it is a `CompilationError`.
    """

    def __init__(self, sam: Sam, compile_mode: CompileMode | None = None, must_compile: bool = False) -> None:
        encoder = sam.image_encoder
        self.sam = sam
        self._eager: nn.Module = encoder
        self._dtype = next(encoder.parameters()).dtype
        if isinstance(encoder, ImageEncoderTinyViT) and self._dtype == torch.float32:
            self._eager = encoder.folded()
        self._mode = compile_mode
        self._must_compile = must_compile
        self._compiled = None
        if compile_mode is not None:
            how = compile_arguments(compile_mode, sam.device)
            self._compiled = torch.compile(self._eager, dynamic=False, **how)

    def __call__(self, images: Sequence[Tensor], batch_size: int | None = None) -> list[Tensor]:
        """An embedding (1, 256, 64, 64) in the decoder's dtype for each image, in order.

        `images` are (h, w, 3) uint8 RGB on any device, neither side over the encoder's input. Every batch has exactly
        `batch_size` images, the last one padded with empty ones: shapes are static, and an image's arithmetic depends
        only on `batch_size`, not on how many images there are. Raises ValueError for a `batch_size` under 1 or
        over `MAX_BATCH`.
        """
        size = default_batch_size(self.sam.device) if batch_size is None else batch_size
        if not 1 <= size <= MAX_BATCH:
            raise ValueError(f"batch_size is {size}: expected 1 to {MAX_BATCH} images")
        embeddings: list[Tensor] = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            encoded = self._encode(self._batch(part, size)).to(self.sam.dtype)
            embeddings += [encoded[index : index + 1] for index in range(len(part))]
        return embeddings

    def before_each_layer(self, call: Callable[[], None]) -> None:
        """Have `call` called before each layer, in the thread that encodes; a compiled encoder does not call it."""
        for module in self._eager.modules():
            if not any(module.children()):
                module.register_forward_pre_hook(lambda *_: call())

    def _batch(self, images: Sequence[Tensor], size: int) -> Tensor:
        """(size, 3, side, side) on the model's device and in the encoder's dtype."""
        side = self.sam.image_size
        batch = torch.zeros(size, 3, side, side, dtype=self._dtype, device=self.sam.device)
        for place, image in zip(batch, images, strict=False):
            normalize_into(place, upload(image, self.sam.device))
        return batch

    def _encode(self, batch: Tensor) -> Tensor:
        if self._compiled is None:
            embedding: Tensor = self._eager(batch)
            return embedding
        try:
            embedding = self._compiled(batch)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # from Dynamo, Inductor or Triton; a fault of the model is raised again below
            failed = f"torch.compile of the image encoder failed ({type(error).__name__}: {_first_lines(error)})"
            if self._must_compile:
                raise CompilationError(failed) from error
            self._compiled = None
            embedding = self._eager(batch)
            warnings.warn(
                f"{failed}: it runs eagerly, which is slower and differs in the last bits",
                RuntimeWarning,
                stacklevel=2,
            )
            return embedding
        # The next replay of a CUDA graph overwrites its output.
        return embedding.clone() if self._mode == "reduce-overhead" else embedding


def compile_arguments(mode: CompileMode, device: torch.device) -> dict[str, Any]:
    """The mode for `torch.compile`; on a GPU the default mode takes no kernel by timing it.

    The other modes are made to time kernels, each of which may round differently: so may two processes then.
    """
    return {"options": {"deterministic": True}} if mode == "default" and device.type == "cuda" else {"mode": mode}


def default_batch_size(device: torch.device) -> int:
    """1 on a CPU, where one image keeps all cores busy, and `CUDA_BATCH` on a GPU."""
    return CUDA_BATCH if device.type == "cuda" else 1


def _first_lines(error: Exception) -> str:
    """The text before the first blank line, as one line: Dynamo's advice to its developers follows it."""
    return " ".join(str(error).strip().partition("\n\n")[0].split()) or "no message"
