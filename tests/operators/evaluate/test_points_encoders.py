"""Weights with equal image encoders share one, and an image is encoded once for them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from segmint.model.sam.load import load_sam
from segmint.model.sam.predictor import Predictor
from segmint.operators.evaluate.points import embed_for_all, share_equal_encoders


@pytest.mark.usefixtures("one_thread", "embedded_once")
def test_an_image_is_embedded_once_for_weights_with_equal_encoders(mobile_sam_path: Path, cup: np.ndarray) -> None:
    models = [load_sam(mobile_sam_path) for _ in range(3)]
    with torch.no_grad():
        models[1].mask_decoder.iou_token.weight += 1
        for name, value in models[2].image_encoder.named_parameters():
            if name.endswith("neck.0.weight"):
                value.view(-1)[5] *= 1 + 1e-6
    share_equal_encoders(models)
    assert models[1].image_encoder is models[0].image_encoder
    assert models[2].image_encoder is not models[0].image_encoder
    assert not torch.equal(models[1].mask_decoder.iou_token.weight, models[0].mask_decoder.iou_token.weight)
    first, second, third = embed_for_all([Predictor(model) for model in models], cup)
    assert second is first
    assert not torch.equal(third.features, first.features)
