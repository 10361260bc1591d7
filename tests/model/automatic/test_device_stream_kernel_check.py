"""Kernels of attention, masks, and resizing that compute something else are refused before the first image."""

import types
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from segmint.model.automatic import device_stream, mask_tiles
from segmint.model.automatic.device_crops import KernelError, expect_close
from segmint.model.automatic.device_stream import check_attention, check_masks, check_other_kernels, check_resize
from segmint.model.automatic.mask_tiles import Strip, Taps
from segmint.model.sam import image_encoder_vit, preprocess
from segmint.model.sam.geometry import SAM1, Geometry
from segmint.model.sam.image_encoder_vit import ImageEncoderViT, RelativeAttention, VitShape

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_stream, "FRAME", (70, 105))


def small_vit() -> Any:
    """A ViT with two layers, of windows and of the whole map, in place of a model."""
    torch.manual_seed(0)
    encoder = ImageEncoderViT(VitShape(width=64, depth=2, heads=1, global_blocks=(1,)), image_size=256)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return types.SimpleNamespace(image_encoder=encoder.eval(), geometry=Geometry(image_size=256), device=CPU)


@pytest.mark.parametrize("wrong_side", [None, 14, 16])
def test_attention_with_a_few_wrong_values_is_refused(wrong_side: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    sam = small_vit()
    layers = {module.side: module for module in sam.image_encoder.modules() if isinstance(module, RelativeAttention)}

    def kernel_for(x: Tensor, heads: int, side: int) -> Any:
        def attend(*_: Any) -> Tensor:
            attended = layers[side].attend_plainly(x).clone()
            if side == wrong_side:
                attended[:, 5, 7, :8] += 3 * attended.std()  # 8 of 16,384 values
            return attended

        return attend

    monkeypatch.setattr(image_encoder_vit, "relative_attention", kernel_for)
    expected: Any = nullcontext()
    if wrong_side is not None:
        message = rf"attention in squares of {wrong_side} differ .* by \d%, and in one place by \d+%"
        expected = pytest.raises(KernelError, match=message)
    with torch.inference_mode(), expected:
        check_attention(sam)


def shifted(name: str) -> Any:
    """Operations on masks of which one has a fault in one number or one pixel."""

    def measure(low: Tensor, rows: Taps, columns: Taps, offset: float, wanted: Tensor | None = None) -> Tensor:
        found = mask_tiles.measure(low, rows, columns, offset, wanted)
        found[2, 1] += 1
        return found

    def draw(flat: Tensor, low: Tensor, rows: Taps, columns: Taps, strips: list[Strip]) -> None:
        mask_tiles.draw(flat, low, rows, columns, strips)
        flat[strips[0].height // 2] ^= 1

    faults = {"measure": measure, "draw": draw}
    ways = {"measure": mask_tiles.measure, "draw": mask_tiles.draw}
    return types.SimpleNamespace(**{**ways, name: faults[name]})


def test_masks_with_a_wrong_number_or_pixel_are_refused() -> None:
    check_masks(mask_tiles, SAM1, CPU)
    with pytest.raises(KernelError, match="wrong masks: the kernels' counts and boxes of masks differ"):
        check_masks(shifted("measure"), SAM1, CPU)
    with pytest.raises(KernelError, match="wrong masks: the kernels' pixels of masks differ"):
        check_masks(shifted("draw"), SAM1, CPU)


def test_a_wrong_pixel_of_a_resized_image_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_resize(SAM1, CPU)
    right = preprocess.resize_on_device

    def wrong(pixels: Tensor, size: tuple[int, int]) -> Tensor:
        found = right(pixels, size)
        found[-1, -1, 2] ^= 1
        return found

    monkeypatch.setattr(preprocess, "resize_on_device", wrong)
    with pytest.raises(KernelError, match="pixels of a resized image differ"):
        check_resize(SAM1, CPU)


def test_a_kernel_that_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no such instruction\nand a long story")

    monkeypatch.setattr(device_stream, "check_attention", fail)
    predictor: Any = types.SimpleNamespace(sam=small_vit(), must_compile=True)
    with pytest.raises(KernelError, match=r"can't run segmint's kernels \(RuntimeError: no such instruction\)\. Use"):
        check_other_kernels(predictor)


def test_results_that_are_no_numbers_are_refused() -> None:
    expected = torch.ones(8)
    expect_close("sums", expected * 1.01, expected)
    with pytest.raises(KernelError, match="kernels' sums differ"):
        expect_close("sums", expected * float("nan"), expected)
