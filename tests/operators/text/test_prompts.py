"""Text prompts: CLIP's embedding through a projection of its own file; without a text, the bits stay."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from segmint.infra.errors import UsageError
from segmint.model.sam.load import build_sam
from segmint.model.sam.predictor import Predictor
from segmint.operators.text.clip import ClipFolder
from segmint.operators.text.prompts import TextPrompts, load_projection, save_projection
from tests.support.clips import write_clip

pytestmark = pytest.mark.usefixtures("embedded_once")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def projection(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("projection") / "text.safetensors"
    save_projection(path, nn.Linear(16, 256), {"clip_sha256": ClipFolder.open(clip).sha256, "sam_sha256": "ab" * 32})
    return path


def test_a_projection_comes_back_with_its_lineage_and_belongs_to_one_clip(
    clip: Path, projection: Path, tmp_path: Path
) -> None:
    linear, lineage = load_projection(projection)
    assert lineage == {"clip_sha256": ClipFolder.open(clip).sha256, "sam_sha256": "ab" * 32}
    texts = TextPrompts.load(clip, projection)
    assert texts.clip_sha256 == lineage["clip_sha256"]
    embedded = ClipFolder.open(clip).load().embed_texts(["red circle"])
    with torch.no_grad():
        expected = linear(embedded / embedded.norm())
    assert torch.equal(texts(["red circle"]), expected)
    other = write_clip(tmp_path / "other", seed=1)
    with pytest.raises(UsageError, match="was trained with clip_sha256"):
        TextPrompts.load(other, projection)
    with pytest.raises(UsageError, match=f"was trained with sam_sha256 {'ab' * 32}, but this one is {'cd' * 32}"):
        TextPrompts.load(clip, projection, sam_sha256="cd" * 32)
    (tmp_path / "x.safetensors").write_bytes(b"x")
    with pytest.raises(UsageError, match="isn't a projection of text prompts"):
        load_projection(tmp_path / "x.safetensors")
    save_projection(tmp_path / "nan.safetensors", nn.Linear(16, 256).requires_grad_(False).apply(_with_nan), {})
    with pytest.raises(UsageError, match=r"nan.safetensors .*contains numbers that aren't finite"):
        load_projection(tmp_path / "nan.safetensors")
    with pytest.raises(UsageError, match="takes embeddings of 17 numbers, but CLIP's have 16"):
        TextPrompts(ClipFolder.open(clip).load(), nn.Linear(17, 256))
    with pytest.raises(UsageError, match="returns 128 numbers, but SAM's tokens have 256"):
        TextPrompts(ClipFolder.open(clip).load(), nn.Linear(16, 128))


def _with_nan(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.fill_(torch.nan)


@pytest.mark.parametrize("kernels", ["auto", None])
def test_a_text_is_one_token_beside_other_prompts_and_without_it_the_bits_stay(
    clip: Path, projection: Path, kernels: object
) -> None:
    torch.manual_seed(5)
    sam = build_sam("mobile_sam")
    plain = Predictor(sam, kernels=kernels)  # type: ignore[arg-type]
    texts = TextPrompts.load(clip, projection)
    both = Predictor(sam, kernels=kernels, embed_texts=texts)  # type: ignore[arg-type]
    embedding = plain.embed(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    point = {"points": np.array([[[30, 20]], [[50, 40]]]), "labels": np.array([[1], [1]])}
    expected, found = (each.predict(embedding, **point) for each in (plain, both))
    assert torch.equal(found.low_res_logits, expected.low_res_logits)
    assert torch.equal(found.predicted_iou, expected.predicted_iou)

    alone = both.predict(embedding, text="red circle")
    assert alone.low_res_logits.shape == (1, 3, 256, 256)
    with torch.no_grad():
        tokens = texts(["red circle"])[:, None]
        encoded = sam.prompt_encoder(None, None, None, None, tokens)
        assert torch.equal(encoded.sparse, tokens)
        positions = sam.prompt_encoder.dense_positions()
        logits, ious = sam.mask_decoder.decode(embedding.features, positions, encoded, range(1, 4))
    assert (alone.low_res_logits - logits).abs().max() < 1e-3 * logits.abs().max()
    assert (alone.predicted_iou - ious).abs().max() < 1e-4
    other = both.predict(embedding, text="blue bar")
    assert not torch.equal(other.predicted_iou, alone.predicted_iou)
    with_points = both.predict(embedding, **point, text=["red circle", "blue bar"])
    assert not torch.equal(with_points.predicted_iou, expected.predicted_iou)
    with pytest.raises(ValueError, match="2 in points, 1 in text"):
        both.predict(embedding, **point, text="red")
    with pytest.raises(ValueError, match=r"text is \['red', 5\]: expected a text, or a list of texts"):
        both.predict(embedding, **point, text=["red", 5])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="doesn't support text prompts"):
        plain.predict(embedding, text="red")
