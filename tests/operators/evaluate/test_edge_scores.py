"""ODS, OIS, AP and R50 of counts, against sums and searches written out."""

import numpy as np
import pytest

from segmint.operators.evaluate.edges import EdgeCounts, edge_scores, thresholds

CUTS = thresholds(3)


def counts(found_matched: list[int], found: list[int], true_matched: list[int], true: int) -> EdgeCounts:
    return EdgeCounts(*(np.array(each) for each in (found_matched, found, true_matched, [true] * len(found))))


def f(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall)


def test_thresholds_are_the_benchmarks() -> None:
    assert np.allclose(thresholds(), np.arange(1, 100) / 100)
    assert CUTS.tolist() == [0.25, 0.5, 0.75]


def test_scores_of_two_images_worked_out_by_hand() -> None:
    first = counts([80, 60, 20], [200, 80, 20], [80, 60, 20], 100)
    second = counts([30, 20, 20], [100, 40, 20], [45, 30, 25], 50)
    scores = edge_scores([first, second], CUTS)
    precision = [110 / 300, 80 / 120, 40 / 40]
    recall = [125 / 150, 90 / 150, 45 / 150]
    assert scores.precision.tolist() == pytest.approx(precision)
    assert scores.recall.tolist() == pytest.approx(recall)

    best, at = 0.0, 0.0
    for left in (0, 1):
        for share in np.linspace(0, 1, 100):
            mixed = [values[left] * (1 - share) + values[left + 1] * share for values in (precision, recall, CUTS)]
            if f(mixed[0], mixed[1]) > best:
                best, at = f(mixed[0], mixed[1]), mixed[2]
    assert (scores.ods, scores.ods_threshold) == (pytest.approx(best), pytest.approx(at))

    # The first image is best at 0.5 (F 0.667), the second at 0.75 (precision 1, recall 0.5: F 0.667).
    assert scores.ois == pytest.approx(f((60 + 20) / (80 + 20), (60 + 25) / (100 + 50)))

    area = 0.0
    for r in np.arange(101) / 100:
        for (r0, p0), (r1, p1) in (((0.3, 1.0), (0.6, 2 / 3)), ((0.6, 2 / 3), (125 / 150, 110 / 300))):
            if r0 <= r < r1 or r == r1 == 125 / 150:
                area += p0 + (p1 - p0) * (r - r0) / (r1 - r0)
    assert scores.ap == pytest.approx(area / 100)

    share = (0.5 - 110 / 300) / (2 / 3 - 110 / 300)
    assert scores.r50 == pytest.approx(125 / 150 + share * (0.6 - 125 / 150))


def test_perfect_and_hopeless_edges() -> None:
    perfect = edge_scores([counts([50] * 3, [50] * 3, [50] * 3, 50)], CUTS)
    assert (perfect.ods, perfect.ois, perfect.r50, perfect.ap) == (1.0, 1.0, 1.0, None)
    hopeless = edge_scores([counts([0] * 3, [9, 9, 0], [0] * 3, 50)], CUTS)
    assert (hopeless.ods, hopeless.ois, hopeless.r50, hopeless.ap) == (0.0, 0.0, None, None)
    assert edge_scores([counts([5], [10], [5], 20)], thresholds(1)).ods == pytest.approx(f(0.5, 0.25))
