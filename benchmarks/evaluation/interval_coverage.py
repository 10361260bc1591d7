"""Coverage of the 95 % intervals of operators/intervals.py, by simulation.

Images have 1, 10, or 100 masks each. A share's successes are beta-binomial, so that two masks of an image have the
correlation 0 or 0.3. A mean's IoUs are quantiles at normal numbers, which have this correlation within an image. Their
distribution has a left tail, or one mask in ten is a failure with an IoU below 0.6.

    python benchmarks/evaluation/interval_coverage.py
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import describe_machine
from benchmarks.measuring import RESULTS, write_result
from segmint.operators.intervals import Interval, mean_intervals, share_interval

IMAGES = (10, 12, 20, 50, 100)
MASKS = (1, 10, 100)
SHARES = (0.5, 0.75, 0.9, 0.97)
CORRELATIONS = (0.0, 0.3)
RUNS = 2000
RESAMPLES = 2000
"""Resamples per interval, a fifth of the default's, which only adds noise to the ends."""

MEANS = {"left tail": 6 / 7, "failures": 0.81}
"""Mean IoU of each distribution: beta with the parameters 6 and 1, and a mixture; see `quantiles`."""

OUTPUT = RESULTS / "interval_coverage.json"
_AT_ONCE = 250  # runs

Floats = NDArray[np.float64]


def main() -> None:
    """Simulate all cases, print their coverage, and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, nargs="*", default=IMAGES)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    started = time.monotonic()
    rows = []
    for images in options.images:
        for row in simulated(images, options.runs):
            rows.append(row)
            print(json.dumps(row), flush=True)
    found = [row["coverage"] for row in rows]
    from_20 = [row["coverage"] for row in rows if row["images"] >= 20]
    summary = {"lowest": min(found), "lowest from 20 images": min(from_20, default=None), "highest": max(found)}
    print(json.dumps(summary))
    settings = {"runs": options.runs, "resamples": RESAMPLES, "mean IoU": MEANS}
    seconds = {"seconds": round(time.monotonic() - started, 1)}
    write_result(
        options.output,
        "interval_coverage",
        describe_machine(1, "fp64"),
        {**settings, **summary, **seconds, "rows": rows},
    )


def simulated(images: int, runs: int) -> Iterator[dict[str, Any]]:
    """Yield the coverage of each mean and share over this many images."""
    for masks in MASKS:
        for correlation in CORRELATIONS if masks > 1 else CORRELATIONS[:1]:
            case = {"images": images, "masks": masks, "correlation": correlation}
            for tail in MEANS:
                yield {**case, "kind": f"mean, {tail}", **mean_coverage(images, masks, tail, correlation, runs)}
            for share in SHARES:
                yield {
                    **case,
                    "kind": "share",
                    "true": share,
                    **share_coverage(images, masks, share, correlation, runs),
                }


def share_coverage(images: int, masks: int, share: float, correlation: float, runs: int) -> dict[str, float]:
    """Return the fraction of intervals of a share that contain it, and their mean width."""
    random = np.random.default_rng([images, masks, round(100 * share), round(10 * correlation)])
    of_image = np.full((runs, images), share)
    if correlation:
        both = 1 / correlation - 1
        of_image = random.beta(share * both, (1 - share) * both, (runs, images))
    successes = random.binomial(masks, of_image)
    return covered(share, [share_interval(each, np.full(images, masks)) for each in successes])


def mean_coverage(images: int, masks: int, tail: str, correlation: float, runs: int) -> dict[str, float]:
    """Return the fraction of intervals of a mean IoU that contain it, and their mean width."""
    random = np.random.default_rng([images, masks, round(10 * correlation)])
    found: list[Interval | None] = []
    for start in range(0, runs, _AT_ONCE):
        drawn = (ious(random, images, masks, tail, correlation) for _ in range(min(_AT_ONCE, runs - start)))
        sums = np.stack(list(drawn), axis=1)
        found += mean_intervals(sums, np.full(images, float(masks)), limits=(0.0, 1.0), resamples=RESAMPLES)
    return covered(MEANS[tail], found)


def ious(random: np.random.Generator, images: int, masks: int, tail: str, correlation: float) -> Floats:
    """Return the sum of the IoUs of each image, (images,)."""
    from scipy.special import ndtr

    normal = np.sqrt(1 - correlation) * random.standard_normal((images, masks))
    normal += np.sqrt(correlation) * random.standard_normal((images, 1))
    sums: Floats = quantiles(ndtr(normal), tail).sum(axis=1)
    return sums


def quantiles(shares: Floats, tail: str) -> Floats:
    """Return the IoUs below which these shares of all IoUs are."""
    if tail == "left tail":
        return shares ** (1 / 6)
    good = 0.6 + 0.4 * np.sqrt(np.clip(shares - 0.1, 0, 1) / 0.9)
    return np.where(shares < 0.1, 6 * shares, good)


def covered(true: float, intervals: list[Interval | None]) -> dict[str, float]:
    """Return the fraction of intervals that contain the true value, their mean width, and the fraction without one."""
    known = np.array([each for each in intervals if each is not None])
    contain = (known[:, 0] <= true) & (true <= known[:, 1])
    width = (known[:, 1] - known[:, 0]).mean()
    return {
        "coverage": round(float(contain.mean()), 4),
        "width": round(float(width), 4),
        "without": round(1 - len(known) / len(intervals), 4),
    }


if __name__ == "__main__":
    main()
