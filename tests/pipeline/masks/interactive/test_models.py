"""The predictor of notebooks: weights by name or path, any image, prompts without a batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import segmint
from segmint.infra.errors import UsageError
from segmint.model.sam import predictor as base
from segmint.model.sam.load import build_sam, load_sam
from segmint.pipeline.masks.interactive.models import Predictor, sam_of
from tests.support.embedded_once import embed_once


@pytest.fixture(scope="module")
def predictor(weights: None) -> Predictor:
    made = Predictor(device="cpu")
    embed_once(made)
    return made


def test_weights_by_name_and_by_path_are_the_same_model(predictor: Predictor, mobile_sam_path: Path) -> None:
    expected = load_sam(mobile_sam_path).state_dict()
    for made in (predictor, Predictor(mobile_sam_path, device="cpu")):
        assert all(torch.equal(value, expected[name]) for name, value in made.sam.state_dict().items())
    loaded = segmint.load_sam(mobile_sam_path, device="cpu")
    assert sam_of(loaded) is loaded
    with pytest.raises(UsageError, match=r"neither a known name .* nor a file"):
        Predictor("sam_vit_z")


def test_any_image_is_embedded_as_its_pixels_are(predictor: Predictor, coffee: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(coffee).save(tmp_path / "coffee.png")
    expected = base.Predictor.embed(predictor, coffee)
    for given in (tmp_path / "coffee.png", Image.fromarray(coffee), torch.from_numpy(coffee.copy())):
        assert torch.equal(predictor.embed(given).features, expected.features)
    (found,) = predictor.embed_many([str(tmp_path / "coffee.png")], [(200, 300)])
    assert found.frame_size == (200, 300)
    assert torch.equal(found.features, expected.features)


def test_one_prompt_needs_no_batch(predictor: Predictor, coffee: np.ndarray) -> None:
    embedding = predictor.embed(coffee)
    point, box = [[290.0, 60.0]], [172, 15, 410, 305]
    alone = predictor.predict(embedding, points=point, labels=[1])  # type: ignore[arg-type]
    batched = predictor.predict(embedding, points=np.array([point]), labels=np.array([[1]]))
    assert torch.equal(alone.low_res_logits, batched.low_res_logits)
    again = {"points": torch.tensor(point), "labels": torch.tensor([1]), "masks": alone.low_res_logits[0, :1]}
    single = predictor.predict(embedding, **again, boxes=torch.tensor(box), multimask=False)
    batch = {name: value[None] for name, value in again.items()}
    twice = predictor.predict(embedding, **batch, boxes=torch.tensor([box]), multimask=False)
    assert torch.equal(single.low_res_logits, twice.low_res_logits)
    assert repr(alone).startswith("Masks(3 for each of 1 prompts, predicted IoU 0.")
    assert repr(embedding) == "Embedding(frame 600 x 400 pixels, features (1, 256, 64, 64) on cpu)"


def test_a_predictor_says_what_it_is(predictor: Predictor) -> None:
    assert repr(predictor) == "Predictor(mobile_sam on cpu, float32)"
    with torch.device("meta"):
        sam = build_sam("vit_l")
    assert repr(Predictor(sam)) == "Predictor(vit_l on meta, float32)"
