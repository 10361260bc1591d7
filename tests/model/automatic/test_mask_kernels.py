"""Triton's kernels find and draw what torch's operations do, to the last bit; they compile for four kinds of GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from segmint.model.automatic import mask_tiles
from segmint.model.automatic.mask_tiles import Strip, Taps, taps_of
from segmint.model.sam.preprocess import resized_size
from tests.support.compiled_kernels import ARCHITECTURES, compiled, stack_bytes
from tests.support.whole_masks import blobs

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[3]
SIZES = [(97, 211), (37, 20), (1, 3), (150, 129)]
FEW_SIZES = [(1, 3), (9, 130)]
"""One pixel more than a tile across and down, and less than a tile: the interpreter takes seconds for each."""


def both_taps(size: tuple[int, int], device: str) -> tuple[Taps, Taps]:
    rows, columns = (
        taps_of(256, 1024, filled, pixels, torch.device(device))
        for filled, pixels in zip(resized_size(*size, 1024), size, strict=True)
    )
    return rows, columns


def low_res_logits() -> torch.Tensor:
    """Spots, a mask of nothing, a mask of all, one over the padding alone, one at the thresholds themselves, both
    thresholds everywhere, and logits that aren't finite.
    """
    low = blobs(5, 11, 4)
    low[1] = -12
    low[2] = 12
    low[3] = -12
    low[3, 255] = 12
    low[4] = low[4].round()
    low[6], low[7] = 1, -1
    for mask, logit, other in ((8, 30, float("inf")), (9, -30, float("-inf")), (10, 30, float("nan"))):
        low[mask] = logit
        low[mask, ::9, ::7] = other
    return low


def check(size: tuple[int, int], device: str) -> None:
    """Both ways on one device, and on the CPU."""
    from segmint.model.automatic import mask_kernels

    low, taps, there = low_res_logits(), both_taps(size, "cpu"), both_taps(size, device)
    for offset in (1.0, 0.0):
        expected = mask_tiles.measure(low, *taps, offset)
        assert torch.equal(mask_kernels.measure(low.to(device), *there, offset).cpu(), expected)
        assert torch.equal(mask_tiles.measure(low.to(device), *there, offset).cpu(), expected)
    some = torch.arange(len(low)) % 3 != 2
    expected = mask_tiles.measure(low, *taps, 1.0, some)
    assert torch.equal(mask_kernels.measure(low.to(device), *there, 1.0, some.to(device)).cpu(), expected)
    assert mask_kernels.measure(low[:0].to(device), *there, 1.0).shape == (0, 7)

    height, width = size
    strips, start = [], 0
    for mask, (x0, y0, x1, y1) in ((4, (0, 0, width, height)), (0, (width // 3, height // 3, width, height))):
        strips.append(Strip(mask, x0, y0, x1 - x0, y1 - y0, start))
        start += (x1 - x0) * (y1 - y0 + 1)
    drawn = []
    for way, logits, both, where in (
        (mask_tiles, low, taps, "cpu"),
        (mask_tiles, low.to(device), there, device),
        (mask_kernels, low.to(device), there, device),
    ):
        flat = torch.full((start,), 9, dtype=torch.uint8, device=where)
        way.draw(flat, logits, *both, strips)
        drawn.append(flat.cpu())
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="is the process that the test starts")
@pytest.mark.parametrize("sizes", ["FEW_SIZES", pytest.param("SIZES", marks=pytest.mark.long)])
def test_interpreted_kernels_have_the_bits_of_torchs_operations(sizes: str) -> None:
    code = "\n".join(
        [
            "import runpy, sys",
            f"sys.path.insert(0, {str(ROOT)!r})",
            f"tests = runpy.run_path({__file__!r})",
            f"for size in tests[{sizes!r}]: tests['check'](size, 'cpu')",
        ]
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, env=environment, cwd=ROOT)


@pytest.mark.parametrize(
    "architecture", [pytest.param(one, marks=[] if one == 90 else pytest.mark.long) for one in ARCHITECTURES]
)
def test_the_kernels_compile_for_gpus_within_their_limits_and_without_fused_multiplications_and_additions(
    architecture: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segmint.model.automatic import mask_kernels as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = dict.fromkeys(("low", "row_weights", "column_weights"), "*fp32")
    types |= {**dict.fromkeys(("height", "width", "tiles"), "i32"), "offset": "fp32", "strips": "*i64"}
    types |= {"flat": "*u8", "numbers": "*i64", "wanted": "*u8"}
    reach, total = {"ROWS": 16, "ACROSS": 256, "SIDE": 256}, {"BLOCK": 128}
    tile = {"SIDE": 256, "ROW_TAPS": 3, "COLUMN_TAPS": 3, "enable_fp_fusion": False}
    for kernel, options in (
        (kernels.reach_kernel, reach),
        (kernels.total_kernel, total),
        (kernels.measure_kernel, {**tile, **kernels.BORDER, "ROWS": kernels.SHORT, "COLUMNS": kernels.LONG}),
        (kernels.draw_kernel, {**tile, "ROWS": kernels.LONG, "COLUMNS": kernels.SHORT}),
    ):
        there = {name: types.get(name, "*i32") for name in kernel.arg_names}
        found = compiled(kernel, architecture, there, options, tmp_path)
        if architecture in (80, 90):
            assert stack_bytes(found, tmp_path) == 0
        if "enable_fp_fusion" in options:
            assert "mul" in found.asm["ptx"]
            assert "fma" not in found.asm["ptx"]


def test_photographs_whose_sides_are_multiples_of_16_take_the_same_kernels() -> None:
    from segmint.model.automatic import mask_kernels

    for kernel in (mask_kernels.measure_kernel, mask_kernels.draw_kernel):
        sizes = {parameter.name for parameter in kernel.params} & {"height", "width", "tiles"}
        assert {parameter.name for parameter in kernel.params if parameter.do_not_specialize} == sizes


@pytest.mark.cuda
@pytest.mark.parametrize("size", [*SIZES, (1200, 1800)])
def test_kernels_on_a_gpu_have_the_bits_of_torchs_operations_there_and_on_the_cpu(size: tuple[int, int]) -> None:
    check(size, "cuda")
