"""Steps of the decoder: one result from all instruction sets, and torch's errors against float64."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from segmint.model.kernels.cpu.calls import ImagesInBlocks, SharedStep, in_blocks
from segmint.model.kernels.cpu.library import Kernels
from tests.support.cpu_kernels import every_set, spoil, tensor, with_fault

POSITIONS, HEADS, CHANNELS, EPSILON = 256, 8, 256, 1e-5

SHAPES = ((7, 7, 1, 0), (7, 4, 2, 0), (8, 5, 3, 0), (9, 9, 1, 17), (16, 2, 2, 17))
"""Tokens, queries, steps, and vectors of a mask."""

HASH = "807ea4e20e9c9c2a"
"""Of the results of steps of these `SHAPES`, from every instruction set of every CPU."""


class Case:
    """A step for two prompts with `tokens` tokens, of numbers that no library decides.

    The image has `of_mask` vectors before the first step.
    """

    def __init__(self, tokens: int, queries: int, steps: int, of_mask: int = 0) -> None:
        self.tokens, self.steps = tokens, steps
        constants = of_mask + steps - 1
        fresh, self.count = HEADS * tokens, steps * HEADS * tokens + constants
        self.prior = self.count - fresh
        self.own, self.keys = tensor(1, HEADS, 16, POSITIONS) * 2, tensor(2, HEADS, 16, POSITIONS) * 2
        self.places, self.key_places = tensor(3, HEADS, 16, POSITIONS), tensor(4, HEADS, 16, POSITIONS)
        self.squares, self.values = tensor(5, POSITIONS) * 20 + 200, tensor(6, HEADS, POSITIONS, 16)
        self.projected = tensor(7, steps * HEADS, 16, POSITIONS) * 2
        self.constants = tensor(8, constants, POSITIONS)
        self.few, self.of_values = tensor(9, 2, HEADS, tokens, 16), tensor(10, 2, steps * HEADS, tokens, 16)
        self.answer_prior = tensor(11, 2, fresh, self.prior)
        self.vectors = tensor(12, 2, self.count, CHANNELS) / 4
        self.queries = tensor(13, 2, HEADS, queries, 16)
        self.look_prior = tensor(14, 2, HEADS * queries, self.count + 1)
        self.scale = tensor(15, 2, POSITIONS) / 4 + 1 if steps > 1 else torch.ones(2, POSITIONS)
        self.coefficients = tensor(16, 2, self.prior, POSITIONS) / 4

    def gram(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Whole numbers of 2^-20, so that the order of sums doesn't matter."""
        rounded = (self.vectors.double() * 2**10).round() / 2**10
        return (rounded @ rounded.transpose(1, 2)).to(dtype)

    def step(self, kernels: Kernels) -> SharedStep:
        answer = self.own, self.places if self.steps > 1 else None
        norm = self.squares, self.projected, self.constants, CHANNELS, EPSILON
        return SharedStep.of(kernels, answer, norm, (self.keys, self.key_places, self.values))

    def images(self) -> ImagesInBlocks:
        fresh = HEADS * self.tokens
        room = torch.full((2, POSITIONS // 32, self.count + fresh + 2, 32), torch.nan)  # for one more step
        for prompt in range(2):
            room[prompt, :, 2 * fresh : 2 * fresh + self.prior] = in_blocks(self.coefficients[prompt].T)
        return ImagesInBlocks(self.scale.clone(), room, self.vectors, self.of_values)

    def take(self, kernels: Kernels) -> tuple[Tensor, ...]:
        """Scale, coefficients (2, N + 1, P), and attention."""
        images = self.images()
        answer, look = (self.few, self.answer_prior), (self.queries, self.look_prior)
        own, mixed = self.step(kernels).take(images, answer, self.gram(), look)
        fresh = HEADS * self.tokens
        assert images.coefficients[:, :, :fresh].isnan().all(), "rows of a later step"
        assert images.coefficients[:, :, -1].isnan().all(), "the row of a later norm"
        found = images.coefficients[:, :, fresh:-1].transpose(1, 2).flatten(2)
        return images.scale, found, own, mixed

    def plainly(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The same by torch."""

        def scores(few: Tensor, own: Tensor, places: Tensor, prior: Tensor, scale: Tensor, rows: Tensor) -> Tensor:
            found = (few @ own.to(dtype)) * scale[:, None, None] + few @ places.to(dtype)
            return found + torch.unflatten(prior.to(dtype) @ rows, 1, few.shape[1:3])

        scale, prior = self.scale.to(dtype), self.coefficients.to(dtype)
        few, values = self.few.to(dtype), self.of_values.to(dtype)
        if self.steps > 1:
            found = scores(few, self.own, self.places, self.answer_prior, scale, prior)
        else:
            found = few @ self.own.to(dtype)
            found = found + torch.unflatten(self.answer_prior.to(dtype) @ prior, 1, few.shape[1:3])
        rows = torch.cat([found.softmax(dim=2).flatten(1, 2), prior], dim=1)
        linear = (values @ self.projected.to(dtype)).flatten(1, 2)
        linear = torch.cat([linear, self.constants.to(dtype).expand(2, -1, -1)], dim=1) * scale[:, None]
        squares = scale.square() * self.squares.to(dtype)
        squares = squares + (rows * (2 * linear + self.gram(dtype) @ rows)).sum(dim=1)
        shrink = (squares / CHANNELS + EPSILON).rsqrt()
        scale, rows = scale * shrink, torch.cat([rows * shrink[:, None], torch.ones(2, 1, POSITIONS, dtype=dtype)], 1)
        queries = self.queries.to(dtype)
        weights = scores(queries, self.keys, self.key_places, self.look_prior, scale, rows).softmax(dim=3)
        own = (weights * scale[:, None, None]) @ self.values.to(dtype)
        return scale, rows, own, weights.flatten(1, 2) @ rows.transpose(1, 2)


def result_of(kernels: Kernels) -> str:
    digest = hashlib.sha256()
    for case in (Case(*shape) for shape in SHAPES):
        for found in case.take(kernels):
            digest.update(found.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def test_every_instruction_set_gives_the_stored_hash() -> None:
    assert {kernels.instruction_set: result_of(kernels) for kernels in every_set()} == {
        kernels.instruction_set: HASH for kernels in every_set()
    }


@pytest.mark.parametrize("shape", [*SHAPES, (8, 8, 2, 0), (1, 1, 1, 0), (16, 16, 3, 5)])
def test_errors_against_float64_are_at_most_twice_torchs(shape: tuple[int, int, int, int]) -> None:
    case = Case(*shape)
    exact = case.plainly(torch.float64)
    for name, found, torchs, right in zip(
        ("scale", "coefficients", "own", "mixed"),
        case.take(every_set()[-1]),
        case.plainly(torch.float32),
        exact,
        strict=True,
    ):
        ours, theirs = ((each - right).square().mean().sqrt() for each in (found, torchs))
        assert right.std() > 1e-3, f"{name}: constant numbers would compare nothing"
        assert ours <= 2 * theirs, name


def test_scores_far_apart_are_weighed_like_torchs() -> None:
    """Weights relative to the largest score so far vanish when a much larger one follows."""
    case = Case(7, 7, steps=1)
    case.queries *= 40
    found, exact = case.take(every_set()[-1]), case.plainly(torch.float64)
    torch.testing.assert_close(found[3].double(), exact[3], atol=2e-4, rtol=0)


def test_values_that_are_not_finite_stay_so() -> None:
    for kernels in every_set():
        case = Case(7, 7, steps=1)
        case.own[2, 3, 40] = torch.nan
        case.keys[5, 0, 0] = torch.inf
        scale, coefficients, own, mixed = case.take(kernels)
        assert scale.isnan().nonzero()[:, 1].unique().tolist() == [40]
        assert coefficients[:, :, 40].isnan()[:, :-1].all()
        assert own.isnan().all()
        assert mixed.isnan().any(dim=2).all()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (spoil("few", torch.zeros(2, HEADS, 6, 16)), "don't fit"),
        (spoil("few", torch.zeros(2, HEADS, 7, 8)), "don't fit"),
        (spoil("of_values", torch.zeros(2, HEADS, 7, 16)), "don't fit"),
        (spoil("queries", torch.zeros(2, HEADS, 17, 16)), "don't fit"),
        (spoil("look_prior", torch.zeros(2, 32, 113)), "don't fit"),
        (spoil("scale", torch.ones(2, POSITIONS - 32)), "don't fit"),
        (spoil("scale", torch.ones(2, POSITIONS).double()), "expected float32"),
    ],
)
def test_what_does_not_fit_is_refused(fault: Callable[[Case], None], message: str) -> None:
    case = Case(7, 4, steps=2)
    fault(case)
    with pytest.raises(ValueError, match=message):
        case.take(every_set()[-1])


def test_too_few_rows_for_the_coefficients_are_refused() -> None:
    case = Case(7, 4, steps=2)
    images = case.images()
    images = replace(images, coefficients=images.coefficients[:, :, 2 * 57 :].contiguous())
    answer, look = (case.few, case.answer_prior), (case.queries, case.look_prior)
    with pytest.raises(ValueError, match="don't fit"):
        case.step(every_set()[-1]).take(images, answer, case.gram(), look)


@pytest.mark.long
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("lanes16.h", "to + across * to_width + down, to_width", "to + down * to_width + across, to_width"),
        ("lanes16.h", "_mm256_permute2f128_ps(fours[i], fours[4 + i], 0x31)", "fours[4 + i]"),
        ("decoding.h", "sum = fma(sum, rest, broadcast(kPowers[term]))", "sum = sum * rest + broadcast(kPowers[term])"),
        ("decoding.h", "store(at, load(at) * less)", "store(at, load(at))"),
        ("decoding.h", "? start + size.value : kTerms", "? start : kTerms"),
    ],
    ids=["quarters not exchanged", "wrong lanes", "exp not fused", "sums not rescaled", "the triangle is cut"],
)
def test_the_hash_reveals_a_fault_in_one_back_end(
    file: str, old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert result_of(with_fault(file, old, new, tmp_path, monkeypatch)) != HASH
