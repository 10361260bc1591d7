import pytest
import torch
from segment_anything.modeling import TwoWayTransformer as ReferenceTransformer

from segmint.model.sam.mask_decoder import TwoWayTransformer
from tests.support.random_weights import randomize

SIDE = 8


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_tokens_and_image_come_out_as_from_the_reference(depth: int) -> None:
    ours = randomize(TwoWayTransformer(depth))
    theirs = ReferenceTransformer(depth=depth, embedding_dim=256, num_heads=8, mlp_dim=2048).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    image, positions = torch.randn(2, 3, 256, SIDE, SIDE)
    tokens = torch.randn(3, 7, 256)
    with torch.inference_mode():
        found = ours(image.flatten(2).transpose(1, 2), positions[:1].flatten(2).transpose(1, 2), tokens)
        expected = theirs(image, positions[:1], tokens)
    for mine, yours in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, yours, atol=1e-4, rtol=0)


def test_norms_have_the_reference_epsilon() -> None:
    """Too small to show in the outputs of random weights."""
    theirs = ReferenceTransformer(depth=2, embedding_dim=256, num_heads=8, mlp_dim=2048)
    for transformer in (TwoWayTransformer(2), theirs):
        epsilons = {part.eps for part in transformer.modules() if isinstance(part, torch.nn.LayerNorm)}
        assert epsilons == {1e-5}


def test_one_image_serves_all_prompts() -> None:
    transformer = randomize(TwoWayTransformer(2))
    image, positions, tokens = torch.randn(1, 64, 256), torch.randn(1, 64, 256), torch.randn(3, 7, 256)
    with torch.inference_mode():
        shared = transformer(image, positions, tokens)
        repeated = transformer(image.repeat(3, 1, 1), positions, tokens)
    for one, other in zip(shared, repeated, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
