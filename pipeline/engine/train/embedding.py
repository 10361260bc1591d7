"""Image embeddings for training: cached ones of a frozen encoder, or the output of an encoder in training."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from segmint.infra.device import Compute, cpu_bits, device_kind
from segmint.model.sam.image_encoder_tinyvit import ImageEncoderTinyViT
from segmint.model.sam.predictor import Predictor
from segmint.model.sam.preprocess import normalize_into
from segmint.model.sam.sam import Sam
from segmint.model.training.dropping import drop_path
from segmint.model.training.encoder_layers import recomputed_blocks
from segmint.pipeline.engine.train.data.cache import EmbeddingCache
from segmint.pipeline.engine.train.data.images import TrainingImages
from segmint.pipeline.engine.train.data.reading import TrainingImage


class FrozenEncoder:
    """Frozen image encoder that fills the cache. It embeds one image at a time, with the precision of inference."""

    def __init__(self, sam: Sam, images: TrainingImages, cache: EmbeddingCache | None, compute: Compute) -> None:
        if compute.precision == "bf16" and not isinstance(sam.image_encoder, ImageEncoderTinyViT):
            sam.image_encoder.bfloat16()  # as in builds; see `load_model`
        self._predictor = Predictor(sam)
        self._images = images
        self._cache = cache

    def kept(self, image: int) -> Tensor | None:
        """Return an image's cached embedding (1, 256, 64, 64) float32, or None if its pixels must be read."""
        return None if self._cache is None else self._cache.get(*self._key(image))

    def embed(self, read: TrainingImage) -> Tensor:
        """Return an image's embedding (1, 256, 64, 64) float32 on the model's device."""
        kept = read.features if read.features is not None else self.kept(read.image)
        if kept is not None:
            return kept.to(self._predictor.sam.device)
        if read.pixels is None:
            raise ValueError(f"image {read.image} was read with neither its pixels nor its embedding")
        features = self._predictor.embed(read.pixels).features.float()
        if self._cache is not None:
            self._cache.put(*self._key(read.image), features)
        return features.clone()  # tensors from inference mode can't be used in training, so clone it

    def _key(self, image: int) -> tuple[str, bytes]:
        shard = self._images.shards[int(self._images.shard[image])]
        return shard.dataset.key, self._images.jpeg_sha256[image].tobytes()


def encoder_hash(sam: Sam) -> str:
    """Hash the image encoder's weights to identify its embeddings. Returns the first twelve hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sam.image_encoder.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.detach().to("cpu", torch.float32).contiguous().numpy()).cast("B"))
    return digest.hexdigest()[:12]


def cache_key(encoder: str, compute: Compute) -> str:
    """Return the cache key of an encoder's embeddings: its hash, and the numerics of this machine and torch."""
    bits = cpu_bits(compute.threads) if compute.kind == "cpu" else device_kind(compute)
    threads = f"-{compute.threads}" if compute.kind == "cpu" else ""
    numerics = hashlib.sha256(f"{torch.__version__} {bits}".encode()).hexdigest()[:6]
    return f"{encoder}-{compute.kind}-{compute.precision}{threads}-{numerics}"


def encoder_input(sam: Sam, reads: Sequence[TrainingImage]) -> Tensor:
    """Build the image encoder's input (B, 3, 1024, 1024) float32 from images that were read with their pixels."""
    side = sam.image_size
    batch = torch.zeros(len(reads), 3, side, side, device=sam.device)
    for place, read in zip(batch, reads, strict=True):
        if read.pixels is None:
            raise ValueError(f"image {read.image} was read without its pixels")
        normalize_into(place, torch.from_numpy(read.pixels).to(sam.device))
    return batch


@contextmanager
def encoder_in_training(
    sam: Sam, reads: Sequence[TrainingImage], chance: float, seed: int, step: int, recompute: bool
) -> Iterator[Tensor]:
    """Embed images with an encoder in training, with drop path of probability `chance`; yields (B, 256, 64, 64).

    The context must stay open until the backward pass is done.
    """
    with ExitStack() as contexts:
        contexts.enter_context(drop_path(sam.image_encoder, chance, seed, step, [read.slot for read in reads]))
        if recompute:
            contexts.enter_context(recomputed_blocks(sam.image_encoder))
        yield sam.image_encoder(encoder_input(sam, reads))
