"""What the benchmark swaps on a GPU is still there to be swapped."""

import torch
from torch.nn.attention import SDPBackend

from benchmarks.gpu.encoder import WAYS, attending_by
from benchmarks.gpu.masks import computing_by
from segmint.model.automatic import device_crops
from segmint.model.kernels import factored_image
from segmint.model.sam import image_encoder_vit
from segmint.model.sam import image_encoder_vit as gpu_attention


def test_attention_is_by_one_kind_of_kernel_while_the_block_runs() -> None:
    usual = gpu_attention.HALF_BACKENDS, image_encoder_vit.relative_attention
    for way in WAYS[1:]:
        with attending_by(way):
            assert image_encoder_vit.relative_attention(torch.zeros(1), 1, 1) is None
            (backend,) = gpu_attention.HALF_BACKENDS
            assert way in backend.name.lower()
    with attending_by("triton"):
        assert (gpu_attention.HALF_BACKENDS, image_encoder_vit.relative_attention) == usual
    assert (gpu_attention.HALF_BACKENDS, image_encoder_vit.relative_attention) == usual
    assert SDPBackend.CUDNN_ATTENTION not in usual[0]


def test_the_decoders_steps_are_computed_plainly_while_the_block_runs() -> None:
    usual = device_crops.answer, device_crops.look, device_crops.draw
    with computing_by("compiled"):
        assert not {device_crops.answer, device_crops.look, device_crops.draw}.intersection(usual)
    with computing_by("plain"):
        assert (device_crops.answer, device_crops.look, device_crops.draw, factored_image.by_formulas.get()) == (
            *usual,
            True,
        )
    with computing_by("kernels"):
        assert (device_crops.answer, device_crops.look, device_crops.draw, factored_image.by_formulas.get()) == (
            *usual,
            False,
        )
