"""The attention kernels compute the encoder's plain formula, and compile for four kinds of GPUs within their limits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: PLC2701 - torch documents it under this name

from segmint.model.sam.image_encoder_vit import RelativeAttention
from tests.support.compiled_kernels import ARCHITECTURES, compiled, stack_bytes

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[3]

# side, map, heads, channels of a head, images: windows with padding on one side and on both, an odd and a whole window,
# whole maps.
SHAPES = [
    (14, (17, 30), 1, 64, 1),
    (14, (20, 28), 2, 80, 2),
    (14, (14, 14), 2, 80, 1),
    (7, (9, 8), 1, 64, 2),
    (16, (16, 16), 2, 80, 2),
]
# Windows with padding on both sides, with the channels of two heads and images, and a whole map of a head.
FEW_SHAPES = [(7, (9, 8), 2, 80, 2), (16, (16, 16), 1, 80, 1)]


@torch.inference_mode()
def check(shape: tuple[int, tuple[int, int], int, int, int], device: str, dtype: torch.dtype, most: float) -> None:
    """The kernels on a device against the formula in float32 on the CPU."""
    from segmint.model.kernels import encoder_triton as kernels

    side, grid, heads, channels, batch = shape
    torch.manual_seed(side * channels)
    attention = RelativeAttention(heads * channels, heads, side).eval()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    attention = attention.to(dtype).float()
    x = torch.randn(batch, *grid, heads * channels).to(dtype).float()
    expected = attention(x)

    there = attention.to(device, dtype)
    # Under the interpreter there is no operator, only the kernels.
    attend = kernels.attend if device == "cpu" else kernels.relative_attention
    attended = attend(there.qkv(x.to(device, dtype)), there.qkv.bias, there.rel_pos_h, there.rel_pos_w, heads, side)
    found = there.proj(attended).float().cpu()
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < most * float(expected.abs().max())


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="is the process that the test starts")
@pytest.mark.parametrize("shapes", ["FEW_SHAPES", pytest.param("SHAPES", marks=pytest.mark.long)])
def test_interpreted_kernels_compute_the_encoders_attention(shapes: str) -> None:
    code = "\n".join(
        [
            "import runpy, sys, torch",
            "torch.set_num_threads(1)",
            f"sys.path.insert(0, {str(ROOT)!r})",
            f"tests = runpy.run_path({__file__!r})",
            "from segmint.model.kernels import encoder_triton as kernels",
            # The long test computes float32 numbers in the tiles of half precision.
            f"if {shapes!r} == 'SHAPES': kernels.FLOAT32 = kernels.HALF",
            f"for shape in tests[{shapes!r}]: tests['check'](shape, 'cpu', torch.float32, 2e-6)",
        ]
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, env=environment, cwd=ROOT)


# Few run by default: both kernels and heads, and the largest shared memory of float32.
FEW_COMPILED = [("window", 64, 90, "bf16"), ("map", 80, 86, "fp32")]


@pytest.mark.parametrize(
    ("kernel", "dimensions", "architecture", "precision"),
    [
        pytest.param(*one, marks=[] if one in FEW_COMPILED else pytest.mark.long)
        for one in (
            (kernel, dimensions, architecture, precision)
            for kernel in ("map", "window")
            for dimensions in (64, 80)
            for architecture in ARCHITECTURES
            for precision in ("bf16", "fp32")
        )
    ],
)
def test_the_kernels_compile_for_gpus_within_their_limits(
    kernel: str, dimensions: int, architecture: int, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segmint.model.kernels import encoder_triton as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(kernels, f"{kernel}_kernel")
    shape = {"SIDE": 64, "OFFSET": 128} if kernel == "map" else {"SIDE": 14, "OFFSET": 32, "HEIGHT": 64, "WIDTH": 64}
    head = {"HEADS": 16 if dimensions == 80 else 12, "CORE": 64, "REST": dimensions - 64}
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    found = compiled(
        function,
        architecture,
        # torch's compiler, which builds use with bf16, passes the scale as float64.
        {**dict.fromkeys(function.arg_names, f"*{precision}"), "scale": {"bf16": "fp64", "fp32": "fp32"}[precision]},
        {**head, **shape, **kernels.options(kernel, dtype)},
        tmp_path,
        aligned=(f"*{precision}",),
    )
    # The tensor cores multiply, and keys are copied while others are multiplied.
    if precision == "bf16":
        assert stack_bytes(found, tmp_path) == 0
        assert ("wgmma.mma_async" if architecture == 90 else "mma.sync") in found.asm["ptx"]
    assert "cp.async" in found.asm["ptx"]


@pytest.mark.parametrize(("side", "channels"), [(14, 80), (64, 80), (14, 64), (64, 64)])
def test_the_operator_has_the_shapes_of_b_l_and_h_for_torchs_compiler(side: int, channels: int) -> None:
    from segmint.model.kernels.encoder_triton import relative_attention

    with FakeTensorMode(), torch.inference_mode(), torch.device("cuda"):
        qkv = torch.empty(7, 64, 64, 3 * 16 * channels, dtype=torch.bfloat16)
        table = torch.empty(2 * side - 1, channels, dtype=torch.bfloat16)
        attended = relative_attention(qkv, qkv[0, 0, 0], table, table, 16, side)
    assert attended.shape == (7, 64, 64, 16 * channels)
    assert attended.dtype == torch.bfloat16
    assert attended.device.type == "cuda"


def test_shapes_without_a_kernel_are_refused() -> None:
    from segmint.model.kernels.encoder_triton import relative_attention, supports

    assert supports(16, 1280, 14, (64, 64))
    assert supports(16, 1280, 64, (64, 64))
    assert not supports(16, 1280, 20, (64, 64)), "a window of over 16"
    assert not supports(16, 1280, 48, (48, 48)), "a map whose rows are no power of two"
    assert not supports(16, 768, 14, (64, 64)), "heads of 48 channels"
    with pytest.raises(ValueError, match=r"squares of 20 on 64x64, 1 heads of 64: no kernel"):
        relative_attention(
            torch.zeros(1, 64, 64, 192), torch.zeros(192), torch.zeros(39, 64), torch.zeros(39, 64), 1, 20
        )


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [*SHAPES, (14, (64, 64), 16, 80, 2), (64, (64, 64), 12, 64, 1)])
def test_the_kernels_on_a_gpu_compute_the_encoders_attention(
    shape: tuple[int, tuple[int, int], int, int, int], dtype: torch.dtype
) -> None:
    check(shape, "cuda", dtype, 2e-2 if dtype == torch.bfloat16 else 1e-5)
