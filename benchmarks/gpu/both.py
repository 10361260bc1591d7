"""Predictor with ViT-H's cost and MobileSAM's results: both encoders, one decoder.

ViT-H's weights are 2.4 GiB, which is too large for a bundle. Random weights cost the same, but their features don't
result in masks. Therefore, the ViT runs for its cost, but the decoder receives the features of MobileSAM's encoder,
which are precomputed in float32 as in the product. MobileSAM's decoder weights have the same shapes as ViT-H's.
"""

import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.gpu.encoder import random_encoder
from benchmarks.gpu.run import PartRun

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
HINT = "run `make gpu-bundle` on a machine with a package index"


class BothEncoders:
    """Replacement for a predictor's encoder. It runs the ViT, but returns MobileSAM's features of the same images.

    The features of an image are computed when it first appears, and cached.
    """

    def __init__(self, light: Any, heavy: Any, features: dict[Any, list[tuple[torch.Tensor, ...]]]) -> None:
        self.light = light
        self.heavy = heavy
        self._features = features
        self._now = threading.local()

    def begin(self, image: Any) -> None:
        """Assign this thread's following batches to an image, which any hashable name identifies."""
        self._now.image, self._now.batch = image, 0

    def __call__(self, images: Sequence[torch.Tensor], batch_size: int | None = None) -> list[tuple[torch.Tensor, ...]]:
        """Encode images like `BatchEncoder`."""
        self.heavy(images, batch_size)
        key = self._now.image, self._now.batch, batch_size
        self._now.batch += 1
        if key not in self._features:
            encoded = self.light(images, batch_size)
            self._features[key] = [tuple(features.clone() for features in image) for image in encoded]
        return self._features[key]


def light_sam(run: PartRun, precision: str = "", decoder_precision: str = "") -> Any:
    """Load MobileSAM as the product does. On a GPU, the default is bf16, with the encoder in float32.

    `decoder_precision` is fp16, or "" for the same as `precision`.
    """
    from segmint.infra.device import Compute

    precision = precision or ("bf16" if run.on_cuda else "fp32")
    from segmint.operators.segment.models import load_model

    threads = torch.get_num_threads() if not run.on_cuda else 1
    compute = Compute(run.device.type, precision, threads)  # type: ignore[arg-type]
    return load_model(weights(), compute, decoder_precision)  # type: ignore[arg-type]


def generator_of(
    run: PartRun, sam: Any, layers: int | None = None, heavy: Any = None, features: dict[Any, Any] | None = None
) -> Any:
    """Create a generator with a dataset's SA-1B settings. If `heavy` is a `BatchEncoder`, both encoders run.

    Generators of the same model may share `features`. On a CPU, the generator uses the GPU's code path as well, with
    formulas in place of kernels and graphs.
    """
    from segmint.model.automatic.generator import MaskGenerator
    from segmint.model.automatic.settings import MaskSettings
    from segmint.model.sam.predictor import Predictor

    settings = MaskSettings.sa1b(
        points_per_side=run.sizes.points_per_side,
        crop_n_layers=run.sizes.crop_layers if layers is None else layers,
        points_per_chunk=4 if run.quick else None,
    )
    generator = MaskGenerator(Predictor(sam), settings)
    use_gpu_code(generator)
    if heavy is not None:
        install(generator, heavy, features)
    return generator


def use_gpu_code(generator: Any) -> None:
    """Switch a generator on a CPU to the GPU's code path."""
    from segmint.model.automatic.device_crops import DeviceCrops

    if generator.device_crops is None:
        generator.device_crops = DeviceCrops(generator.predictor, generator.settings)


def install(generator: Any, heavy: Any, features: dict[Any, Any] | None = None) -> None:
    """Make a generator run both encoders in the GPU's code path."""
    from segmint.model.automatic.device_stream import ImageStream

    use_gpu_code(generator)
    both = BothEncoders(generator.predictor.batch_encoder, heavy, {} if features is None else features)
    generator.predictor.batch_encoder = both

    def streamed(images: Any, progress: Any) -> Any:
        batch, crops, copies = generator.crops_per_batch, generator.device_crops, generator.copies
        stream: Any = ImageStream(generator.predictor, generator.settings, batch, crops, copies)
        encode = stream._encode

        def named(part: Any) -> Any:
            layers = generator.settings.crop_n_layers
            pairs = [(*image.pixels, index) for image, index in part]
            names = [(zlib.crc32(np.ascontiguousarray(one[::61])), other is None, index) for one, other, index in pairs]
            both.begin((layers, *names))
            return encode(part)

        stream._encode = named
        return stream.find(images, progress)

    generator._stream = streamed


def heavy_encoder(run: PartRun, sam: Any, compiled: bool = True, dtype: torch.dtype | None = None) -> Any:
    """Create the largest ViT with random weights, for batches as the product encodes them. On a GPU, it is compiled.

    `dtype` defaults to the run's.
    """
    from segmint.model.sam.image_encoder_vit import ImageEncoderViT
    from segmint.model.sam.load import BatchEncoder, Sam

    name = next(iter(run.sizes.vits))
    encoder: ImageEncoderViT = random_encoder(run, name)
    if run.quick:  # because SAM's images are larger than the quick encoder's
        encoder.pos_embed = torch.nn.Parameter(encoder.pos_embed.new_zeros(1, 64, 64, encoder.pos_embed.shape[3]))
    if dtype is not None:
        encoder = encoder.to(dtype)
    whole = Sam(encoder, sam.prompt_encoder, sam.mask_decoder)
    mode = "default" if compiled and run.on_cuda else None
    return BatchEncoder(whole, mode, must_compile=True)  # type: ignore[arg-type]


def weights() -> Path:
    """Return the path of MobileSAM's checkpoint in the bundle."""
    path = BUNDLE / "mobile_sam.pt"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {HINT}")
    return path


def photographs(run: PartRun) -> dict[str, tuple[Any, Any]]:
    """Load the bundle's photographs by name, as (H, W, 3) uint8 RGB in the released size and in the original size.

    They are enlarged, because none is large enough. The cost only depends on the sizes and the number of masks.
    """
    paths = sorted((BUNDLE / "photos").glob("*.jpg")) + sorted((BUNDLE / "photos").glob("*.png"))
    if not paths:
        raise FileNotFoundError(f"{BUNDLE / 'photos'} has no photographs: {HINT}")
    found = {}
    for path in paths[: run.sizes.photographs]:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        if image.width < image.height:
            image = image.transpose(Image.Transpose.ROTATE_90)
        resize: Callable[[tuple[int, int]], Any] = lambda size, image=image: np.asarray(  # noqa: E731
            image.resize(size[::-1], Image.Resampling.BICUBIC)
        )
        found[path.stem] = resize(run.sizes.frame), resize(run.sizes.original)
    return found
