"""95% confidence intervals of means, shares, and other scores over images, by formula or by resampling.

The masks of an image resemble one another, so all methods treat the image, not the mask, as the unit. With fewer than
`LEAST_IMAGES` images, there is no interval. To measure how often the intervals contain the true value, run the
simulation in benchmarks/evaluation/interval_coverage.py.

Permutation tests of means over images' masks, which flip the signs or exchange the labels of whole images.

The masks of an image resemble one another, so the tests permute images, not masks. The random numbers depend only on
`seed`.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from segmint.infra.arrays import Floats, Ints

Interval = tuple[float, float]

Seed = int | Sequence[int]
"""One nonnegative number or several. With several, the intervals and tests of an evaluation can use different seeds."""

LEAST_IMAGES = 10
"""Minimum number of images for an interval."""

LEAST_EFFECTIVE = 5
"""Minimum effective number of images for an interval (Kish 1965).

The effective number is the square of the number of masks, divided by the sum over images of each image's squared number
of masks. If one image contains half of all masks, the effective number is below this minimum. Without the minimum,
intervals can be badly wrong: if one image contained 95% of the masks, the interval of a mean would contain the true
value in 2% of cases instead of 95%.
"""

RESAMPLES = 10_000
"""Number of bootstrap resamples for an interval, and of random permutations for a test."""

NORMAL = 1.959963984540054
"""97.5% quantile of the standard normal distribution."""

_TAIL = 0.025
_AT_ONCE = 100
_EVEN = 1e-12  # relative differences up to this are attributed to rounding


def basis(images: int) -> str:
    """Return the text that describes the intervals of a result with this number of images."""
    if images < LEAST_IMAGES:
        return f"too few images for an interval ({images}, expected {LEAST_IMAGES} or more)"
    return "with 95% intervals by image"


def mean_intervals(
    sums: Floats,
    counts: Floats,
    seed: Seed = 0,
    limits: Interval = (-np.inf, np.inf),
    resamples: int = RESAMPLES,
) -> list[Interval | None]:
    """Return the intervals of M means over masks.

    Each mean is the ratio of two sums over images. `sums` (I, M) contains the sum over each image's masks, and `counts`
    (I,) contains each image's number of masks. Images without masks are ignored. `limits` are the lowest and highest
    possible values of a mean. For the cases in which a mean has no interval, see `studentized`.
    """
    return studentized([(sums[counts > 0], counts[counts > 0])], seed, limits, resamples)


def studentized(
    strata: Sequence[tuple[Floats, Floats]],
    seed: Seed = 0,
    limits: tuple[ArrayLike, ArrayLike] = (-np.inf, np.inf),
    resamples: int = RESAMPLES,
) -> list[Interval | None]:
    """Return studentized bootstrap intervals (Efron 1981) of M stratified means.

    Each of the M means is the average, over strata, of the stratum's mean over masks. A stratum consists of the sums
    (I, M) and counts (I,) of its images. Images are resampled within their stratum, jointly for all M means.

    A mean of IoUs includes rare failures, and a few images often contain none of them, so plain intervals would be too
    narrow. They are widened by the squared ratio of Student's t to the normal quantile, which is 1.33 for 10 images and
    1.14 for 20.

    A mean has no interval if a stratum contains fewer than `LEAST_IMAGES` images or `LEAST_EFFECTIVE` effective images,
    if all images have the same values, or if so few images differ that many resamples have no spread.
    """
    from scipy.special import stdtrit

    means = np.mean([sums.sum(axis=0) / counts.sum() for sums, counts in strata], axis=0)
    if any(map(_are_few, (counts for _, counts in strata))):
        return [None] * len(means)
    generator = np.random.default_rng(seed)
    shifts, variances = np.zeros((2, resamples, len(means)))
    variance = np.zeros(len(means))
    for sums, counts in strata:
        images = len(counts)
        scale = images / (images - 1) / len(strata) ** 2  # from squared deviations to a variance of the mean
        rest = sums - sums.sum(axis=0) / counts.sum() * counts[:, None]
        rest[np.abs(rest) <= _EVEN * np.abs(sums).max(axis=0)] = 0
        variance += scale * (rest**2).sum(axis=0) / counts.sum() ** 2
        for start in range(0, resamples, _AT_ONCE):
            part = slice(start, min(start + _AT_ONCE, resamples))
            drawn = generator.multinomial(images, np.full(images, 1 / images), part.stop - start).astype(np.float64)
            masks = (drawn @ counts)[:, None]
            shift = drawn @ rest / masks
            squares, of_counts = drawn @ rest**2, shift**2 * (drawn @ counts**2)[:, None]
            spread = squares - 2 * shift * (drawn @ (rest * counts[:, None])) + of_counts
            shifts[part] += shift / len(strata)
            variances[part] += scale * np.where(spread > _EVEN * (squares + of_counts), spread, 0) / masks**2
    with np.errstate(divide="ignore", invalid="ignore"):
        ranked = np.sort(np.nan_to_num(shifts / np.sqrt(variances), nan=0, posinf=np.inf, neginf=-np.inf), axis=0)
    cut = int(_TAIL * resamples)
    wider = (stdtrit(min(len(counts) for _, counts in strata) - 1, 1 - _TAIL) / NORMAL) ** 2
    found: list[Interval | None] = []
    for mean, error, first, last in zip(means, wider * np.sqrt(variance), ranked[cut], ranked[-1 - cut], strict=True):
        known = error > 0 and np.isfinite([first, last]).all()
        found.append((float(mean - last * error), float(mean - first * error)) if known else None)
    lows, highs = (np.broadcast_to(each, len(means)) for each in limits)
    return [
        None if each is None else (max(each[0], float(low)), min(each[1], float(high)))
        for each, low, high in zip(found, lows, highs, strict=True)
    ]


def figure_intervals(
    values: Ints | Floats,
    figures: Callable[[Floats], Floats],
    seed: Seed,
    scores: int,
    resamples: int = RESAMPLES,
) -> tuple[list[float | None], list[Interval | None]]:
    """Return K scores that depend on sums over images, and their intervals from each image's jackknife pseudo-values.

    `values` (I, M) contains the values of each image. `figures` maps sums (R, M) to scores (R, K). It returns NaN for
    an undefined score, which becomes None here. The first `scores` of the K values are scores between 0 and 1, and the
    rest are differences of such scores. A score has no interval if fewer than `LEAST_IMAGES` images affect it, or in
    the cases listed for `studentized`.
    """
    values = values.astype(np.float64)
    total = values.sum(axis=0, keepdims=True)
    found = figures(total)[0]
    means = [None if np.isnan(each) else float(each) for each in found]
    if len(values) < LEAST_IMAGES:
        return means, [None] * len(means)
    without = np.concatenate(
        [figures(total - values[start : start + _AT_ONCE]) for start in range(0, len(values), _AT_ONCE)]
    )
    influences = (len(values) - 1) * (found - without)
    unknown = np.isnan(influences).any(axis=0) | ((np.abs(influences) > _EVEN).sum(axis=0) < LEAST_IMAGES)
    pseudo = np.where(unknown, 0, found + influences - influences.mean(axis=0))
    lows = np.where(np.arange(len(means)) < scores, 0.0, -1.0)
    return means, studentized([(pseudo, np.ones(len(values)))], seed, (lows, 1.0), resamples)


def share_interval(successes: ArrayLike, trials: ArrayLike) -> Interval | None:
    """Return the interval of a share of masks, given each image's number of successes and number of masks, both (I,).

    This is Wilson's interval with Student's t, applied to the effective number of masks. That number is the number of
    masks divided by the design effect (Kish 1965), which is 1 if an image's masks are independent. Images without masks
    are ignored. There is no interval if fewer than `LEAST_IMAGES` images with masks or `LEAST_EFFECTIVE` effective
    images remain.

    Two corrections keep the coverage right for shares near 0 and 1:

    - If f images contain a mask in the minority, the design effect moves by 1 / 2^f toward the design effect of images
      whose masks are all alike.
    - If a few images cause most of the variance, the excess of the design effect over 1 is scaled as for a t
      distribution with fewer degrees of freedom. The degrees of freedom are half of Satterthwaite's, because the
      kurtosis of a small number of images is too low.
    """
    from scipy.special import stdtrit

    found, counts = np.asarray(successes, np.float64), np.asarray(trials, np.float64)
    found, counts = found[counts > 0], counts[counts > 0]
    images, masks = len(counts), counts.sum()
    if _are_few(counts):
        return None
    share = found.sum() / masks
    squares = (found - share * counts) ** 2
    alike = (counts**2).sum() / masks
    effect, freedom = alike, images - 1.0
    if squares.sum() > 0 and 0 < share < 1:
        effect = min(alike, max(1.0, images / (images - 1) * squares.sum() / (masks * share * (1 - share))))
        excess = images * (squares**2).sum() / squares.sum() ** 2 - 1  # excess of the kurtosis over its minimum
        freedom = min(freedom, max(1.0, images / max(excess, 1e-9)))
    minority = min((found > 0).sum(), (found < counts).sum())
    effect += (alike - effect) * 0.5**minority
    t, wider = stdtrit(images - 1, 1 - _TAIL), stdtrit(freedom, 1 - _TAIL)
    effect = min(alike, 1 + (effect - 1) * (wider / t) ** 2)
    return wilson(float(share), float(masks / effect), float(t))


def _are_few(counts: Floats) -> bool:
    """Return whether there are too few images for an interval; `counts` contains their numbers of masks."""
    return len(counts) < LEAST_IMAGES or bool(counts.sum() ** 2 < LEAST_EFFECTIVE * (counts**2).sum())


def wilson(share: float, trials: float, quantile: float = NORMAL) -> Interval:
    """Return Wilson's score interval (1927) of a proportion. Its width is positive even for shares of 0 and 1."""
    center = share + quantile**2 / (2 * trials)
    spread = quantile * math.sqrt(share * (1 - share) / trials + quantile**2 / (4 * trials**2))
    scale = 1 + quantile**2 / trials
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)


def at_most(successes: int, trials: int) -> float:
    """Return the exact one-sided 95% upper bound of Clopper and Pearson (1934) for a binomial proportion.

    If the proportion were equal to this bound, at most `successes` successes would occur with a probability of 5%.
    Without successes, the bound is about 3 / `trials` (the rule of three).
    """
    from scipy.stats import beta

    return 1.0 if successes >= trials else float(beta.ppf(0.95, successes + 1, trials - successes))


EXACT_IMAGES = 12
"""Maximum number of images for which a sign test tries every combination of signs."""


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
