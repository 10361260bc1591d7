"""Each step of an image kept in factors, against the same step on the whole image."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from segmint.model.sam.common import split_heads
from segmint.model.sam.mask_decoder import Attention, TwoWayBlock
from segmint.model.sam.point_decoder import FactoredImage, SharedNorm, SharedScores, SharedView, by_head, scaled
from tests.support.random_weights import randomize

HEADS, TOKENS, POSITIONS = 8, 7, 100


@dataclass(frozen=True)
class Case:
    """An image in factors, the shared image X that it is made from, and the whole."""

    image: FactoredImage
    shared: Tensor
    maps: Tensor

    @property
    def whole(self) -> Tensor:
        """(B, P, C)."""
        image = self.image
        return image.scale.transpose(1, 2) * self.shared + image.coefficients.transpose(1, 2) @ image.vectors


@pytest.fixture
def case() -> Case:
    torch.manual_seed(3)
    maps, values = torch.randn(HEADS, 16, 256) / 16, torch.randn(2, HEADS, TOKENS, 16)
    vectors = torch.cat([by_head(values, maps), torch.randn(1, 1, 256).expand(2, -1, -1)], dim=1)
    coefficients = torch.cat([torch.rand(2, HEADS * TOKENS, POSITIONS), torch.ones(2, 1, POSITIONS)], dim=1)
    image = FactoredImage(torch.rand(2, 1, POSITIONS) + 0.5, coefficients, vectors, values)
    return Case(image, torch.randn(POSITIONS, 256), maps)


def by_heads(weight: Tensor) -> Tensor:
    return torch.unflatten(weight, 0, (HEADS, -1))


def shared_scores(weight: Tensor, bias: Tensor, shared: Tensor, places: Tensor) -> SharedScores:
    constant = torch.nn.functional.linear(places, weight, bias)
    return SharedScores(
        split_heads((shared @ weight.T)[None], HEADS)[0].transpose(1, 2).contiguous(),
        split_heads(constant[None], HEADS)[0].transpose(1, 2).contiguous(),
        by_heads(weight),
    )


def test_scores_are_products_with_the_projected_image(case: Case) -> None:
    weight, bias, places = torch.randn(128, 256) / 16, torch.randn(128), torch.randn(POSITIONS, 256)
    few = torch.randn(2, HEADS, TOKENS, 16)
    with torch.inference_mode():
        found = shared_scores(weight, bias, case.shared, places).between(few, case.image)
        projected = split_heads(torch.nn.functional.linear(case.whole + places, weight, bias), HEADS)
        expected = (few @ projected.transpose(2, 3)).flatten(1, 2)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_few_queries_see_what_plain_attention_shows_them(case: Case) -> None:
    attention = randomize(Attention(256, 128, HEADS), seed=2)
    places, queries = torch.randn(POSITIONS, 256), torch.randn(2, 4, 256)
    value = by_heads(attention.v_proj.weight)
    with torch.inference_mode():
        keys = shared_scores(attention.k_proj.weight, torch.zeros(128), case.shared, places)
        view = SharedView(keys, (case.shared @ value.transpose(1, 2)).contiguous(), value)
        found = view.attend(attention, queries, case.image)
        expected = attention(queries, case.whole + places, case.whole)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_an_image_that_attended_and_was_normalized_is_still_in_factors(case: Case) -> None:
    block = randomize(TwoWayBlock(256, HEADS, 2048, first=False), seed=5)
    attention, places = block.cross_attn_image_to_token, torch.randn(POSITIONS, 256)
    keys, tokens = torch.randn(2, 2, TOKENS, 256)
    weight, bias = attention.out_proj.weight, attention.out_proj.bias
    with torch.inference_mode():
        expected = block.norm4(case.whole + attention(case.whole + places, keys, tokens))
        scores = shared_scores(attention.q_proj.weight, attention.q_proj.bias, case.shared, places)
        # The bias of the projection joins the row whose coefficients are 1; then all rows lose their means.
        shared, maps, constants = (
            rows - rows.mean(dim=-1, keepdim=True)
            for rows in (
                case.shared,
                torch.cat([torch.unflatten(weight.T, 0, (HEADS, -1)), case.maps]),
                case.image.vectors[0, -1:] + bias,
            )
        )
        norm = SharedNorm(
            shared.square().sum(dim=1), maps, maps @ shared.T, constants, constants @ shared.T, block.norm4
        )
        few = scaled(split_heads(attention.k_proj(keys), HEADS))
        weights = torch.unflatten(scores.between(few, case.image), 1, (HEADS, -1)).softmax(dim=2).flatten(1, 2)
        image = norm.after(case.image, weights, split_heads(attention.v_proj(tokens), HEADS))
        found = Case(image, shared * block.norm4.weight, maps)
    assert image.coefficients.shape == (2, 2 * HEADS * TOKENS + 2, POSITIONS)
    torch.testing.assert_close(found.whole, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.whole[1:], Case(image.of(torch.tensor([1])), found.shared, maps).whole)
