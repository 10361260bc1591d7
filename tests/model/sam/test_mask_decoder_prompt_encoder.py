import pytest
import torch
from segment_anything.modeling import PromptEncoder as ReferencePromptEncoder

from segmint.model.sam.mask_decoder import PositionalEncoding, PromptEncoder
from tests.support.random_weights import randomize

PARTS = ["points", "boxes", "masks", "points boxes", "points masks", "boxes masks", "points boxes masks"]


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return randomize(PromptEncoder())


@pytest.fixture(scope="module")
def reference(encoder: PromptEncoder) -> ReferencePromptEncoder:
    theirs = ReferencePromptEncoder(256, (64, 64), (1024, 1024), 16)
    theirs.load_state_dict(encoder.state_dict(), strict=True)
    return theirs.eval()


@pytest.mark.parametrize("labels", [[1, 0, 1], [1, -1, 0], [-1, -1, -1]], ids=str)
@pytest.mark.parametrize("parts", PARTS)
def test_every_mixture_of_prompts_is_embedded_as_the_reference_does(
    encoder: PromptEncoder, reference: ReferencePromptEncoder, parts: str, labels: list[int]
) -> None:
    points = 1024 * torch.rand(2, 3, 2, dtype=torch.float64) if "points" in parts else None
    marks = torch.tensor([labels, [0, 1, -1]]) if "points" in parts else None
    boxes = 1024 * torch.rand(2, 4, dtype=torch.float64) if "boxes" in parts else None
    masks = torch.randn(2, 1, 256, 256) if "masks" in parts else None
    with torch.inference_mode():
        found = encoder(points, marks, boxes, masks)
        pair = None if points is None or marks is None else (points, marks)
        sparse, dense = reference(pair, boxes, masks)
    torch.testing.assert_close(found.sparse, sparse, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.dense.expand(2, -1, -1, -1), dense, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("parts", "tokens"), [("points", 4), ("boxes", 2), ("masks", 0), ("points boxes", 5)])
def test_points_without_a_box_get_one_token_more(encoder: PromptEncoder, parts: str, tokens: int) -> None:
    points, labels = (torch.ones(2, 3, 2), torch.ones(2, 3)) if "points" in parts else (None, None)
    boxes = torch.ones(2, 4) if "boxes" in parts else None
    masks = torch.ones(2, 1, 256, 256) if "masks" in parts else None
    assert encoder(points, labels, boxes, masks).sparse.shape == (2, tokens, 256)


@pytest.mark.parametrize("follow", [False, True], ids=["a box", "a box and points"])
def test_a_box_gets_a_padding_token_where_the_weights_expect_it(encoder: PromptEncoder, follow: bool) -> None:
    padded = PromptEncoder(pads_boxes=True)
    padded.load_state_dict(encoder.state_dict())
    points, labels = (torch.ones(2, 3, 2), torch.ones(2, 3)) if follow else (None, None)
    boxes = torch.tensor([[10.0, 20.0, 300.0, 400.0]]).expand(2, -1)
    plain, found = (each(points, labels, boxes, None).sparse for each in (encoder, padded))
    assert torch.equal(found[:, :-1], plain)
    assert torch.equal(found[:, -1], encoder.not_a_point_embed.weight.expand(2, -1))


def test_a_masks_embedding_is_a_sum_of_17_vectors(encoder: PromptEncoder) -> None:
    torch.manual_seed(0)
    masks = torch.randn(2, 1, 256, 256) * 5
    expected = encoder(None, None, None, masks).dense
    total = encoder.mask_coefficients(masks).transpose(1, 2) @ encoder.mask_vectors()
    found = encoder.dense_without_mask() + total.transpose(1, 2).unflatten(2, (64, 64))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert not encoder.mask_coefficients(None).any()


def test_no_prompt_at_all_is_an_error(encoder: PromptEncoder) -> None:
    with pytest.raises(ValueError, match="no prompt"):
        encoder(None, None, None, None)


def test_the_images_positions_are_the_reference_ones(encoder: PromptEncoder, reference: ReferencePromptEncoder) -> None:
    torch.testing.assert_close(encoder.dense_positions(), reference.get_dense_pe(), atol=1e-4, rtol=0)


def test_a_cast_of_the_model_leaves_the_frequencies_alone() -> None:
    encoder = randomize(PromptEncoder())
    frequencies = encoder.pe_layer.positional_encoding_gaussian_matrix.clone()
    exact = encoder.dense_positions()
    encoder.to(torch.bfloat16)
    assert encoder.no_mask_embed.weight.dtype == torch.bfloat16
    assert torch.equal(encoder.pe_layer.positional_encoding_gaussian_matrix, frequencies)
    assert torch.equal(encoder.dense_positions(), exact.to(torch.bfloat16))


def test_autocast_leaves_positions_in_full_precision() -> None:
    encoding = PositionalEncoding(256)
    positions = torch.rand(5, 2)
    exact = encoding(positions)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoding(positions), exact)
