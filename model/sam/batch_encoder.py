"""Batched inference of the image encoder with a fixed batch size and optional compilation."""

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
"""Modes of `torch.compile`. `reduce-overhead` replays CUDA graphs."""

MAX_BATCH = 64
"""Maximum batch size. Above about 100, the output of a layer exceeds the 2^31 elements that kernels can index."""

CUDA_BATCH = 7
"""Default batch size on a GPU. It's a third of the 21 crops per image in SA-1B's settings."""


class CompilationError(RuntimeError):
    """Raised when the image encoder must be compiled but `torch.compile` fails."""


class BatchEncoder:
    """Runner of a SAM's image encoder. Create it after the model has its device, dtype, and weights.

    For MobileSAM in float32, the runner keeps a copy of the encoder with folded batch norms
    (`ImageEncoderTinyViT.folded`). In bfloat16, folding would round the weights twice, so the runner uses the model's
    encoder, as it does for all other models. Even in bfloat16, torch's kernels compute the softmax and the statistics
    of layer norms in float32.

    If compilation fails, the runner issues a RuntimeWarning and runs the encoder eagerly from then on. With
    `must_compile`, it raises `CompilationError` instead.
    """

    def __init__(self, sam: Sam, compile_mode: CompileMode | None = None, must_compile: bool = False) -> None:
        encoder = sam.image_encoder
        self.sam = sam
        self.network: nn.Module = encoder
        self._dtype = next(encoder.parameters()).dtype
        if isinstance(encoder, ImageEncoderTinyViT) and self._dtype == torch.float32:
            self.network = encoder.folded()
        self.compile_mode = compile_mode
        self._must_compile = must_compile
        self._compiled = None
        if compile_mode is not None:
            how = compile_arguments(compile_mode, sam.device)
            self._compiled = torch.compile(self.network, dynamic=False, **how)

    def __call__(self, images: Sequence[Tensor], batch_size: int | None = None) -> list[tuple[Tensor, ...]]:
        """Encode images, and return an embedding (1, 256, 64, 64) in the decoder's dtype for each of them, in order.

        If the model has high-resolution features, they follow the embedding. `images` are (h, w, 3) RGB, uint8 or float
        from 0 to 255, on any device. No side may exceed the encoder's input. Every batch contains exactly `batch_size`
        images, because the last one is padded with empty images. Shapes are therefore static, and an image's arithmetic
        depends only on `batch_size`, not on the number of images. Raises ValueError if `batch_size` is less than 1 or
        greater than `MAX_BATCH`.
        """
        size = default_batch_size(self.sam.device) if batch_size is None else batch_size
        if not 1 <= size <= MAX_BATCH:
            raise ValueError(f"batch_size is {size}: expected 1 to {MAX_BATCH} images")
        embeddings: list[tuple[Tensor, ...]] = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            encoded = [maps.to(self.sam.dtype) for maps in self._encode(self._batch(part, size))]
            embeddings += [tuple(maps[index : index + 1] for maps in encoded) for index in range(len(part))]
        return embeddings

    def before_each_layer(self, call: Callable[[], None]) -> None:
        """Register a callback that runs before each layer, in the encoding thread. A compiled encoder ignores it."""
        for module in self.network.modules():
            if not any(module.children()):
                module.register_forward_pre_hook(lambda *_: call())

    def _batch(self, images: Sequence[Tensor], size: int) -> Tensor:
        """Assemble a batch (size, 3, side, side) on the model's device, in the encoder's dtype."""
        side = self.sam.image_size
        batch = torch.zeros(size, 3, side, side, dtype=self._dtype, device=self.sam.device)
        for place, image in zip(batch, images, strict=False):
            normalize_into(place, upload(image, self.sam.device))
        return batch

    def _encode(self, batch: Tensor) -> tuple[Tensor, ...]:
        encoded = self._run(batch)
        return encoded if isinstance(encoded, tuple) else (encoded,)

    def _run(self, batch: Tensor) -> Tensor | tuple[Tensor, ...]:
        encoded: Tensor | tuple[Tensor, ...]
        if self._compiled is None:
            encoded = self.network(batch)
            return encoded
        try:
            encoded = self._compiled(batch)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # from Dynamo, Inductor, or Triton; the model's own errors are raised again below
            failed = f"torch.compile of the image encoder failed ({type(error).__name__}: {_first_lines(error)})"
            if self._must_compile:
                raise CompilationError(failed) from error
            self._compiled = None
            encoded = self.network(batch)
            warnings.warn(
                f"{failed}; running it eagerly, which is slower and differs in the last bits",
                RuntimeWarning,
                stacklevel=2,
            )
            return encoded
        if self.compile_mode != "reduce-overhead":
            return encoded
        # Copy the output, because the next replay of a CUDA graph overwrites it.
        return tuple(maps.clone() for maps in encoded) if isinstance(encoded, tuple) else encoded.clone()


def compile_arguments(mode: CompileMode, device: torch.device) -> dict[str, Any]:
    """Return the arguments of `torch.compile` for a mode.

    On a GPU, the default mode doesn't choose kernels by timing them. The other modes do, so two processes can choose
    different kernels, which may round differently.
    """
    return {"options": {"deterministic": True}} if mode == "default" and device.type == "cuda" else {"mode": mode}


def default_batch_size(device: torch.device) -> int:
    """Return 1 for a CPU, because one image keeps all cores busy, or `CUDA_BATCH` for a GPU."""
    return CUDA_BATCH if device.type == "cuda" else 1


def _first_lines(error: Exception) -> str:
    """Return the text before the first blank line as one line. After it, Dynamo prints advice for its developers."""
    return " ".join(str(error).strip().partition("\n\n")[0].split()) or "no message"
