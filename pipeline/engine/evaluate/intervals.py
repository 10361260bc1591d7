"""Confidence intervals of scores that are computed from sums over images, by resampling images."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from segmint.operators.intervals import Interval

Floats = NDArray[np.float64]

RESAMPLES = 1000
LEAST_IMAGES = 2
"""Minimum number of images for an interval."""

_AT_ONCE = 50


def intervals_of(
    values: NDArray[np.int64] | Floats,
    figures: Callable[[Floats], Floats],
    seed: Sequence[int],
    resamples: int = RESAMPLES,
) -> tuple[list[float | None], list[Interval | None]]:
    """Return K scores of sums over images, with 95 % intervals from Efron's bootstrap over whole images.

    `values` (I, M) contains the values of each image. `figures` computes scores from sums, (R, M) to (R, K). It returns
    NaN for undefined scores, which become None. With fewer than two images there are no intervals.
    """
    values = values.astype(np.float64)
    found = figures(values.sum(axis=0, keepdims=True))[0]
    none: list[Interval | None] = [None] * len(found)
    means = [None if np.isnan(each) else float(each) for each in found]
    images = len(values)
    if images < LEAST_IMAGES:
        return means, none
    generator = np.random.default_rng(seed)
    even = np.full(images, 1 / images)
    drawn = []
    for start in range(0, resamples, _AT_ONCE):
        counts = generator.multinomial(images, even, size=min(_AT_ONCE, resamples - start))
        drawn.append(figures(counts.astype(np.float64) @ values))
    replicates = np.concatenate(drawn)
    known = ~np.isnan(replicates).all(axis=0)
    low, high = np.nanpercentile(np.where(known, replicates, 0), (2.5, 97.5), axis=0)
    return means, [
        (float(a), float(b)) if mean is not None else None for a, b, mean in zip(low, high, means, strict=True)
    ]


def percent(value: float | None, interval: Interval | None = None, sign: str = "") -> str:
    """Return a score in percent with its interval, such as `81.3 (79.0 to 83.4)`, or a dash if there is none."""
    if value is None:
        return "-"
    text = f"{100 * value:{sign}.1f}"
    return text if interval is None else f"{text} ({100 * interval[0]:{sign}.1f} to {100 * interval[1]:{sign}.1f})"
