"""Confidence intervals and tests of means over images' masks: whole images are resampled, flipped, or relabeled.

An image's masks resemble one another, so images rather than masks are the units. `sums` (I, M) float64 are the sums of
M measures over each image's masks, and `counts` (I,) are the images' mask counts; a mean is the ratio of both totals
over all images. Random numbers depend only on `seed`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segmint.operators.intervals import Interval

Floats = NDArray[np.float64]

Seed = int | Sequence[int]
"""One non-negative number, or several, so that the tests of one evaluation use different random numbers."""

RESAMPLES = 10_000
"""Resamples of an interval, and random permutations of a test."""

EXACT_IMAGES = 12
"""Maximum number of images for which a sign test tries all signs."""

_AT_ONCE = 100
_EVEN = 1e-12  # relative difference attributed to rounding


def mean_replicates(sums: Floats, counts: Floats, seed: Seed, resamples: int = RESAMPLES) -> Floats:
    """Return the means of images drawn with replacement, (resamples, M): Efron's bootstrap over whole images."""
    generator = np.random.default_rng(seed)
    images = len(counts)
    even = np.full(images, 1 / images)
    found = []
    for start in range(0, resamples, _AT_ONCE):
        drawn = generator.multinomial(images, even, size=min(_AT_ONCE, resamples - start)).astype(np.float64)
        found.append((drawn @ sums) / (drawn @ counts)[:, None])
    return np.concatenate(found)


def percentile_interval(replicates: Floats) -> list[Interval]:
    """Return the 95 % interval of each column of replicates (R, M)."""
    low, high = np.percentile(replicates, (2.5, 97.5), axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def sign_flip_p(differences: Floats, seed: Seed, resamples: int = RESAMPLES) -> list[float]:
    """Return two-sided p-values of no difference between two weights, for M measures.

    `differences` (I, M) are each image's sums of differences over its masks. Under the null hypothesis, an image's sum
    is as likely to have the opposite sign. All signs are tried for up to `EXACT_IMAGES` images.
    """
    images = len(differences)
    found = np.abs(differences.sum(axis=0))
    limit = found - _EVEN * np.abs(differences).sum(axis=0)
    if images <= EXACT_IMAGES:
        bits = np.arange(1 << images)[:, None] >> np.arange(images)
        as_large = (np.abs((1.0 - 2.0 * (bits & 1)) @ differences) >= limit).sum(axis=0)
        return [float(each) / (1 << images) for each in as_large]
    generator = np.random.default_rng(seed)
    as_large = np.ones(differences.shape[1])  # the observed signs
    for start in range(0, resamples, _AT_ONCE):
        signs = 1.0 - 2.0 * generator.integers(0, 2, (min(_AT_ONCE, resamples - start), images))
        as_large += (np.abs(signs @ differences) >= limit).sum(axis=0)
    return [float(each) / (resamples + 1) for each in as_large]


def relabel_p(first: Floats, second: Floats, seed: Seed, resamples: int = RESAMPLES) -> list[float] | None:
    """Return two-sided p-values of equal means in two groups, for M measures, by permuting group labels over images.

    `first` and `second` (I, M + 1) have one row per image: the sums of M measures over its masks in that group and,
    last, the number of these masks, which may be 0. Labels of images with masks in one group are permuted among them;
    in an image with masks in both, the two groups are swapped or not. None if nothing can be permuted.
    """
    one = (first[:, -1] > 0) != (second[:, -1] > 0)
    both = (first[:, -1] > 0) & (second[:, -1] > 0)
    alone = np.where(first[one, -1:] > 0, first[one], second[one])
    labels = (first[one, -1] > 0).astype(np.float64)
    mixed = labels.any() and not labels.all()
    if not (both.any() or mixed) or not first[:, -1].any() or not second[:, -1].any():
        return None
    found = np.abs(_gap(first.sum(axis=0), second.sum(axis=0)))
    limit = found - _EVEN
    generator = np.random.default_rng(seed)
    alone_total = alone.sum(axis=0)
    as_large = np.ones(first.shape[1] - 1)  # the observed labels
    for start in range(0, resamples, _AT_ONCE):
        size = min(_AT_ONCE, resamples - start)
        drawn = generator.permuted(np.tile(labels, (size, 1)), axis=1)
        swapped = generator.integers(0, 2, (size, int(both.sum()))).astype(np.float64)
        in_first = drawn @ alone + (1 - swapped) @ first[both] + swapped @ second[both]
        total = alone_total + first[both].sum(axis=0) + second[both].sum(axis=0)
        as_large += (np.abs(_gap(in_first, total - in_first)) >= limit).sum(axis=0)
    return [float(each) / (resamples + 1) for each in as_large]


def holm(ps: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values (1979) of several tests, in their order."""
    order = sorted(range(len(ps)), key=lambda place: ps[place])
    adjusted = [0.0] * len(ps)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = largest
    return adjusted


def _gap(first: Floats, second: Floats) -> Floats:
    """Return the difference of two groups' means from sums with counts last, (…, M + 1) to (…, M)."""
    gap: Floats = first[..., :-1] / first[..., -1:] - second[..., :-1] / second[..., -1:]
    return gap
