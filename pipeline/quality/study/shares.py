"""The share of masks over an IoU threshold, with two 95 % confidence intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

from segmint.operators.intervals import Interval, clustered, wilson
from segmint.pipeline.quality.statistics.paper import PAPER

PAPER_SHARES = {0.90: PAPER.quality.over_90_iou, 0.75: PAPER.quality.over_75_iou}
"""What the SAM paper (section 5) reports for SA-1B: the share of pairs over each IoU."""


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
