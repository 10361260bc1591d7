"""An image encoder that remembers, for tests of what comes after it: encoding takes most of their time."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import uuid4

import pytest
import torch
from torch import Tensor, nn

from segmint.model.sam.image_encoder_tinyvit import ImageEncoderTinyViT
from segmint.model.sam.load import BatchEncoder, Sam
from segmint.model.sam.predictor import Predictor
from tests.support.parallel import made_once


class EmbeddedOnce(nn.Module):
    """An encoder that gives for a batch it has seen, to the last bit, what it gave before.

    With a folder, what encoders of equal weights have seen is there, for all of them in all processes.
    """

    def __init__(self, encoder: nn.Module, folder: Path | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self._seen: dict[str, Tensor] = {}
        self._folder = folder
        self._weights = "" if folder is None else _digest(*encoder.state_dict().values())

    def forward(self, batch: Tensor) -> Tensor:
        """Encode (B, 3, side, side); embeddings (B, 256, side / 16, side / 16) from memory are shared, not copied."""
        key = _digest(batch)
        if self._folder is None:
            if key not in self._seen:
                self._seen[key] = self.encoder(batch)
            return self._seen[key]
        path = self._folder / f"{self._weights}-{key}-{torch.get_num_threads()}.pt"
        if path.exists():
            seen: Tensor = torch.load(path)
            return seen
        encoded: Tensor = self.encoder(batch)
        part = self._folder / f"part-{uuid4()}"
        torch.save(encoded, part)
        part.rename(path)
        return encoded


def embed_once(predictor: Predictor) -> EmbeddedOnce:
    """Let a predictor in float32 on the CPU encode an image of the same pixels once; returns its encoder."""
    encoder = EmbeddedOnce(predictor.batch_encoder.network)
    predictor.batch_encoder.network = encoder
    return encoder


@contextmanager
def encoding_once(factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have all of MobileSAM's encoders in float32 on the CPU that are made meanwhile share a folder of the test run."""
    folder, start = made_once(factory, "embeddings", lambda _: None), BatchEncoder.__init__

    def started(self: BatchEncoder, sam: Sam, *arguments: Any, **named: Any) -> None:
        start(self, sam, *arguments, **named)
        if isinstance(self.network, ImageEncoderTinyViT) and (sam.device.type, self._dtype) == ("cpu", torch.float32):
            self.network = EmbeddedOnce(self.network, folder)

    with mock.patch.object(BatchEncoder, "__init__", started):
        yield


def _digest(*tensors: Tensor) -> str:
    """SHA-256 of the shapes and numbers of tensors, the first half."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
