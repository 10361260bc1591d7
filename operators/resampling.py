"""Permutation tests of means over images' masks, which flip the signs or exchange the labels of whole images.

The masks of an image resemble one another, so the tests permute images, not masks. The random numbers depend only on
`seed`.
"""

from collections.abc import Callable, Sequence

import numpy as np

from segmint.operators.intervals import RESAMPLES, Floats, Seed

EXACT_IMAGES = 12
"""Maximum number of images for which a sign test tries every combination of signs."""

_AT_ONCE = 100
_EVEN = 1e-12  # relative differences up to this are attributed to rounding


def sign_flip_p(differences: Floats, seed: Seed, resamples: int = RESAMPLES) -> list[float]:
    """Return two-sided p-values for the hypothesis that two models' weights don't differ, for M measures.

    `differences` (I, M) contains, for each image, the sum of the differences over the image's masks. Under the null
    hypothesis, each sum is as likely as its opposite. For up to `EXACT_IMAGES` images, the test tries all combinations
    of signs, and otherwise random ones.
    """
    images = len(differences)
    found = np.abs(differences.sum(axis=0))
    limit = found - _EVEN * np.abs(differences).sum(axis=0)
    if images <= EXACT_IMAGES:
        bits = np.arange(1 << images)[:, None] >> np.arange(images)
        as_large = (np.abs((1.0 - 2.0 * (bits & 1)) @ differences) >= limit).sum(axis=0)
        return [float(each) / (1 << images) for each in as_large]
    generator = np.random.default_rng(seed)
    as_large = np.ones(differences.shape[1])  # counts the observed signs
    for start in range(0, resamples, _AT_ONCE):
        signs = 1.0 - 2.0 * generator.integers(0, 2, (min(_AT_ONCE, resamples - start), images))
        as_large += (np.abs(signs @ differences) >= limit).sum(axis=0)
    return [float(each) / (resamples + 1) for each in as_large]


def swap_p(
    values: Floats,
    swapped: Floats,
    figures: Callable[[Floats], Floats],
    seed: Seed,
    resamples: int = 1000,
) -> list[float | None]:
    """Return two-sided p-values for the hypothesis that two models don't differ, for K differences of their scores.

    `values` (I, M) contains the values of each image. `swapped` contains the same values with the two models exchanged,
    which is equally likely under the null hypothesis. `figures` maps sums over images (R, M) to differences (R, K). If
    a difference is undefined (NaN), there is no p-value. If only an exchange makes it undefined, that exchange counts
    as a large difference.
    """
    values, change = values.astype(np.float64), swapped.astype(np.float64) - values
    total = values.sum(axis=0)
    found = np.abs(figures(total[None])[0])
    generator = np.random.default_rng(seed)
    as_large = np.ones(len(found))  # counts the observed order
    for start in range(0, resamples, _AT_ONCE):
        exchanged = generator.integers(0, 2, (min(_AT_ONCE, resamples - start), len(values))).astype(np.float64)
        as_large += (~(np.abs(figures(total + exchanged @ change)) < found - _EVEN)).sum(axis=0)
    return [None if np.isnan(each) else float(p) / (resamples + 1) for each, p in zip(found, as_large, strict=True)]


def relabel_p(first: Floats, second: Floats, seed: Seed, resamples: int = RESAMPLES) -> list[float] | None:
    """Return two-sided p-values for the hypothesis that two groups have equal means, for M measures.

    `first` and `second` (I, M + 1) contain one row per image: the sums of M measures over the image's masks in that
    group, and the number of these masks, which may be 0. The test permutes the labels of groups over images. Images
    with masks in only one group exchange labels with each other. In an image with masks in both groups, the test
    randomly swaps the two groups. Returns None if nothing can be permuted.
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
    as_large = np.ones(first.shape[1] - 1)  # counts the observed labels
    for start in range(0, resamples, _AT_ONCE):
        size = min(_AT_ONCE, resamples - start)
        drawn = generator.permuted(np.tile(labels, (size, 1)), axis=1)
        swapped = generator.integers(0, 2, (size, int(both.sum()))).astype(np.float64)
        in_first = drawn @ alone + (1 - swapped) @ first[both] + swapped @ second[both]
        total = alone_total + first[both].sum(axis=0) + second[both].sum(axis=0)
        as_large += (np.abs(_gap(in_first, total - in_first)) >= limit).sum(axis=0)
    return [float(each) / (resamples + 1) for each in as_large]


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return Holm's adjusted p-values (1979) of several tests, in the same order. Entries without a test stay None."""
    tested = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, place) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[place] = largest
    return adjusted


def _gap(first: Floats, second: Floats) -> Floats:
    """Return the difference of two groups' means, (…, M), from sums followed by the count, (…, M + 1)."""
    gap: Floats = first[..., :-1] / first[..., -1:] - second[..., :-1] / second[..., -1:]
    return gap
