"""The counted work, against torch's own counter on the real modules and against published figures."""

from typing import get_args

import pytest
import torch
from segment_anything import sam_model_registry
from torch.utils.flop_counter import FlopCounterMode

from segmint.model.automatic.settings import MaskSettings
from segmint.model.cost import ImageCost, encode_flop, image_cost, prompt_flop
from segmint.model.sam.load import Architecture, build_sam
from segmint.model.sam.mask_decoder import MaskDecoder
from segmint.model.sam.prompt_encoder import PromptEmbedding


def counted(call) -> int:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_an_encode_costs_what_torch_counts(architecture: Architecture) -> None:
    """A ViT as the reference package has it: ours spends more products on relative positions, to spare memory."""
    with torch.device("meta"):
        plain = architecture == "mobile_sam"
        encoder = (build_sam(architecture) if plain else sam_model_registry[architecture]()).image_encoder
        image = torch.zeros(1, 3, 1024, 1024)
    assert encode_flop(architecture) == pytest.approx(counted(lambda: encoder(image)), rel=0.02)


@pytest.mark.parametrize("depth", [2, 3])
def test_a_prompt_costs_what_torch_counts_where_nothing_is_shared(depth: int) -> None:
    """Each prompt brings its own dense embedding, so that the decoder can share nothing between them."""
    prompts = 2
    with torch.device("meta"):
        decoder = MaskDecoder(depth).eval()
        features = torch.zeros(1, 256, 64, 64)
        prompt = PromptEmbedding(torch.zeros(prompts, 2, 256), torch.zeros(prompts, 256, 64, 64))
    work = counted(lambda: decoder(features, features, prompt, multimask=True))
    assert prompt_flop(depth) == pytest.approx(work / prompts, rel=0.02)


def test_a_prompt_costs_what_torch_counts_in_the_reference_decoder() -> None:
    registry = pytest.importorskip("segment_anything").sam_model_registry
    with torch.device("meta"):
        decoder = registry["vit_b"]().mask_decoder
        features, sparse = torch.zeros(1, 256, 64, 64), torch.zeros(2, 2, 256)
        dense = torch.zeros(2, 256, 64, 64)
    work = counted(
        lambda: decoder(
            image_embeddings=features,
            image_pe=features,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
    )
    assert prompt_flop() == pytest.approx(work / 2, rel=0.005)


def test_known_figures() -> None:
    assert encode_flop("vit_h") == pytest.approx(5.96e12, rel=0.005)
    assert prompt_flop() == pytest.approx(2 * 1811e6, rel=0.005)


def test_an_image_of_each_profile() -> None:
    assert image_cost(MaskSettings.sa1b()) == ImageCost(encodes=21, prompts=3072)
    assert image_cost(MaskSettings.official()) == ImageCost(encodes=1, prompts=1024)
    assert image_cost(MaskSettings.sa1b(points_per_side=5, crop_n_layers=1)) == ImageCost(5, 25 + 4 * 4)


def test_sa1b_s_images_on_a_gpu_of_790_tflops() -> None:
    """21 encodes by ViT-H and 3,072 prompts take 172.5 ms at the ceiling."""
    assert image_cost(MaskSettings.sa1b()).flop("vit_h") / 790e12 == pytest.approx(0.1725, rel=0.005)
