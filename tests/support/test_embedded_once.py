"""Cached embeddings keep their bits and layout, and the cache tells weights and pixels apart."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.support.embedded_once import EmbeddedOnce


@torch.inference_mode()
def test_equal_encoders_share_what_one_has_seen_and_others_do_not(tmp_path: Path) -> None:
    calls: list[int] = []

    class Encoder(nn.Conv2d):
        def forward(self, batch: Tensor) -> Tensor:
            calls.append(len(batch))
            return super().forward(batch)

    plain = Encoder(3, 4, 3).to(memory_format=torch.channels_last)
    other = copy.deepcopy(plain)
    other.bias += 1
    batch = torch.rand(2, 3, 8, 9)
    found = [EmbeddedOnce(copy.deepcopy(plain), tmp_path)(batch) for _ in range(3)]
    assert calls == [2]
    for each in found:
        assert torch.equal(each, plain(batch))
        assert each.stride() == found[0].stride() != found[0].contiguous().stride()
    assert torch.equal(EmbeddedOnce(other, tmp_path)(batch), other(batch))
    assert torch.equal(EmbeddedOnce(plain, tmp_path)(batch + 1), plain(batch + 1))
    assert not torch.equal(other(batch), plain(batch))
