"""The kernels of decoding points compute their plain formulas, and compile for four kinds of GPUs within limits."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from segmint.model.kernels import factored_image, factored_plainly
from segmint.model.kernels.factored_plainly import CONSTANT, ROWS
from tests.support.compiled_kernels import ARCHITECTURES, compiled, stack_bytes

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[3]

# Rows of the image before, side of the image, prompts, tokens: first and later blocks, a last tile that is cut, few
# tokens.
SHAPES = [(0, 8, 2, 7), (64, 8, 1, 7), (64, 7, 2, 4), (128, 8, 1, 7), (192, 9, 1, 6)]
FEW_SHAPES = [(0, 3, 1, 7), (64, 7, 2, 4), (128, 3, 1, 6)]


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


def answer_arguments(more: int, side: int, prompts: int, tokens: int) -> tuple[Any, ...]:
    positions = side * side
    places = numbers(128 if more else 0, positions)
    vectors = numbers(prompts, ROWS + more, 256) / 8
    vectors[:, tokens:8] = 0
    return (
        numbers(prompts, ROWS, 16) / 2,
        numbers(128, positions),
        places,
        numbers(prompts, ROWS, more) / 8,
        numbers(prompts, positions).abs() if more else torch.ones(prompts, positions),
        numbers(prompts, more, positions),
        vectors,
        numbers(positions, 256),
        tokens,
        1e-5,
    )


def look_arguments(more: int, side: int, prompts: int, _: int) -> tuple[Any, ...]:
    queries, own, _, prior, scale, coefficients, *_ = answer_arguments(more, side, prompts, 7)
    return queries, own, numbers(128, side * side), prior, scale, coefficients, numbers(side * side, 128)


def draw_arguments(more: int, side: int, prompts: int, _: int) -> tuple[Any, ...]:
    *_, scale, coefficients, _, _, _, _ = answer_arguments(more, side, prompts, 7)
    wanted = torch.zeros(prompts, 3, dtype=torch.bool)
    wanted[0, 2] = True
    return (
        scale,
        coefficients,
        numbers(prompts, more, 256) / 8,
        numbers(side * side, 256),
        numbers(2, 64),
        numbers(64, 128) / 8,
        numbers(128),
        numbers(prompts, 3, 32) / 6,
        wanted,
        1e-6,
    )


@torch.inference_mode()
def check(shape: tuple[int, int, int, int], device: str, dtype: torch.dtype, most: float) -> None:
    """The kernels on a device against the formulas in float32 on the CPU, which take the same rounded numbers."""
    from segmint.model.kernels import factored_triton

    torch.manual_seed(shape[0] + shape[1])
    for step, arguments in (("answer", answer_arguments), ("look", look_arguments), ("draw", draw_arguments)):
        if shape[0] == 0 and step != "answer":
            continue
        scales = {"answer": 4, "look": 4, "draw": 0}[step]
        given = [
            one.to(dtype) if isinstance(one, torch.Tensor) and one.is_floating_point() and place != scales else one
            for place, one in enumerate(arguments(*shape))
        ]
        plain = [one.float() if isinstance(one, torch.Tensor) and one.is_floating_point() else one for one in given]
        there = [one.to(device) if isinstance(one, torch.Tensor) else one for one in given]
        expected, found = getattr(factored_plainly, step)(*plain), getattr(factored_triton, step)(*there)
        if step == "draw":
            some = given[8].any(dim=1)
            expected, found = (expected[some],), (found[some],)
        for one, other in zip(found, expected, strict=True):
            assert one.shape == other.shape
            worst = float((one.float().cpu() - other).abs().max() / other.abs().max())
            assert worst < most, (step, shape, worst)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="is the process that the test starts")
@pytest.mark.parametrize("shapes", ["FEW_SHAPES", pytest.param("SHAPES", marks=pytest.mark.long)])
def test_interpreted_kernels_compute_the_plain_formulas(shapes: str) -> None:
    code = "\n".join(
        [
            "import runpy, sys, torch",
            "torch.set_num_threads(1)",
            f"sys.path.insert(0, {str(ROOT)!r})",
            f"tests = runpy.run_path({__file__!r})",
            "from segmint.model.kernels import factored_triton as kernels",
            # The long test computes float32 numbers in the tiles of half precision.
            f"if {shapes!r} == 'SHAPES': kernels.FLOAT32 = kernels.HALF",
            f"for shape in tests[{shapes!r}]: tests['check'](shape, 'cpu', torch.float32, 1e-5)",
        ]
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, env=environment, cwd=ROOT)


# The steps of decoders of two and three blocks, with the rows of the image before. Few run by default: those of float32
# with the largest stack or shared memory, and one of half precision.
STEPS = [("answer", 0), ("answer", 64), ("answer", 128), ("look", 64), ("look", 128), ("look", 192)]
STEPS += [("look at shared values", 64), ("look at shared values", 192), ("draw", 128), ("draw", 192)]
FEW_COMPILED = [("answer", 64, 86, "fp32"), ("look at shared values", 64, 90, "fp32"), ("draw", 128, 89, "bf16")]


@pytest.mark.parametrize(
    ("step", "more", "architecture", "precision"),
    [
        pytest.param(*one, marks=[] if one in FEW_COMPILED else pytest.mark.long)
        for one in (
            (*step, architecture, precision)
            for step in STEPS
            for architecture in ARCHITECTURES
            for precision in ("bf16", "fp16", "fp32")
        )
    ],
)
def test_the_kernels_compile_for_gpus_within_their_limits(
    step: str, more: int, architecture: int, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segmint.model.kernels import factored_triton as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    step, _, shared = step.partition(" at ")
    kernel = getattr(kernels, f"{step}_kernel")
    types = dict.fromkeys(kernel.arg_names, f"*{precision}") | {"eps": "fp32", "positions": "i32", "side": "i32"}
    types |= {"wanted": "*u8", **dict.fromkeys(("scale", "new_scale", "logits"), "*fp32")}
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    options = {"answer": {"TOKENS": 7, "CONSTANT": CONSTANT}, "look": {"SHARED": bool(shared)}}.get(step, {})
    found = compiled(
        kernel,
        architecture,
        types,
        {**options, "MORE": more, **kernels.options(step, dtype)},
        tmp_path,
        aligned=("*bf16", "*fp16", "*fp32", "i32"),
    )
    if precision != "fp32":
        assert architecture < 90 or stack_bytes(found, tmp_path) == 0
        assert ("wgmma.mma_async" if architecture == 90 else "mma.sync") in found.asm["ptx"]


def test_without_a_gpu_the_operators_are_the_plain_formulas() -> None:
    torch.manual_seed(0)
    for step, arguments in (("answer", answer_arguments), ("look", look_arguments), ("draw", draw_arguments)):
        given = arguments(64, 4, 2, 7)
        found, expected = getattr(factored_image, step)(*given), getattr(factored_plainly, step)(*given)
        for one, other in zip(
            *((each if isinstance(each, tuple) else (each,)) for each in (found, expected)), strict=True
        ):
            assert torch.equal(one, other)


@pytest.mark.parametrize("sign", [1, -1])
def test_logits_beyond_fp16_are_finite(sign: int) -> None:
    """fp16 ends at 65,504. The formula, like the kernel, sums the logits in float32."""
    torch.manual_seed(0)
    given = list(draw_arguments(64, 4, 2, 7))
    expected = factored_plainly.draw(*given)
    filters = sign * 100_000 * given[7] / expected.abs().max()
    given[7] = filters
    expected = factored_plainly.draw(*given)
    half = [one.half() if isinstance(one, torch.Tensor) and one.dtype == torch.float32 else one for one in given]
    half[0] = given[0]  # the images' scale is always float32
    found = factored_plainly.draw(*half)

    assert float(expected.abs().max()) > 65_504
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    assert float((found - expected).norm() / expected.norm()) < 0.01


def test_on_a_gpu_the_operators_are_the_kernels() -> None:
    for step in ("answer", "look", "draw"):
        operator = getattr(torch.ops.segmint, step).default
        assert operator.has_kernel_for_dispatch_key("CUDA")
        assert not operator.has_kernel_for_dispatch_key("CPU")


@pytest.mark.parametrize(("step", "arguments"), [("answer", answer_arguments), ("look", look_arguments)])
def test_formulas_replace_the_kernels_in_their_block(
    step: str, arguments: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from segmint.model.kernels import factored_triton

    monkeypatch.setattr(factored_triton, step, lambda *_: "the kernel")
    given = arguments(64, 3, 1, 7)
    with factored_image.formulas():
        found = factored_image.run_kernel(step, *given)
    for one, other in zip(found, getattr(factored_plainly, step)(*given), strict=True):
        assert torch.equal(one, other)
    assert factored_image.run_kernel(step, *given) == "the kernel"


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [*SHAPES, (64, 64, 256, 7), (128, 64, 64, 7)])
def test_the_kernels_on_a_gpu_compute_the_plain_formulas(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    check(shape, "cuda", dtype, 1e-4 if dtype == torch.float32 else 2e-2)
