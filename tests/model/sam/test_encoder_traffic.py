"""The encoder as torch's compiler sees it on a GPU, without one: one graph, few bytes, statistics in float32."""

import dataclasses

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: PLC2701 - torch documents it under this name

from segmint.model.sam.image_encoder_vit import VIT_H, ImageEncoderViT, VitShape
from segmint.model.sam.load import CUDA_BATCH
from tests.model.gpu_budgets import ENCODER_BYTES, ENCODER_LAUNCHES_A_BATCH

pytest.importorskip("triton")

pytestmark = pytest.mark.long

PARTS = (4, 1)
"""A quarter of ViT-H's blocks, of the same kinds, takes a third of the time: four times its counts have a patch
embedding and a neck three times too often, which is 1% of the bytes."""

OUTSIDE_BLOCKS = 6
"""Kernels before and after the blocks, which the whole encoder starts once."""


def shape(parts: int) -> VitShape:
    """ViT-H's first blocks."""
    depth = VIT_H.depth // parts
    return dataclasses.replace(VIT_H, depth=depth, global_blocks=VIT_H.global_blocks[: 4 // parts])


@pytest.fixture(scope="module", params=PARTS)
def parts(request: pytest.FixtureRequest) -> int:
    """How many times the graph's blocks are the encoder's."""
    return int(request.param)


@pytest.fixture(scope="module")
def graph(parts: int) -> fx.GraphModule:
    """The ViT-H encoder in bfloat16 on a batch of the default size."""
    from tests.support.kernel_traffic import trace

    with FakeTensorMode(), torch.inference_mode(), torch.device("cuda"):
        try:
            torch.set_default_dtype(torch.bfloat16)
            encoder = ImageEncoderViT(shape(parts)).eval()
        finally:
            torch.set_default_dtype(torch.float32)
        return trace(encoder, torch.empty(CUDA_BATCH, 3, 1024, 1024, dtype=torch.bfloat16))


def test_an_encode_moves_no_more_bytes_and_has_no_more_kernels_than_its_budgets(
    graph: fx.GraphModule, parts: int
) -> None:
    from tests.support.kernel_traffic import kernels_of

    kernels = kernels_of(graph)
    # Four matrix products and an attention a block are separate kernels.
    assert 5 * VIT_H.depth < parts * len(kernels) - (parts - 1) * OUTSIDE_BLOCKS <= ENCODER_LAUNCHES_A_BATCH
    largest = sorted(kernels, key=lambda kernel: -kernel.moved)[:5]
    moved = parts * sum(kernel.moved for kernel in kernels) / CUDA_BATCH
    assert moved <= ENCODER_BYTES, largest
    attention = [kernel for kernel in kernels if kernel.name.startswith("triton")]
    assert parts * len(attention) == VIT_H.depth
    # The weights and the residual stream alone: a count that misses kernels would fail here.
    assert moved > 10e9
    assert not [kernel for kernel in kernels if kernel.name == "clone"], "a copy that is fused with nothing"


def test_float32_is_one_graph_too() -> None:
    """Without our kernels, and with the order of torch's that is set around them."""
    from tests.support.kernel_traffic import trace

    with FakeTensorMode(), torch.inference_mode(), torch.device("cuda"):
        encoder = ImageEncoderViT(VitShape(160, depth=2, heads=2, global_blocks=(1,)), image_size=320).eval()
        graph = trace(encoder, torch.empty(2, 3, 320, 320))
    assert not [node for node in graph.graph.nodes if "triton" in str(node.target)]
    (output,) = graph.graph.find_nodes(op="output")
    assert output.args[0][0].meta["val"].shape == (2, 256, 20, 20)


def test_norms_compute_their_statistics_in_float32(graph: fx.GraphModule, parts: int) -> None:
    statistics = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.var_mean.correction)
    assert len(statistics) == 2 * VIT_H.depth // parts + 2
    assert {node.all_input_nodes[0].meta["val"].dtype for node in statistics} == {torch.float32}
