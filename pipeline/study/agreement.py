"""How far two people agree who annotated the same image apart: the IoU of their masks of one object.

SAM paper, section 5: 0.85 to 0.91 between annotators. Lanes 0 and 1 of an image, where both were given the same state.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from segmint.catalogs.dataset.annotations.answers import Answer, AnswerError, read_answer
from segmint.catalogs.dataset.annotations.names import last_answers, list_answers
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.pipeline.statistics.intervals import Interval
from segmint.pipeline.statistics.resampling import mean_replicates, percentile_interval
from segmint.pipeline.study.pairs import StudyMask, best_matches

SAME_OBJECT_IOU = 0.5
"""The least IoU at which masks of two people are of one object."""

_SEED = 0
_THREADS = 16


@dataclass(frozen=True)
class Agreement:
    """The masks of images that two people annotated; names are left out.

    `pairs` are of one object, `mean_iou` is over them (None without any), `interval` of 95 % by resampling images (None
    for one image). `alone` masks have no partner: one of the two has not drawn that object.
    """

    images: int
    pairs: int
    mean_iou: float | None
    interval: Interval | None
    alone: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return asdict(self)


def agreement(one: Answer, other: Answer) -> tuple[float, ...]:
    """Return the IoU of each two masks that two people drew of one object of an image.

    Masks of the dataset that both left as they were do not count. Masks are paired one to one, the best pair first;
    pairs under `SAME_OBJECT_IOU` are of two objects.
    """
    if one.size != other.size or not one.masks or not other.masks:
        return ()
    ours, theirs = (
        [StudyMask(None, {"size": list(each.size), "counts": mask.counts.encode()}) for mask in each.masks]
        for each in (one, other)
    )
    return tuple(float(iou) for _, _, iou in best_matches(ours, theirs) if iou >= SAME_OBJECT_IOU)


def sum_up(pairs: Iterable[tuple[Answer, Answer]]) -> Agreement | None:
    """Sum up the answers of two people to each image; those to different states are left out. None without any."""
    ious: list[Sequence[float]] = []
    masks = 0
    for one, other in pairs:
        if one.base == other.base:
            ious.append(agreement(one, other))
            masks += len(one.masks) + len(other.masks)
    if not ious:
        return None
    found = [image for image in ious if image]
    sums = np.array([[sum(image)] for image in found])
    counts = np.array([float(len(image)) for image in found])
    total = int(counts.sum()) if found else 0
    return Agreement(
        images=len(ious),
        pairs=total,
        mean_iou=float(sums.sum()) / total if total else None,
        interval=percentile_interval(mean_replicates(sums, counts, _SEED))[0] if len(found) > 1 else None,
        alone=masks - 2 * total,
    )


def measure_agreement(dataset: Location) -> Agreement | None:
    """Read the last answers of images that two people annotated, and sum them up; None if there are none.

    Answers that cannot be read are left out: the audit names them.
    """
    both = [lanes for lanes in last_answers(list_answers(dataset)).values() if len(lanes) > 1]

    def read(index: int) -> tuple[Answer, Answer] | None:
        try:
            return read_answer(dataset, both[index][0]), read_answer(dataset, both[index][1])
        except AnswerError:
            return None

    found = map_ahead(read, range(len(both)), _THREADS, 4 * _THREADS, "answers")
    return sum_up(pair for pair in found if pair is not None)
