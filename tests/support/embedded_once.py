"""An image encoder that remembers, for tests of what comes after it: encoding takes most of their time."""

import hashlib

from torch import Tensor, nn

from segmint.model.sam.predictor import Predictor


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
