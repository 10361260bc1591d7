"""Crops on an accelerator find the masks of the CPU, start kernels by the graph, and wait twice a crop."""

import contextlib
import copy
import itertools
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from segmint.model.automatic import device_crops, tiled_upscaling
from segmint.model.automatic.crops import generate_crops
from segmint.model.automatic.device_crops import DeviceCrops, KernelError, chunk_sizes
from segmint.model.automatic.device_stream import ImageStream
from segmint.model.automatic.generator import MaskGenerator
from segmint.model.automatic.rle import GeneratedMasks, decode
from segmint.model.automatic.settings import MaskSettings
from segmint.model.automatic.tiled_upscaling import KernelsWithFallback, TiledUpscaling
from segmint.model.sam import preprocess
from segmint.model.sam.geometry import SAM1
from segmint.model.sam.load import CUDA_BATCH, load_sam
from segmint.model.sam.predictor import Embedding, Predictor
from tests.model import gpu_budgets
from tests.support.pretended_cuda import PretendedCuda, counted, pretended_mask_kernels

pytestmark = pytest.mark.usefixtures("embedded_once")

# The structure of the full recipe with a sixty-fourth of its points: the image has four chunks, a crop of the first
# layer has one, a crop of the second a small one.
SETTINGS = MaskSettings.sa1b(
    points_per_side=4, crop_n_layers=2, points_per_chunk=4, pred_iou_thresh=0.7, stability_score_thresh=0.85
)
CROPS, CHUNKS = 21, 24


@pytest.fixture(scope="module")
def predictor(mobile_sam_path: Path) -> Predictor:
    return Predictor(load_sam(mobile_sam_path))


@pytest.fixture(scope="module")
def image(coffee: np.ndarray) -> np.ndarray:
    return cv2.resize(coffee, (300, 200), interpolation=cv2.INTER_AREA)


@pytest.fixture(scope="module")
def features(predictor: Predictor, image: np.ndarray) -> torch.Tensor:
    return predictor.embed(image).features


class NullPredictor(Predictor):
    """A predictor that encodes nothing: an encode takes longer than all that is tested here.

    A crop looks like the image or, if the one before does, like its mirror image.
    """

    def __init__(self, predictor: Predictor, features: torch.Tensor) -> None:
        super().__init__(predictor.sam)
        self._looks = itertools.cycle(itertools.islice(itertools.cycle([features, features.flip(3)]), CROPS))

    def embed_many(self, images: list, frame_sizes: list, batch_size: int) -> list[Embedding]:
        return [Embedding(next(self._looks), (683, 1024), frame) for frame in frame_sizes]


@pytest.fixture(scope="module")
def expected(predictor: Predictor, features: torch.Tensor, image: np.ndarray) -> GeneratedMasks:
    return MaskGenerator(NullPredictor(predictor, features), SETTINGS).generate(image)


def check_same(found: GeneratedMasks, expected: GeneratedMasks) -> None:
    """The same masks, whose last bits differ: sums have another order than on the CPU."""
    assert len(expected.records) > 5
    assert found.funnel == expected.funnel
    for one, other in zip(found.records, expected.records, strict=True):
        assert (one.point_coords, one.crop_box, one.output) == (other.point_coords, other.crop_box, other.output)
        assert one.predicted_iou == pytest.approx(other.predicted_iou, abs=1e-4)
        assert one.stability_score == pytest.approx(other.stability_score, abs=1e-3)
        mask, same = decode(one.segmentation), decode(other.segmentation)
        assert (mask & same).sum() >= 0.999 * (mask | same).sum()


@pytest.mark.long
def test_shapes_that_are_fixed_find_the_cpus_masks(
    predictor: Predictor, features: torch.Tensor, image: np.ndarray, expected: GeneratedMasks
) -> None:
    embedded = NullPredictor(predictor, features)
    generator = MaskGenerator(embedded, SETTINGS)
    generator.device_crops = DeviceCrops(embedded, SETTINGS)

    check_same(generator.generate(image), expected)


def test_a_whole_image_on_a_pretended_gpu_keeps_to_the_budgets_and_finds_the_same_masks(
    predictor: Predictor, features: torch.Tensor, image: np.ndarray, expected: GeneratedMasks
) -> None:
    with PretendedCuda() as device, pretended_mask_kernels(device):
        there = Predictor(device.moved(copy.deepcopy(predictor.sam)))
        on_device = device.to_device(features)
        generator = MaskGenerator(NullPredictor(there, on_device), SETTINGS)
        assert generator.crops_per_batch == CUDA_BATCH
        assert generator.device_crops is not None
        with torch.inference_mode():  # as an earlier image: graphs are captured, and weights of upscaling copied
            for crop in generate_crops(image.shape[:2], SETTINGS.crop_n_layers, SETTINGS.crop_overlap_ratio):
                TiledUpscaling(Embedding(on_device, (683, 1024), crop.size), SAM1)
            generator.device_crops.start_chunks(Embedding(on_device, (683, 1024), (200, 300)), np.zeros((5, 2)))
        device.forget()
        reported: list[tuple[int, int]] = []
        found = generator.finish(generator.find(image, report=lambda *counts: reported.append(counts)))

    check_same(found, expected)
    points = expected.funnel.predicted // 3
    assert [counts[1] for counts in reported] == [points] * CROPS
    assert reported[-1][0] == points
    print(counted(device))
    launches, syncs = sum(device.launches.values()), sum(device.syncs.values())
    assert CHUNKS + CROPS < launches <= gpu_budgets.MASK_LAUNCHES_AN_IMAGE, counted(device)
    assert CROPS < syncs <= gpu_budgets.HOST_SYNCS_A_CROP * CROPS, counted(device)
    replayed = sum(device.graph_kernels.values()) / CHUNKS
    assert 50 < replayed <= gpu_budgets.REPLAYED_KERNELS_A_CHUNK, counted(device)
    assert isinstance(tiled_upscaling.KERNELS, KernelsWithFallback)
    assert str(tiled_upscaling.KERNELS.operations).endswith("mask_kernels.py'>"), "Triton's kernels failed"


class UnencodedPredictor(nn.Module):
    """An encoder of no kernels; its launches are counted from its graph."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch.new_empty(len(batch), 256, 64, 64)


def test_a_whole_image_has_no_more_launches_than_its_budget_with_those_before_the_decoder(predictor: Predictor) -> None:
    image, original = np.zeros((1500, 2250, 3), np.uint8), np.zeros((3300, 4950, 3), np.uint8)
    try:
        with PretendedCuda(computing=False) as device, torch.inference_mode():
            there = Predictor(device.moved(copy.deepcopy(predictor.sam)))
            there.batch_encoder.network = UnencodedPredictor()
            generator = MaskGenerator(there, SETTINGS)
            for _ in range(2):  # the first time, weights of interpolation are copied to the device
                device.forget()
                assert generator.device_crops is not None
                stream = ImageStream(there, SETTINGS, CUDA_BATCH, generator.device_crops, generator.copies)
                encoded = stream.encoded_crops(iter([(image, original)]), lambda: lambda _: None)
                assert sum(one is not None for one in encoded) == CROPS
    finally:
        preprocess.weights_on_device.cache_clear()
        preprocess.mean_and_std.cache_clear()

    launches = sum(device.launches.values())
    print(counted(device))
    assert 3 * CROPS < launches <= gpu_budgets.CUT_LAUNCHES_AN_IMAGE, counted(device)
    batches = math.ceil(CROPS / CUDA_BATCH)
    encodes = batches * gpu_budgets.ENCODER_LAUNCHES_A_BATCH
    parts = gpu_budgets.CUT_LAUNCHES_AN_IMAGE + encodes + gpu_budgets.MASK_LAUNCHES_AN_IMAGE
    assert parts <= gpu_budgets.HOST_LAUNCHES_AN_IMAGE


def test_a_full_chunk_moves_few_bytes_a_prompt(
    predictor: Predictor, features: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_crops, "check_kernels", lambda *_: None)  # nothing is computed here
    settings = MaskSettings.sa1b(points_per_side=16, crop_n_layers=0, points_per_chunk=256)
    sam = copy.deepcopy(predictor.sam).bfloat16()
    with PretendedCuda(computing=False) as device, torch.inference_mode(), pretended_mask_kernels(device):
        there = Predictor(device.moved(sam))
        embedding = Embedding(device.to_device(features.bfloat16()), (683, 1024), (200, 300))
        found = DeviceCrops(there, settings)
        for _ in range(2):
            device.forget()
            found.start_chunks(embedding, np.zeros((256, 2)))

    print(counted(device))
    moved = device.traffic["decode"] / 256
    # Low-resolution logits alone are 0.8 MB.
    assert 1e6 < moved <= gpu_budgets.DECODER_BYTES_A_PROMPT, counted(device)


@pytest.mark.parametrize("captured", [True, False])
def test_chunks_are_refused_until_their_kernels_are_right(
    captured: bool, predictor: Predictor, features: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[bool] = []

    def refuse(*_: Any) -> None:
        checked.append(True)
        raise KernelError

    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("no graphs here")

    monkeypatch.setattr(device_crops, "check_kernels", refuse)
    settings = MaskSettings.sa1b(points_per_side=2, crop_n_layers=0, points_per_chunk=4)
    expected = contextlib.nullcontext() if captured else pytest.warns(RuntimeWarning, match="no graphs here")
    with PretendedCuda(computing=False) as device, torch.inference_mode(), expected:
        if not captured:
            monkeypatch.setattr(torch.cuda, "graph", failing)
        there = Predictor(device.moved(copy.deepcopy(predictor.sam)))
        embedding = Embedding(device.to_device(features), (683, 1024), (200, 300))
        found = DeviceCrops(there, settings)
        for _ in range(2):
            with pytest.raises(KernelError):
                found.start_chunks(embedding, np.zeros((4, 2)))
    assert checked == [True, True]


@pytest.mark.parametrize(
    ("points", "size", "expected"),
    [
        (1024, 256, [256, 256, 256, 256]),
        (256, 256, [256]),
        (64, 256, [64]),
        (300, 256, [256, 64]),
        (400, 256, [256, 256]),
        (65, 256, [256]),
        (9, 8, [8, 2]),
        (2, 1, [1, 1]),
        (1, 3, [1]),
        (2, 3, [3]),
    ],
)
def test_chunks_have_two_sizes(points: int, size: int, expected: list[int]) -> None:
    assert chunk_sizes(points, size) == expected
