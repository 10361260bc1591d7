"""Pixels are resized on a device to the bits that Pillow gives."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segmint.model.sam import preprocess
from segmint.model.sam.preprocess import resize, resize_on_device, resized_size, triangle_weights
from tests.support.compiled_kernels import ARCHITECTURES, compiled, stack_bytes

ROOT = Path(__file__).resolve().parents[3]

# Enlarged and reduced, one row and one column, an unchanged side, tall ones on both sides of Pillow's rule of order.
SIZES = [(1, 3), (37, 20), (5000, 3), (2, 2), (1024, 700), (700, 1024), (1500, 740), (1500, 760), (1500, 2250)]


def check(size: tuple[int, int], device: str) -> None:
    generator = np.random.default_rng(size)
    pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
    found = resize_on_device(torch.from_numpy(pixels).to(device), resized_size(*size, 1024))
    assert found.is_contiguous()
    np.testing.assert_array_equal(found.cpu().numpy(), resize(pixels, 1024), err_msg=f"{size}")


def random_sizes() -> list[tuple[int, int]]:
    sizes = np.random.default_rng(20260817).integers(1, 1200, (41, 2))
    return [(int(height), int(width)) for height, width in sizes]


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_pillow(size: tuple[int, int]) -> None:
    check(size, "cpu")


def test_pixels_of_random_sizes_are_those_of_pillow() -> None:
    for size in random_sizes()[:8]:
        check(size, "cpu")


@pytest.mark.long
def test_pixels_of_more_random_sizes_are_those_of_pillow() -> None:
    for size in random_sizes()[8:]:
        check(size, "cpu")


def test_black_and_white_edges_are_those_of_pillow() -> None:
    """Extremes, at which a sum of weights that is not quite one would show."""
    pixels = np.where(np.indices((333, 251)).sum(0)[..., None] % 7 < 3, 255, 0).repeat(3, 2).astype(np.uint8)
    np.testing.assert_array_equal(
        resize_on_device(torch.from_numpy(pixels), resized_size(333, 251, 640)).numpy(), resize(pixels, 640)
    )


def test_rows_at_a_time_are_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (211, 97, 3), dtype=np.uint8))
    expected = resize_on_device(pixels, (128, 59))
    monkeypatch.setattr(preprocess, "MOST_PRODUCTS", 5000)
    assert torch.equal(resize_on_device(pixels, (128, 59)), expected)


@pytest.mark.parametrize("version", ["12.1", "12.2"])
def test_a_pillow_before_13_is_followed(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess.pillow_takes_columns_first.cache_clear()
    resized = Image.Image.resize

    def older(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
        tall = image.height > 100 * image.width and size[1] < image.height
        first = (image.width, size[1]) if tall and version == "12.2" else (size[0], image.height)
        return resized(resized(image, first, resample), size, resample)

    monkeypatch.setattr(Image.Image, "resize", older)
    try:
        for size in ((1500, 740), (5000, 3), (1200, 11), (1100, 11)):
            check(size, "cpu")
    finally:
        preprocess.pillow_takes_columns_first.cache_clear()


# Sizes and targets: reduced by a tile and a row of the kernel and one more, enlarged, one side unchanged, one pixel.
FEW_SIZES = [((23, 61), (5, 43)), ((3, 5), (6, 44)), ((9, 8), (9, 3)), ((1, 1), (2, 1))]
MORE_SIZES = [((150, 99), (64, 42)), ((40, 300), (17, 128)), ((30, 20), (96, 64))]


def check_kernel(size: tuple[int, int], target: tuple[int, int]) -> None:
    """The kernel has the bits of torch's passes in both orders, for a crop, whose rows aren't contiguous."""
    from segmint.model.kernels.encoder_triton import resize as resize_with_kernel

    generator = np.random.default_rng(size)
    whole = torch.from_numpy(generator.integers(0, 256, (size[0] + 3, size[1] + 2, 3), dtype=np.uint8))
    whole[::2] = (whole[::2] > 127) * 255  # extremes
    pixels = whole[1:-2, 1:-1]
    rows, columns = (
        tuple(map(torch.from_numpy, triangle_weights(length, wanted)))
        for length, wanted in zip(size, target, strict=True)
    )
    for columns_first in (False, True):
        expected = torch.ops.segmint.resize(pixels, *target, columns_first)
        assert torch.equal(resize_with_kernel(pixels, rows, columns, columns_first), expected), (size, target)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="is the process that the test starts")
@pytest.mark.parametrize("sizes", ["FEW_SIZES", pytest.param("MORE_SIZES", marks=pytest.mark.long)])
def test_the_interpreted_kernel_has_the_bits_of_torchs_passes(sizes: str) -> None:
    pytest.importorskip("triton")
    code = "\n".join(
        [
            "import runpy, sys",
            f"sys.path.insert(0, {str(ROOT)!r})",
            f"tests = runpy.run_path({__file__!r})",
            f"for pair in tests[{sizes!r}]: tests['check_kernel'](*pair)",
        ]
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, env=environment, cwd=ROOT)


@pytest.mark.parametrize(
    "architecture", [pytest.param(one, marks=[] if one == 90 else pytest.mark.long) for one in ARCHITECTURES]
)
def test_the_kernel_compiles_for_gpus_without_spilled_registers(
    architecture: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from segmint.model.kernels import encoder_triton as resize_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = {
        **dict.fromkeys(("pixels", "resized"), "*u8"),
        **dict.fromkeys(("outer_places", "inner_places"), "*i64"),
        **dict.fromkeys(("outer_weights", "inner_weights"), "*i32"),
        **dict.fromkeys(resize_triton.SIZES, "i32"),
    }
    for columns_first in (False, True):
        options = {**resize_triton.TILE, "COLUMNS_FIRST": columns_first}
        found = compiled(resize_triton.resize_kernel, architecture, types, options, tmp_path)
        assert stack_bytes(found, tmp_path) == 0


@pytest.mark.cuda
@pytest.mark.parametrize("size", [*SIZES, *random_sizes()])
def test_pixels_on_a_gpu_are_those_of_pillow(size: tuple[int, int]) -> None:
    check(size, "cuda")
