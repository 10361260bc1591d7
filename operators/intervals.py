"""95 % confidence intervals of proportions and means."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]

_Z = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
_PERCENTILES = (2.5, 97.5)
_MEAN_RESAMPLES = 1000
_CLUSTER_RESAMPLES = 10_000
_AT_ONCE = 100
_SEED = 0  # the same data always gives the same interval


def wilson(successes: float, trials: int) -> Interval:
    """Return Wilson's score interval (1927) of a proportion, which has a positive width even for 0 successes."""
    share = successes / trials
    center = share + _Z**2 / (2 * trials)
    spread = _Z * math.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2))
    scale = 1 + _Z**2 / trials
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)


def bootstrap_mean(values: NDArray[np.float64]) -> Interval:
    """Return the percentile bootstrap interval (Efron 1979) of the mean of values, shape (N,)."""
    random = np.random.default_rng(_SEED)
    means = [values[random.integers(0, len(values), len(values))].mean() for _ in range(_MEAN_RESAMPLES)]
    low, high = np.percentile(means, _PERCENTILES)
    return float(low), float(high)


def clustered(successes: Sequence[int], trials: Sequence[int]) -> Interval | None:
    """Return the percentile bootstrap interval of a ratio of sums over clusters; None with fewer than two clusters.

    Clusters without a trial are ignored.
    """
    counts = np.array([pair for pair in zip(successes, trials, strict=True) if pair[1]], dtype=np.int64).reshape(-1, 2)
    clusters = len(counts)
    if clusters < 2:
        return None
    generator = np.random.default_rng(_SEED)
    even = np.full(clusters, 1 / clusters)
    shares = []
    for _ in range(_CLUSTER_RESAMPLES // _AT_ONCE):
        sums = generator.multinomial(clusters, even, size=_AT_ONCE) @ counts
        shares.append(sums[:, 0] / sums[:, 1])
    low, high = np.percentile(np.concatenate(shares), _PERCENTILES)
    return float(low), float(high)


def at_most(successes: int, trials: int, confidence: float = 0.95) -> float:
    """Return the one-sided upper bound of Clopper and Pearson (1934) of a proportion, exact for a binomial.

    It is the proportion at which at most `successes` would have a probability of 1 - `confidence`. Without a success,
    it is about 3 / `trials` (the rule of three).
    """
    from scipy.stats import beta

    return 1.0 if successes >= trials else float(beta.ppf(confidence, successes + 1, trials - successes))
