import pytest
import torch
from segment_anything.modeling.common import LayerNorm2d as ReferenceLayerNorm2d
from segment_anything.modeling.image_encoder import window_partition
from segment_anything.modeling.mask_decoder import MLP as ReferenceMlp

from segmint.model.sam.common import (
    LayerNorm2d,
    Perceptron,
    join_heads,
    merge_windows,
    partition_windows,
    split_heads,
)
from tests.support.random_weights import randomize


def test_layer_norm_2d_is_the_reference_one() -> None:
    ours = randomize(LayerNorm2d(8))
    theirs = ReferenceLayerNorm2d(8)
    theirs.load_state_dict(ours.state_dict())
    x = 1e-3 * torch.randn(2, 8, 5, 7)  # so small that another epsilon would show
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=0)


def test_perceptron_is_the_reference_one() -> None:
    ours = randomize(Perceptron(6, 10, 4))
    theirs = ReferenceMlp(6, 10, 4, 3)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(64, 6)
    torch.testing.assert_close(ours(x), theirs(x))
    assert (ours(x) < 0).any(), "nothing squashes or cuts the outputs"


@pytest.mark.parametrize(("height", "width"), [(28, 28), (32, 32), (14, 30), (1, 15)])
def test_windows_are_the_reference_ones_and_merge_back(height: int, width: int) -> None:
    x = torch.randn(2, height, width, 3)
    windows = partition_windows(x, 14)
    expected, _ = window_partition(x, 14)
    assert torch.equal(windows, expected)
    assert torch.equal(merge_windows(windows, height, width), x)


def test_heads_split_and_join_back() -> None:
    x = torch.arange(24.0).reshape(1, 2, 12)
    heads = split_heads(x, 3)
    assert heads.shape == (1, 3, 2, 4)
    assert heads[0, 1, 0].tolist() == [4, 5, 6, 7]
    assert torch.equal(join_heads(heads), x)
