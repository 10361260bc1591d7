"""The counted work: what torch's own counter finds on the real modules, published figures, and measured times."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from segment_anything import sam_model_registry
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from segmint.infra.device import Compute
from segmint.infra.peak import measure_peak
from segmint.model.automatic.settings import MaskSettings
from segmint.model.cost import (
    ImageCost,
    decode_flop,
    draw_flop,
    encode_flop,
    image_cost,
    mask_flop,
    plan_flop,
)
from segmint.model.kernels.cpu.library import usable_kernels
from segmint.model.sam.load import Architecture, build_sam, load_sam
from segmint.model.sam.mask_decoder import MaskDecoder
from segmint.model.sam.point_decoder import decode_points, draw_masks, plan_points
from segmint.model.sam.predictor import Predictor


def counted(call: Callable[[], Any]) -> tuple[int, Any]:
    """Count without fused attention, which the counters of some versions of torch don't know."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        result = call()
    return counter.get_total_flops(), result


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_an_encode_costs_what_torch_counts_without_padding(architecture: Architecture) -> None:
    """A ViT as the reference package has it: ours spends more products on relative positions, to spare memory."""
    with torch.device("meta"):
        reference = sam_model_registry.get(architecture)
        encoder = (build_sam(architecture) if reference is None else reference()).image_encoder
        image = torch.zeros(1, 3, 1024, 1024)
    work, _ = counted(lambda: encoder(image))
    assert 0.92 < encode_flop(architecture) / work <= 1


@pytest.mark.parametrize("depth", [2, 3])
def test_the_decoder_costs_what_torch_counts(depth: int) -> None:
    """Except for what torch needn't compute: half of each symmetric matrix, and products with constants.

    In float64, torch uses no kernels whose operations its counter doesn't know.
    """
    torch.manual_seed(0)
    points, width, inner, positions = 2, 256, 128, 64**2
    decoder = MaskDecoder(depth).eval().double()
    image = torch.randn(1, width, 64, 64, dtype=torch.float64)
    sparse = torch.randn(points, 2, width, dtype=torch.float64)
    planned, plan = counted(lambda: plan_points(decoder, image, image.flip(1), torch.zeros_like(image)))
    decoded, masks = counted(lambda: decode_points(decoder, plan, sparse))
    drawn, _ = counted(lambda: draw_masks(decoder, plan, masks, torch.ones(points, 3, dtype=torch.bool)))

    placed = 2 * (2 * depth - 1) * width * inner * positions  # projections of positions, the same for all images
    assert plan_flop(depth) == pytest.approx(planned - placed, rel=1e-3)
    spared = 0
    for block in range(1, depth + 1):
        rows = 57 * block - 1
        spared += rows**2 * (positions + width) - rows * (rows + 1) // 2 * (positions + width) - rows * positions
        attending = (56 if block > 1 else 0) + 2 * (56 if block < depth else 32)
        spared += attending * (positions + width)  # the last coefficient, which is 1
    assert decode_flop(depth) == pytest.approx(decoded / points - 2 * spared, rel=1e-3)
    constant = 2 * width * (positions + width)  # the same coefficient
    assert draw_flop(points, 3 * points, depth) == pytest.approx(drawn - points * constant, rel=1e-3)
    assert 0.79 < plan_flop(depth) / planned < 1
    assert 0.79 < decode_flop(depth) / decoded * points < 1
    assert 0.99 < draw_flop(points, 3 * points, depth) / drawn < 1
    assert points * 3 * mask_flop(depth) == pytest.approx(draw_flop(points, 3 * points, depth))


@pytest.mark.usefixtures("one_thread")
def test_no_stage_exceeds_the_peak(mobile_sam_path: Path, coffee: np.ndarray) -> None:
    """Each stage's best time against the best of the peaks measured around them, all on one thread.

    An encode is timed once: it takes so long that its rate hardly varies.
    """
    compute = Compute("cpu", "fp32", 1)
    predictor = Predictor(load_sam(mobile_sam_path), kernels=usable_kernels())
    side = np.linspace(50, 350, 4)
    points = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    peak = measure_peak(compute)

    def per_second(flop: int, call: Callable[[], Any], times: int = 3) -> float:
        nonlocal peak
        seconds = []
        for _ in range(times):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
        peak = max(peak, measure_peak(compute))
        return flop / min(seconds)

    with torch.inference_mode():
        (embedding,) = predictor.embed_many([coffee])
        plan = predictor.plan_points(embedding)
        masks = predictor.decode_points(embedding, plan, points)
        wanted = torch.ones(len(points), 3, dtype=torch.bool)
        predictor.draw_masks(plan, masks, wanted)  # as the stages before: once that isn't timed
        rates = {
            "encode": per_second(encode_flop("mobile_sam"), lambda: predictor.embed_many([coffee]), times=1),
            "plan": per_second(plan_flop(), lambda: predictor.plan_points(embedding)),
            "decode": per_second(len(points) * decode_flop(), lambda: predictor.decode_points(embedding, plan, points)),
            "draw": per_second(
                draw_flop(len(points), 3 * len(points)), lambda: predictor.draw_masks(plan, masks, wanted)
            ),
        }
    shares = {stage: rate / peak for stage, rate in rates.items()}
    assert all(0 < share <= 1 for share in shares.values()), shares


def test_known_figures() -> None:
    assert encode_flop("vit_h") == pytest.approx(5.64e12, rel=0.005)
    assert encode_flop("mobile_sam") == pytest.approx(74.1e9, rel=0.005)
    assert plan_flop() == pytest.approx(3.49e9, rel=0.005)
    assert decode_flop() == pytest.approx(354e6, rel=0.005)
    assert mask_flop() == pytest.approx(178e6, rel=0.005)


def test_an_image_of_each_profile() -> None:
    assert image_cost(MaskSettings.sa1b()) == ImageCost(encodes=21, prompts=3072)
    assert image_cost(MaskSettings.official()) == ImageCost(encodes=1, prompts=1024)
    assert image_cost(MaskSettings.sa1b(points_per_side=5, crop_n_layers=1)) == ImageCost(5, 25 + 4 * 4)


def test_sa1b_s_images_on_a_gpu_of_790_tflops() -> None:
    """21 encodes by ViT-H and 3,072 prompts take 151 ms at the ceiling before a mask is drawn."""
    assert image_cost(MaskSettings.sa1b()).flop("vit_h") / 790e12 == pytest.approx(0.1514, rel=0.005)
