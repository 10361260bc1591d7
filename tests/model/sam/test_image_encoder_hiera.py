"""Hiera's blocks beside plain operations, window by window, and the encoder's outputs on fixed weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.model.sam.image_encoder_hiera import HieraBlock, HieraShape, ImageEncoderHiera, max_pool
from tests.support.random_weights import randomize

SMALL = HieraShape(16, 1, (1, 2, 3, 1), (8, 4, 6, 3), (4,), 7)


def plain_block(block: HieraBlock, x: Tensor) -> Tensor:
    """The block as the Hiera and SAM 2 papers describe it, with windows that are padded by zeros."""
    normalized, heads = block.norm1(x), block.attn.heads
    height, width = x.shape[1:3]
    side = block.window or height
    padded = F.pad(normalized, (0, 0, 0, -width % side, 0, -height % side))
    rows = []
    for top in range(0, padded.shape[1], side):
        row = []
        for left in range(0, padded.shape[2], side):
            qkv = block.attn.qkv(padded[:, top : top + side, left : left + side])
            q, k, v = qkv.unflatten(-1, (3, heads, -1)).unbind(3)  # (1, side, side, heads, D) each
            if block.pools:
                q = F.max_pool2d(q.flatten(3).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1).unflatten(3, (heads, -1))
            scores = torch.einsum("byxhd,bijhd->bhyxij", q, k) / q.shape[-1] ** 0.5
            weights = scores.flatten(4).softmax(dim=4).view_as(scores)
            row.append(torch.einsum("bhyxij,bijhd->byxhd", weights, v).flatten(3))
        rows.append(torch.cat(row, dim=2))
    attended = torch.cat(rows, dim=1)
    if block.pools:
        projected = block.proj(normalized).permute(0, 3, 1, 2)
        x = F.max_pool2d(projected, 2).permute(0, 2, 3, 1)
    x = x + block.attn.proj(attended[:, : x.shape[1], : x.shape[2]])
    return x + block.mlp.lin2(F.gelu(block.mlp.lin1(block.norm2(x))))


@pytest.mark.parametrize("pools", [False, True], ids=["", "pools"])
@pytest.mark.parametrize("window", [None, 4, 14], ids=["global", "whole windows", "padded windows"])
@torch.inference_mode()
def test_a_block_attends_within_its_windows(window: int | None, pools: bool) -> None:
    block = randomize(HieraBlock(12, 24 if pools else 12, 3, window, pools))
    x = torch.randn(1, 16, 16, 12)
    expected = plain_block(block, x)
    found = block(x)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


@torch.inference_mode()
def test_stages_have_their_resolutions_and_the_pyramid_adds_the_coarsest() -> None:
    encoder = randomize(ImageEncoderHiera(SMALL))
    image = torch.randn(2, 3, 256, 256)
    maps = encoder.trunk(image)
    assert [tuple(each.shape[1:]) for each in maps] == [(16, 64, 64), (32, 32, 32), (64, 16, 16), (128, 8, 8)]
    embedding, finer, finest = encoder(image)
    assert [tuple(each.shape[1:]) for each in (embedding, finer, finest)] == [(256, 16, 16), (64, 32, 32), (32, 64, 64)]

    coarsest, third, second, _ = encoder.neck.convs
    doubled = coarsest(maps[3]).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = third(maps[2]) + doubled + encoder.no_memory_embed.view(1, -1, 1, 1)
    torch.testing.assert_close(embedding, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(finer, encoder.high_res_projections[0](second(maps[1])), atol=1e-5, rtol=0)


def test_windows_lag_a_block_behind_the_stages() -> None:
    """The first block of a stage attends within the windows of the stage before it."""
    blocks = ImageEncoderHiera(SMALL).trunk.blocks
    assert [block.window for block in blocks] == [8, 8, 4, 4, None, 6, 6]
    assert [block.pools for block in blocks] == [False, True, False, True, False, False, True]
    assert [block.attn.heads for block in blocks] == [1, 2, 2, 4, 4, 4, 8]


def test_pooling_takes_the_largest_of_four() -> None:
    x = torch.randn(2, 6, 4, 5)
    assert torch.equal(max_pool(x), F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1))
