"""An image encoder that remembers, for tests of what comes after it: encoding takes most of their time."""

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor, nn

from segmint.model.sam.batch_encoder import BatchEncoder
from segmint.model.sam.predictor import Predictor
from tests.support.parallel import made_once


class EmbeddedOnce(nn.Module):
    """An encoder that gives for a batch it has seen, to the last bit, what it gave before."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self._seen: dict[str, Tensor] = {}

    def forward(self, batch: Tensor) -> Tensor:
        """Encode (B, 3, side, side); the embeddings (B, 256, side / 16, side / 16) are shared, not copied."""
        key = f"{tuple(batch.shape)} {hashlib.sha256(batch.contiguous().numpy().tobytes()).hexdigest()}"
        if key not in self._seen:
            self._seen[key] = self.encoder(batch)
        return self._seen[key]


def embed_once(predictor: Predictor) -> EmbeddedOnce:
    """Let a predictor in float32 on the CPU encode an image of the same pixels once; returns its encoder."""
    encoder = EmbeddedOnce(predictor._encoder._eager)
    predictor._encoder._eager = encoder
    return encoder


@contextmanager
def encoding_once(factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let predictors take what one of them, in any process of this test run, has made of the same batch.

    Only in float32 on the CPU. A batch is known by its pixels, the encoder's weights, and the number of threads, on
    which the last bits depend.
    """
    real, folder = BatchEncoder._run, made_once(factory, "embeddings", lambda _: None)
    weights: WeakKeyDictionary[BatchEncoder, str] = WeakKeyDictionary()

    def run(encoder: BatchEncoder, batch: Tensor) -> Tensor | tuple[Tensor, ...]:
        if encoder._compiled is not None or batch.dtype != torch.float32 or batch.device.type != "cpu":
            return real(encoder, batch)
        if encoder not in weights:
            weights[encoder] = _digest(*encoder._eager.state_dict().values())
        file = folder / f"{weights[encoder]}-{_digest(batch)}-{torch.get_num_threads()}.pt"
        if not file.exists():
            own = file.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
            torch.save(real(encoder, batch), own)
            own.replace(file)
        made: Tensor | tuple[Tensor, ...] = torch.load(file, weights_only=True)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchEncoder, "_run", run)
        yield


def _digest(*tensors: Tensor) -> str:
    """A name of tensors by their shapes and values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
