"""Sharing of image encoders between models with equal weights, so that an image is encoded once for all of them.

By default, fine-tuning leaves the image encoder unchanged, so most pairs of models can share it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from segmint.model.sam.predictor import Embedding, Predictor
from segmint.model.sam.sam import Sam


def share_equal_encoders(models: Sequence[Sam]) -> None:
    """Make models whose image encoders have the same weights, bit for bit, share the first such encoder."""
    for place, model in enumerate(models):
        for other in models[:place]:
            if _equal(model.image_encoder, other.image_encoder):
                model.image_encoder = other.image_encoder
                break


def embed_for_all(models: Sequence[Predictor], image: NDArray[np.uint8]) -> list[Embedding]:
    """Embed an image, (H, W, 3) uint8 RGB, for each model. Models that share an encoder share the embedding."""
    found: dict[nn.Module, Embedding] = {}
    for model in models:
        if model.sam.image_encoder not in found:
            found[model.sam.image_encoder] = model.embed(image)
    return [found[model.sam.image_encoder] for model in models]


def _equal(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return (
        type(one) is type(other)
        and first.keys() == second.keys()
        and all(value.dtype == second[name].dtype and torch.equal(value, second[name]) for name, value in first.items())
    )
