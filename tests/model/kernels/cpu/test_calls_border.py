"""The border filter: one result from all instruction sets, today's counts, and faults that would change them."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segmint.model.kernels.cpu import calls
from segmint.model.kernels.cpu.calls import Axis
from segmint.model.kernels.cpu.library import Kernels
from tests.support.cpu_kernels import every_set, numbers, with_fault

SIDE = 64

HASH = "e59d27e2f8edcf6a"
"""Of counts, boxes and pixels of `stored_logits`, from every instruction set of every CPU."""


def axis(pixels: int, side: int = SIDE) -> Axis:
    """Interpolation along an axis with weights that only depend on integers, the middle one 0 at some pixels."""
    places = np.minimum(np.arange(pixels) * side // pixels, side - 3)
    shares = 1 + np.abs(numbers(7, pixels, 3)).astype(np.float64) * 6 // 1
    shares[::5, 1] = 0
    weights = np.zeros((pixels, side), np.float32)
    for tap in range(3):
        weights[np.arange(pixels), places + tap] = (shares[:, tap] / shares.sum(axis=1)).astype(np.float32)
    return Axis.of(weights, np.stack([places, places + 3], axis=1))


def stored_logits() -> torch.Tensor:
    """Logits (6, 64, 64): blobs, steps, means within a few bits of each threshold, empty, full, a thin line."""
    y, x = np.mgrid[:SIDE, :SIDE]
    blob = ((x - 20) ** 2 + (y - 40) ** 2 < 150) * 9.0 - 4.5 + numbers(1, SIDE, SIDE) * 4
    steps = np.where((x // 9 + y // 7) % 2, 11.0, -13.0)
    near = np.select([y < 20, y < 40], [1.0, -1.0], 2.0**-23) + np.round(numbers(2, SIDE, SIDE) * 3) * 2.0**-23
    line = np.where(x == y, 5.0, -5.0)
    masks = [blob, steps, near, np.full((SIDE, SIDE), -9.0), np.full((SIDE, SIDE), 9.0), line]
    return torch.from_numpy(np.stack(masks).astype(np.float32))


def result_of(kernels: Kernels) -> str:
    """Hash of what the kernels make of the stored logits, at two sizes."""
    digest = hashlib.sha256()
    logits = stored_logits()
    for height, width in ((211, 157), (40, 300)):
        down, across = axis(height), axis(width)
        found = calls.measure(kernels, logits, down, across, 1.0)
        digest.update(found.tobytes())
        for mask, row in zip(logits, found, strict=True):
            digest.update(calls.draw(kernels, calls.keep(mask, row, down, across), down, across, 1.0).tobytes())
    return digest.hexdigest()[:16]


def test_every_instruction_set_gives_the_stored_hash() -> None:
    assert {kernels.instruction_set: result_of(kernels) for kernels in every_set()} == {
        kernels.instruction_set: HASH for kernels in every_set()
    }


def dense(one: Axis, side: int = SIDE) -> NDArray[np.float64]:
    """The axis as a matrix (pixels, side)."""
    matrix = np.zeros((one.pixels, side))
    for tap, weights in enumerate(one.weights):
        matrix[np.arange(one.pixels), one.places[: one.pixels] + tap] += weights[: one.pixels]
    return matrix


@pytest.mark.parametrize("offset", [0.0, 1.0, 0.25])
@pytest.mark.parametrize(("height", "width"), [(211, 157), (40, 300), (1, 5), (62, 62)])
def test_counts_and_boxes_are_those_of_float64_but_for_logits_at_a_threshold(
    height: int, width: int, offset: float
) -> None:
    kernels, logits = every_set()[-1], stored_logits()
    down, across = axis(height), axis(width)
    exact = dense(down) @ logits.double().numpy() @ dense(across).T
    found = calls.measure(kernels, logits, down, across, offset)
    for mask, threshold in enumerate([offset, 0, -offset]):
        off = np.abs(found[:, mask] - (exact > threshold).sum(axis=(1, 2)))
        assert (off <= (np.abs(exact - threshold) <= 4e-7).sum(axis=(1, 2))).all()
    for mask in (0, 1, 3, 4, 5):
        drawn = calls.draw(kernels, calls.keep(logits[mask], found[mask], down, across), down, across, offset)
        x0, y0, x1, y1 = found[mask, 3:]
        whole = np.zeros((height, width), np.bool_)
        whole[y0 : y1 + 1, x0 : x1 + 1] = drawn
        assert np.array_equal(whole[np.abs(exact[mask]) > 4e-7], exact[mask][np.abs(exact[mask]) > 4e-7] > 0)
        if found[mask, 1]:
            assert [drawn[0].any(), drawn[-1].any(), drawn[:, 0].any(), drawn[:, -1].any()] == [True] * 4
        else:
            assert found[mask].tolist() == [0] * 7


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    logits = stored_logits()
    logits[4, 63, 63] = value
    for kernels in every_set():
        with pytest.raises(ValueError, match="mask 4 of 6 has logits that are not finite"):
            calls.measure(kernels, logits, axis(100), axis(90), 1.0)


def test_a_drawing_of_another_area_than_the_measured_one_is_refused() -> None:
    kernels, logits = every_set()[-1], stored_logits()
    down, across = axis(100), axis(90)
    found = calls.measure(kernels, logits, down, across, 1.0)[0]
    kept = calls.keep(logits[0], found, down, across)
    kept.logits[kept.logits > 0] *= -1
    with pytest.raises(RuntimeError, match="broken kernels"):
        calls.draw(kernels, kept, down, across, 1.0)


def test_a_pixel_of_more_than_three_logits_does_not_fit() -> None:
    with pytest.raises(ValueError, match="more than 3 of 8 logits"):
        Axis.of(np.full((5, 8), 0.125, np.float32), np.tile([0, 8], (5, 1)))


@pytest.mark.long
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("_mm256_fmadd_ps(x.b, y.b, z.b)", "_mm256_add_ps(_mm256_mul_ps(x.b, y.b), z.b)"),
        ("_mm256_movemask_ps(high)) << 8", "_mm256_movemask_ps(low)) << 8"),
        ("_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)", "_mm256_loadu_ps(from + 8), _mm256_loadu_ps(from)"),
    ],
    ids=["half of the products not fused", "a mask with the wrong lanes", "lanes in the wrong order"],
)
def test_the_hash_reveals_a_fault_in_one_back_end(
    old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert result_of(with_fault("lanes16.h", old, new, tmp_path, monkeypatch)) != HASH
