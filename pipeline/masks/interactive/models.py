"""SAM by name, and the predictor for notebooks and scripts."""

import os
from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor

from segmint.infra.assets.known import AUTO, default_weights
from segmint.infra.assets.resolve import resolve_default
from segmint.infra.device import resolve_compute
from segmint.model.sam import predictor as base
from segmint.model.sam.batch_encoder import CompileMode
from segmint.model.sam.image_encoder_tinyvit import ImageEncoderTinyViT
from segmint.model.sam.image_encoder_vit import ImageEncoderViT
from segmint.model.sam.load import VIT_SHAPES
from segmint.model.sam.predictor import Embedding
from segmint.model.sam.sam import Sam
from segmint.operators.segment.models import cpu_kernels, load_model
from segmint.pipeline.masks.interactive.images import Image, Pixels, pixels_of

Weights: TypeAlias = str | os.PathLike[str]
"""Name of weights (mobile_sam, vit_b, vit_l, vit_h), or a checkpoint's path or URI. auto: vit_h on a GPU, mobile_sam
on a CPU."""


def sam_of(model: Sam | Weights, device: str = "auto", precision: str = "fp32") -> Sam:
    """Return a model ready to use, loaded from weights by name or path, or the given model itself.

    Raises `UsageError` if the weights cannot be found or the device is not available, ValueError for a device or a
    precision given with a loaded model, which has its own, and TypeError for anything else.
    """
    if isinstance(model, Sam):
        if (device, precision) != ("auto", "fp32"):
            raise ValueError(
                f"device={device!r} and precision={precision!r} can't be combined with a loaded model. "
                "Pass them to load_sam."
            )
        return model
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(
            f"the model is a {type(model).__name__}: expected a name (mobile_sam, vit_b, vit_l, vit_h), the path of a "
            "checkpoint, or the result of load_sam"
        )
    compute = resolve_compute(device, precision)
    name = default_weights(compute.kind) if model == AUTO else os.fspath(model)
    return load_model(resolve_default(name, os.fspath(model), "the model"), compute)


class Predictor(base.Predictor):
    """Predictor of masks for prompts, from a SAM given as a model, a name, or a checkpoint's path.

    `device` (auto, cpu, cuda, cuda:N) and `precision` (fp32, bf16, auto) apply to weights that this class loads.
    Methods accept a path, a URI, a Pillow image, or an array as an image. For everything else, see
    `segmint.model.sam.predictor.Predictor`.
    """

    def __init__(
        self,
        sam: Sam | Weights = AUTO,
        compile_encoder: CompileMode | None = None,
        must_compile: bool = False,
        *,
        device: str = "auto",
        precision: str = "fp32",
    ) -> None:
        model = sam_of(sam, device, precision)
        super().__init__(model, compile_encoder, must_compile, cpu_kernels(model.device.type, model.draws_in_bf16))

    def embed(self, image: Image | Tensor, frame_size: tuple[int, int] | None = None) -> Embedding:
        """Encode an image of any type that `pixels_of` accepts; see the base class for `frame_size`."""
        return super().embed(_pixels(image), frame_size)

    def embed_many(
        self,
        images: Sequence[Image | Tensor],
        frame_sizes: Sequence[tuple[int, int] | None] | None = None,
        batch_size: int | None = None,
    ) -> list[Embedding]:
        """Encode images in batches of `batch_size`. All of them are in memory at once."""
        return super().embed_many([_pixels(image) for image in images], frame_sizes, batch_size)

    def __repr__(self) -> str:
        return f"Predictor({model_name(self.sam)})"


def model_name(sam: Sam) -> str:
    """Return a short description of a model: its image encoder, device, and dtype."""
    encoder = sam.image_encoder
    name = type(encoder).__name__
    if isinstance(encoder, ImageEncoderTinyViT):
        name = "mobile_sam"
    elif isinstance(encoder, ImageEncoderViT):
        widths = {shape.width: known for known, shape in VIT_SHAPES.items()}
        name = widths.get(encoder.pos_embed.shape[-1], name)
    drawn = ", drawing in bfloat16" if sam.draws_in_bf16 else ""
    return f"{name} on {sam.device}, {str(sam.dtype).removeprefix('torch.')}{drawn}"


def _pixels(image: Image | Tensor) -> Tensor | Pixels:
    return image if isinstance(image, Tensor) else pixels_of(image)
