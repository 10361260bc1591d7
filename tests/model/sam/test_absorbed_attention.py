"""Attention whose projections are absorbed by the few tokens, against plain attention."""

import pytest
import torch

from model.sam import absorbed_attention
from model.sam.absorbed_attention import absorb_keys, attend_from_few, bands, project_keys, singly
from model.sam.transformer import Attention
from tests.support.random_weights import randomize

CPU = torch.device("cpu")
EVERY = slice(None)


@pytest.fixture
def attention() -> Attention:
    return randomize(Attention(256, 128, 8), seed=2)


@pytest.mark.parametrize("band", [30, 1024])
def test_few_queries_see_what_plain_attention_shows_them(
    attention: Attention, band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(absorbed_attention, "BAND", band)
    few, image, places = torch.randn(2, 7, 256), torch.randn(2, 100, 256), torch.randn(1, 100, 256)
    with torch.inference_mode():
        found = attend_from_few(attention, few, image, places)
        expected = attention(few, image + places, image)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_many_queries_get_from_few_what_plain_attention_gives_them(attention: Attention) -> None:
    many, onto, keys, values = (torch.randn(2, count, 256) for count in (100, 100, 7, 7))
    with torch.inference_mode():
        expected = onto + attention(many, keys, values)
        absorbed = absorb_keys(attention, keys, values).attend(EVERY, many, onto)
        projected = project_keys(attention, keys, values).attend(EVERY, attention.q_proj(many), onto)
    torch.testing.assert_close(absorbed, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(projected, expected, atol=1e-5, rtol=0)


def test_some_of_the_prompts_attend_alone(attention: Attention) -> None:
    many, onto, keys, values = (torch.randn(3, count, 256) for count in (9, 9, 7, 7))
    with torch.inference_mode():
        found = absorb_keys(attention, keys, values).attend(slice(1, 2), many[1:2], onto[1:2])
        expected = onto + attention(many, keys, values)
    torch.testing.assert_close(found, expected[1:2], atol=1e-5, rtol=0)


def test_bands_and_single_prompts_are_for_cpus() -> None:
    assert singly(2, CPU) == [slice(0, 1), slice(1, 2)]
    assert singly(2, torch.device("cuda")) == [slice(0, 2)]
    assert bands(2100, CPU) == [slice(0, 1024), slice(1024, 2048), slice(2048, 2100)]
    assert bands(1200, torch.device("cuda")) == [slice(0, 1200)]
