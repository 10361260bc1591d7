"""The drawing of low-resolution logits: one result from all instruction sets, and torch's errors against float64."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmint.model.kernels.cpu.calls import Upscaler, in_blocks
from segmint.model.kernels.cpu.library import Kernels
from tests.support.cpu_kernels import every_set, spoil, tensor, with_fault

SIDE = 32
POSITIONS = SIDE * SIDE
HEADS, BLOCKS = 8, 2

HASH = "26dca0688931b9c9"
"""Of the logits of `Case`, with and without what SAM 2.1 adds, from every instruction set of every CPU."""


class Case:
    """A prompt with `tokens` tokens on a random image, of numbers that no library decides."""

    def __init__(self, tokens: int, masks: int, added: bool) -> None:
        self.rows = BLOCKS * (HEADS * tokens + 1)
        self.drawn = tensor(1, POSITIONS, 256)
        self.norm = nn.LayerNorm(64, eps=1e-6)
        self.norm.weight.data, self.norm.bias.data = tensor(2, 64) + 1, tensor(3, 64)
        self.second = tensor(4, 128, 64) / 8, tensor(5, 128)
        self.added = (tensor(6, POSITIONS, 256), tensor(7, POSITIONS, 512)) if added else None
        self.scale = tensor(8, POSITIONS) / 4 + 1
        self.coefficients, self.vectors = tensor(9, self.rows, POSITIONS) / 4, tensor(10, self.rows, 256)
        self.filters = tensor(11, masks, 32)

    def upscaler(self, kernels: Kernels) -> Upscaler:
        return Upscaler.of(kernels, self.drawn, self.norm, self.second, *(self.added or ()))

    def draw(self, kernels: Kernels) -> Tensor:
        logits = torch.full((len(self.filters), 4 * SIDE, 4 * SIDE), torch.nan)
        self.upscaler(kernels).draw(self.scale, in_blocks(self.coefficients.T), self.vectors, self.filters, logits)
        return logits

    def plainly(self, dtype: torch.dtype) -> Tensor:
        """The logits by torch: two transposed convolutions as products, pixels placed one by one."""
        first, second = (each.to(dtype) for each in self.added) if self.added else (0, 0)
        map_ = self.scale.to(dtype)[:, None] * self.drawn.to(dtype)
        map_ = map_ + self.coefficients.to(dtype).T @ self.vectors.to(dtype) + first
        weight, bias = (each.detach().to(dtype) for each in (self.norm.weight, self.norm.bias))
        pixels = F.gelu(F.layer_norm(map_.view(-1, 64), (64,), weight, bias, self.norm.eps))
        out = F.linear(pixels, self.second[0].to(dtype), self.second[1].to(dtype)).view(POSITIONS, 512) + second
        parts = F.gelu(out).view(SIDE, SIDE, 2, 2, 2, 2, 32) @ self.filters.to(dtype).T  # (y, x, a, b, c, d, mask)
        return parts.permute(6, 0, 2, 4, 1, 3, 5).reshape(len(self.filters), 4 * SIDE, 4 * SIDE)


def result_of(kernels: Kernels) -> str:
    digest = hashlib.sha256()
    for case in (Case(7, 3, added=False), Case(8, 4, added=True)):
        digest.update(case.draw(kernels).numpy().tobytes())
    return digest.hexdigest()[:16]


def test_every_instruction_set_gives_the_stored_hash() -> None:
    assert {kernels.instruction_set: result_of(kernels) for kernels in every_set()} == {
        kernels.instruction_set: HASH for kernels in every_set()
    }


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(("tokens", "masks"), [(7, 1), (7, 3), (8, 4)])
def test_errors_against_float64_are_at_most_torchs(tokens: int, masks: int, added: bool) -> None:
    case = Case(tokens, masks, added)
    exact, drawn = case.plainly(torch.float64), case.draw(every_set()[-1])
    ours, torchs = ((found - exact).square().mean().sqrt() for found in (drawn, case.plainly(torch.float32)))
    assert exact.std() > 1, "logits of nearly nothing would compare nothing"
    assert ours <= 1.05 * torchs
    torch.testing.assert_close(drawn.double(), exact, atol=5e-6, rtol=0)


def test_the_activation_is_gelu_in_every_segment_and_after_them() -> None:
    x = torch.cat([torch.linspace(-9, 9, POSITIONS - 3), torch.tensor([0.0, -1e30, 1e30])])
    case = Case(7, 1, added=True)
    assert case.added is not None
    case.second[0].zero_()
    case.second[1].zero_()
    case.added[1].copy_(x[:, None].expand(-1, 512))
    case.filters.zero_()
    case.filters[0, 17] = 1
    exact = F.gelu(x.double())
    found = case.draw(every_set()[-1])[0, ::4, ::4].flatten()
    assert ((found - exact).abs() <= 2e-8 + exact.abs() * 2**-24).all()
    assert found[x == 0].tolist() == [0]


def test_values_that_are_not_finite_stay_so() -> None:
    for kernels in every_set():
        case = Case(7, 2, added=False)
        case.drawn[5, 3] = torch.nan
        logits = case.draw(kernels)
        assert logits.isnan().sum() == 2 * 4
        assert logits[:, :2, 20:22].isnan().all()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (spoil("filters", torch.zeros(5, 32)), "at most 4 masks"),
        (spoil("filters", torch.zeros(2, 31)), "the shapes are"),
        (spoil("scale", torch.zeros(POSITIONS - 1)), "the shapes are"),
        (spoil("coefficients", torch.zeros(99, POSITIONS)), "the shapes are"),
        (spoil("vectors", torch.zeros(114, 256).double()), "expected float32"),
        (spoil("drawn", torch.zeros(48 * 48, 256)), "can't draw masks from"),
        (spoil("drawn", torch.zeros(POSITIONS, 128)), "can't draw masks from"),
        (spoil("drawn", torch.zeros(POSITIONS, 256).bfloat16()), "can't draw masks from"),
    ],
)
def test_what_does_not_fit_is_refused(fault: Callable[[Case], None], message: str) -> None:
    case = Case(7, 3, added=False)
    fault(case)
    with pytest.raises(ValueError, match=message):
        case.draw(every_set()[-1])


def test_any_layout_of_the_factors_gives_the_same_bits() -> None:
    kernels, case = every_set()[-1], Case(7, 3, added=False)
    expected = case.draw(kernels)
    case.vectors, case.filters = case.vectors.T.contiguous().T, case.filters.T.contiguous().T
    assert torch.equal(case.draw(kernels), expected)
    factors = case.scale, in_blocks(case.coefficients.T), case.vectors
    with pytest.raises(ValueError, match="contiguous logits"):
        case.upscaler(kernels).draw(*factors, case.filters, torch.empty_like(expected).transpose(1, 2))


@pytest.mark.long
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("lanes16.h", "_mm256_cvttps_epi32(places.b)", "_mm256_cvttps_epi32(places.a)"),
        ("lanes16.h", "_mm256_sqrt_ps(x.b)", "_mm256_rcp_ps(_mm256_rsqrt_ps(x.b))"),
        ("products.h", "kTerms = 32;", "kTerms = 64;"),
        (
            "drawing.h",
            "tail = fma(tail, at, pick(kGelu[power], segment))",
            "tail = tail * at + pick(kGelu[power], segment)",
        ),
        ("drawing.h", "(sums[0] + sums[1]) + (sums[2] + sums[3])", "((sums[0] + sums[1]) + sums[2]) + sums[3]"),
    ],
    ids=["wrong lanes of a table", "an approximate root", "longer sums", "an activation not fused", "another order"],
)
def test_the_hash_reveals_a_fault_in_one_back_end(
    file: str, old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert result_of(with_fault(file, old, new, tmp_path, monkeypatch)) != HASH
