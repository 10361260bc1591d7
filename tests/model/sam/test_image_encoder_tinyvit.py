from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from segmint.model.sam.image_encoder_tinyvit import ImageEncoderTinyViT, WindowAttention, bias_index
from segmint.model.sam.load import load_sam
from segmint.model.sam.predictor import Embedding, Predictor
from tests.support.random_weights import randomize
from tests.support.stripes import stripes

pytestmark = pytest.mark.usefixtures("embedded_once")


@pytest.fixture(scope="module")
def predictor(mobile_sam_path: Path) -> Predictor:
    return Predictor(load_sam(mobile_sam_path))


@pytest.fixture(scope="module")
def embedding(predictor: Predictor) -> Embedding:
    return predictor.embed(stripes())


def test_the_published_weights_give_the_published_models_embedding(embedding: Embedding) -> None:
    """Recorded from MobileSAM's own code, with its attention biases in force."""
    features = embedding.features
    assert features.shape == (1, 256, 64, 64)
    assert float(features.mean()) == pytest.approx(-0.002327, abs=1e-5)
    assert float(features.std()) == pytest.approx(0.105289, abs=1e-5)
    assert features[0, 0, 0, :4].tolist() == pytest.approx([0.06338, 0.08214, 0.12135, 0.16389], abs=1e-4)
    last = features[0, 255, 63, -4:].tolist()
    assert last == pytest.approx([-0.09761, -0.09659, -0.10073, -0.09901], abs=1e-4)


def test_the_published_weights_give_the_published_models_ious(predictor: Predictor, embedding: Embedding) -> None:
    point, label = np.array([[[512, 384]]]), np.array([[1]])
    three = predictor.predict(embedding, point, label).predicted_iou
    one = predictor.predict(embedding, point, label, multimask=False).predicted_iou
    assert three[0].tolist() == pytest.approx([0.59189, 0.62339, 0.75246], abs=1e-4)
    assert one[0].tolist() == pytest.approx([0.57466], abs=1e-4)


def test_each_distance_has_the_number_of_its_first_occurrence() -> None:
    """TinyViT numbers the pairs (|dy|, |dx|) as a walk over all pairs of positions first meets them."""
    side, numbers = 5, dict[tuple[int, int], int]()
    cells = list(product(range(side), repeat=2))
    expected = [
        [numbers.setdefault((abs(y0 - y1), abs(x0 - x1)), len(numbers)) for y1, x1 in cells] for y0, x0 in cells
    ]
    assert bias_index(side, torch.device("cpu")).tolist() == expected


def test_biases_loaded_after_eval_are_in_force() -> None:
    """The published code caches its biases when it is switched to evaluation, and so misses later ones."""
    attention = randomize(WindowAttention(width=64, heads=2, window=7))
    windows = torch.randn(1, 7, 7, 64)
    with torch.inference_mode():
        before = attention(windows)
        state = attention.state_dict()
        state["attention_biases"] = torch.randn(2, 49)
        attention.load_state_dict(state)
        after = attention(windows)
    assert (after - before).abs().max() > 0.01


def test_norms_have_the_published_epsilon() -> None:
    norms = (torch.nn.LayerNorm, torch.nn.BatchNorm2d)
    parts = ImageEncoderTinyViT().layers.modules()
    assert {part.eps for part in parts if isinstance(part, norms)} == {1e-5}


def test_folded_batch_norms_give_the_same_embedding_and_leave_the_encoder_alone() -> None:
    encoder = randomize(ImageEncoderTinyViT())
    names = list(encoder.state_dict())
    image = torch.randn(1, 3, 128, 128)
    with torch.inference_mode():
        folded = encoder.folded()
        torch.testing.assert_close(folded(image), encoder(image), atol=2e-5, rtol=0)
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in folded.modules())
    assert list(encoder.state_dict()) == names


def test_batch_norms_in_training_are_not_folded() -> None:
    with pytest.raises(ValueError, match=r"training mode: call \.eval\(\)"):
        ImageEncoderTinyViT().train().folded()


def test_several_images_at_once_give_what_each_gives_alone() -> None:
    encoder = randomize(ImageEncoderTinyViT())
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        together = encoder(images)
        alone = torch.cat([encoder(image[None]) for image in images])
    assert together.shape == (2, 256, 6, 6)
    assert together.std() > 0.3
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
