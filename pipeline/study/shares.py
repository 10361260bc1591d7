"""The share of masks over an IoU threshold, with two 95 % confidence intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segmint.pipeline.statistics.paper import PAPER

Interval = tuple[float, float]

PAPER_SHARES = {0.90: PAPER.quality.over_90_iou, 0.75: PAPER.quality.over_75_iou}
"""What the SAM paper (section 5) reports for SA-1B: the share of pairs over each IoU."""

_Z = 1.959963984540054  # 97.5 % of a normal distribution
_RESAMPLES = 10_000
_AT_ONCE = 100
_SEED = 0


@dataclass(frozen=True)
class Share:
    """The pairs whose IoU is over `threshold`.

    `wilson` assumes independent pairs. `clustered` does not: it resamples whole images, and is None with fewer than
    two. `of_all` counts deleted masks as failures. `paper` is SA-1B's share.
    """

    threshold: float
    over: int
    pairs: int
    share: float
    wilson: Interval
    clustered: Interval | None
    of_all: float
    paper: float


def share_over(threshold: float, ious: Sequence[Sequence[float]], deleted: int) -> Share:
    """Return the share over a threshold of `PAPER_SHARES`, from the IoUs of each image's pairs; needs a pair."""
    over = [sum(iou > threshold for iou in image) for image in ious]
    pairs = [len(image) for image in ious]
    total = sum(pairs)
    return Share(
        threshold=threshold,
        over=sum(over),
        pairs=total,
        share=sum(over) / total,
        wilson=wilson(sum(over), total),
        clustered=clustered(over, pairs),
        of_all=sum(over) / (total + deleted),
        paper=PAPER_SHARES[threshold],
    )


def wilson(successes: int, trials: int) -> Interval:
    """Return Wilson's 95 % score interval of a proportion."""
    share = successes / trials
    center = share + _Z**2 / (2 * trials)
    spread = _Z * math.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2))
    scale = 1 + _Z**2 / trials
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)


def clustered(successes: Sequence[int], trials: Sequence[int]) -> Interval | None:
    """Return the 95 % percentile bootstrap of a ratio of sums over clusters; None with fewer than two clusters.

    Clusters without a trial are ignored. The same data always gives the same interval.
    """
    counts = np.array([pair for pair in zip(successes, trials, strict=True) if pair[1]], dtype=np.int64).reshape(-1, 2)
    clusters = len(counts)
    if clusters < 2:
        return None
    generator = np.random.default_rng(_SEED)
    even = np.full(clusters, 1 / clusters)
    shares = []
    for _ in range(_RESAMPLES // _AT_ONCE):
        sums = generator.multinomial(clusters, even, size=_AT_ONCE) @ counts
        shares.append(sums[:, 0] / sums[:, 1])
    low, high = np.percentile(np.concatenate(shares), [2.5, 97.5])
    return float(low), float(high)
