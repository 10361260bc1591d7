"""Coverage of the 95% intervals of operators/intervals.py, by simulation.

Images contain 1, 10, or 100 masks each.

- *Shares.* Successes are beta-binomial, so that two masks of an image have the correlation 0 or 0.3.
- *Means.* IoUs are quantiles at normal numbers that have the same correlation within an image. Their distribution
  either has a left tail, or one mask in ten is a failure with an IoU below 0.6.
- *AP.* Two detectors search for 10 masks per image. They miss some, and the IoUs of the others depend on the image.

    python benchmarks/evaluation/interval_coverage.py --images 10 12 20 50 100

Cases that the result already contains are kept, so an interrupted run can be continued.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import describe_machine
from benchmarks.measuring import RESULTS, Figures
from segmint.operators.evaluate.instances import AREAS, IOU_THRESHOLDS, AveragePrecision, ImageMatches
from segmint.operators.intervals import Interval, figure_intervals, mean_intervals, share_interval

IMAGES = (10, 12, 20, 50, 100)
MASKS = (1, 10, 100)
SHARES = (0.5, 0.75, 0.9, 0.97)
CORRELATIONS = (0.0, 0.3)
RUNS, AP_RUNS = 2000, 500
RESAMPLES = 2000
"""Resamples per interval. This is a fifth of the default, which only adds noise to the ends."""

FAILURES = 0.81
"""Mean IoU if one mask in ten is a failure; see `quantiles`."""

OUTPUT = RESULTS / "interval_coverage.json"
_AT_ONCE = 250  # runs that are simulated together
_POPULATION = 20_000  # images whose AP counts as the true AP

Floats = NDArray[np.float64]
Case = tuple[dict[str, Any], Callable[[], dict[str, Any]]]


def main() -> None:
    """Simulate all cases, print their coverage, and write the result after each case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, nargs="*", default=IMAGES)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--ap-runs", type=int, default=AP_RUNS)
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    figures = Figures(options.output, "interval_coverage", describe_machine(1, "fp64"))
    for images in options.images:
        for settings, measure in cases(images, options.runs, options.ap_runs):
            figures.add("rows", {"images": images, **settings, "resamples": RESAMPLES}, measure)


def cases(images: int, runs: int, ap_runs: int) -> Iterator[Case]:
    """Yield the settings of each mean, share, and AP over this many images, and a function that measures coverage."""
    for masks in MASKS:
        for correlation in CORRELATIONS if masks > 1 else CORRELATIONS[:1]:
            case = {"masks": masks, "correlation": correlation, "runs": runs}
            for mean in (*SHARES, FAILURES):
                yield (
                    {**case, "kind": "mean", "true": mean},
                    lambda: mean_coverage(images, masks, mean, correlation, runs),  # noqa: B023 (called at once)
                )
            for share in SHARES:
                yield (
                    {**case, "kind": "share", "true": share},
                    lambda: share_coverage(images, masks, share, correlation, runs),  # noqa: B023
                )
    yield {"masks": 10, "kind": "AP", "runs": ap_runs}, lambda: ap_coverage(images, ap_runs)[0]
    yield {"masks": 10, "kind": "AP, difference", "runs": ap_runs}, lambda: ap_coverage(images, ap_runs)[1]


def share_coverage(images: int, masks: int, share: float, correlation: float, runs: int) -> dict[str, float]:
    """Simulate intervals of a share. Return the fraction that contains the share, and the mean width."""
    random = np.random.default_rng([images, masks, round(100 * share), round(10 * correlation)])
    of_image = np.full((runs, images), share)
    if correlation:
        both = 1 / correlation - 1
        of_image = random.beta(share * both, (1 - share) * both, (runs, images))
    successes = random.binomial(masks, of_image)
    return covered(share, [share_interval(each, np.full(images, masks)) for each in successes])


def mean_coverage(images: int, masks: int, mean: float, correlation: float, runs: int) -> dict[str, float]:
    """Simulate intervals of a mean IoU. Return the fraction that contains the mean, and the mean width."""
    random = np.random.default_rng([images, masks, round(10 * correlation)])
    found: list[Interval | None] = []
    for start in range(0, runs, _AT_ONCE):
        drawn = (ious(random, images, masks, mean, correlation) for _ in range(min(_AT_ONCE, runs - start)))
        sums = np.stack(list(drawn), axis=1)
        found += mean_intervals(sums, np.full(images, float(masks)), limits=(0.0, 1.0), resamples=RESAMPLES)
    return covered(mean, found)


def ious(random: np.random.Generator, images: int, masks: int, mean: float, correlation: float) -> Floats:
    """Draw IoUs, and return their sum for each image, (images,)."""
    from scipy.special import ndtr

    normal = np.sqrt(1 - correlation) * random.standard_normal((images, masks))
    normal += np.sqrt(correlation) * random.standard_normal((images, 1))
    sums: Floats = quantiles(ndtr(normal), mean).sum(axis=1)
    return sums


def quantiles(shares: Floats, mean: float) -> Floats:
    """Return the quantiles of the IoUs at these shares. The distribution is a beta distribution, or has failures."""
    if mean != FAILURES:
        return shares ** ((1 - mean) / mean)
    good = 0.6 + 0.4 * np.sqrt(np.clip(shares - 0.1, 0, 1) / 0.9)
    return np.where(shares < 0.1, 6 * shares, good)


@cache
def ap_coverage(images: int, runs: int) -> list[dict[str, float]]:
    """Measure the coverage of intervals of a detector's AP, and of its difference from a better detector's AP."""
    random = np.random.default_rng([images, 7])
    population = detected(random, _POPULATION)
    every = np.eye(population.units, 2 * population.units).sum(axis=0)[None]
    true = dict(zip((0, 2), population.figures(every).reshape(3, -1)[[0, 2], 0].tolist(), strict=True))
    found: dict[int, list[Interval | None]] = {place: [] for place in true}
    for _ in range(runs):
        drawn = detected(random, images)
        selections, scores = np.eye(images, 2 * images), len(drawn.names)
        _, intervals = figure_intervals(selections, drawn.figures, 0, 2 * scores, RESAMPLES)
        for place, home in found.items():
            home.append(intervals[place * scores])
    return [covered(value, found[place]) for place, value in true.items()]


def detected(random: np.random.Generator, images: int) -> AveragePrecision:
    """Simulate two detectors over 10 large masks per image, with as many wrong predictions on average."""
    models: list[list[tuple[str, ImageMatches]]] = [[], []]
    truth = np.array([10, 0, 0, 10], np.int64)
    for number in range(images):
        difficulty = random.normal()
        for model, home in enumerate(models):
            logits = 1.2 + 0.15 * model + 0.6 * difficulty + random.standard_normal(10)
            right = 1 / (1 + np.exp(-logits[random.random(10) < 0.85]))
            overlaps = np.concatenate([right, np.zeros(random.poisson(10 - model))])
            scores = overlaps + random.normal(0.3, 0.25, len(overlaps))
            order = np.argsort(-scores)
            matched = np.zeros((len(AREAS), len(IOU_THRESHOLDS), len(order)), np.bool_)
            matched[[0, 3]] = overlaps[order] >= np.array(IOU_THRESHOLDS)[:, None]
            ignored = np.zeros_like(matched)
            ignored[[1, 2]] = True
            home.append((str(number), ImageMatches(scores[order], np.packbits(np.stack([matched, ignored])), truth)))
    return AveragePrecision([{1: home} for home in models])


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
