"""Agreement of two people who annotated the same image independently: the IoU of their masks of an object.

For comparison, the SAM paper (section 5) reports 0.85 to 0.91 between annotators. Only independent work is compared.
After a merge, one person may see the other's masks, so the comparison uses the last submissions of assignments 0 and 1
for the first state of the image that both people annotated.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segmint.catalogs.dataset.annotations.assignments import annotated_masks, independent_submissions
from segmint.catalogs.dataset.annotations.names import latest_submissions, list_submissions
from segmint.catalogs.dataset.annotations.submissions import Submission, SubmissionError, read_submissions
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.operators.annotations.pairs import best_matches
from segmint.operators.intervals import Interval, mean_intervals

SAME_OBJECT_IOU = 0.5
"""Minimum IoU for two people's masks to count as the same object."""

_THREADS = 16


@dataclass(frozen=True)
class AnnotatorAgreement:
    """Agreement on images that two people annotated, without their names.

    `pairs` counts the pairs of masks of the same object. `mean_iou` is the mean over these pairs, or None without any.
    `interval` is its 95% interval by image, or None if there are too few images. `unpaired` counts masks of objects
    that only one person drew.
    """

    images: int
    pairs: int
    mean_iou: float | None
    interval: Interval | None
    unpaired: int


def agreement(one: Submission, other: Submission) -> tuple[float, ...]:
    """Pair two people's masks of the same objects in an image, and return the IoU of each pair.

    Two kinds of masks are ignored: masks of the dataset that neither person changed, and untouched prefills
    (`is_untouched`). Masks are paired one to one, best pair first. Pairs below `SAME_OBJECT_IOU` count as different
    objects.
    """
    ours, theirs = _rles(one), _rles(other)
    if one.size != other.size or not ours or not theirs:
        return ()
    return tuple(float(iou) for _, _, iou in best_matches(ours, theirs) if iou >= SAME_OBJECT_IOU)


def _rles(submission: Submission) -> list[dict[str, Any]]:
    size = list(submission.size)
    return [{"size": size, "counts": mask.counts.encode()} for mask in annotated_masks(submission)]


def sum_up(pairs: Iterable[tuple[Submission, Submission]]) -> AnnotatorAgreement | None:
    """Summarize pairs of submissions from `independent_submissions`, one per image. Return None without any pair."""
    ious: list[Sequence[float]] = []
    masks = 0
    for one, other in pairs:
        ious.append(agreement(one, other))
        masks += len(annotated_masks(one)) + len(annotated_masks(other))
    if not ious:
        return None
    found = list(filter(None, ious))
    if not found:
        return AnnotatorAgreement(images=len(ious), pairs=0, mean_iou=None, interval=None, unpaired=masks)
    sums = np.array([[sum(image)] for image in found])
    counts = np.array(list(map(len, found)), np.float64)
    total = int(counts.sum())
    return AnnotatorAgreement(
        images=len(ious),
        pairs=total,
        mean_iou=float(sums.sum()) / total,
        interval=mean_intervals(sums, counts, limits=(SAME_OBJECT_IOU, 1.0))[0],
        unpaired=masks - 2 * total,
    )


def measure_agreement(dataset: Location) -> AnnotatorAgreement | None:
    """Compare and summarize the submissions for images that two people annotated. Return None if there are none."""
    both = []
    for ordinal, assignments in latest_submissions(list_submissions(dataset)).items():
        if len(assignments) > 1:
            both.append(ordinal)
    found = map_ahead(lambda ordinal: read_pairs(dataset, ordinal), both, _THREADS, 4 * _THREADS, "submissions")
    return sum_up(pair for pair in found if pair is not None)


def read_pairs(dataset: Location, ordinal: int) -> tuple[Submission, Submission] | None:
    """Read two people's independent submissions for an image. Return None if there is no such pair.

    Images with an unreadable submission are skipped, because the audit reports them.
    """
    try:
        return independent_submissions(read_submissions(dataset, ordinal))
    except SubmissionError:
        return None
