"""Which of an image's answers count: the rules that the desk, merging, agreement and studies share."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from segmint.catalogs.dataset.annotations.answers import Answer, AnswerMask, BoxPrompt

Merged = Mapping[str, Any] | None
"""The column `answer` of an image's row: `lane` and `n` of what was merged last; both may be null."""


def lane_to_merge(merged: Merged, lanes: Iterable[int]) -> int | None:
    """Return the lane of an image whose answers are merged: the one merged before, or else the lowest that has any.

    None if there are no answers. The other lane only says how far people agree.
    """
    before = merged_lane(merged)
    return min(lanes, default=None) if before is None else before


def merged_lane(merged: Merged) -> int | None:
    """Return the lane of an image whose answer was merged into its row; None if none was."""
    lane = (merged or {}).get("lane")
    return None if lane is None else int(lane)


def is_merged(merged: Merged, lane: int, n: int) -> bool:
    """Whether an answer of a lane was merged into the image's row, or one after it."""
    return merged_lane(merged) == lane and n <= ((merged or {}).get("n") or 0)


def last_of_states(answers: Iterable[Answer]) -> list[Answer]:
    """Return the last answer to each state of the image, in order; `answers` are those of a lane, in order."""
    return [list(same)[-1] for _, same in groupby(answers, key=lambda answer: answer.base)]


def answers_apart(answers: Sequence[Answer]) -> tuple[Answer, Answer] | None:
    """Return what two people said of an image, each without seeing the other's work: the answers to be compared.

    They are the last ones of each lane to the first state to which both answered; None if there is no such state.
    `answers` are all of the image.
    """
    one, other = ({last.base: last for last in last_of_states(_of_lane(answers, lane))} for lane in (0, 1))
    return next(((answer, other[base]) for base, answer in one.items() if base in other), None)


def carried(answer: Answer, base: str, size: tuple[int, int], counts: Mapping[int, str]) -> Answer | None:
    """Return what still fits of an answer, as an answer to another state of its image; None where the size differs.

    `counts` are the run lengths of the image's masks in that state, by annotation id. New masks fit, and those whose
    parent has the run lengths that it had; so do deletions. Its seconds on the image are 0: the answer itself has them.
    """
    if answer.size != size:
        return None
    replaced = tuple(mask for mask in answer.replaced if counts.get(mask.id) == mask.counts)
    parents = {None, *(mask.id for mask in replaced)}
    return answer.model_copy(
        update={
            "base": base,
            "seconds": 0.0,
            "masks": tuple(mask for mask in answer.masks if mask.parent in parents),
            "replaced": replaced,
            "deleted": tuple(mask for mask in answer.deleted if counts.get(mask.id) == mask.counts),
        }
    )


def is_untouched(mask: AnswerMask) -> bool:
    """Whether a mask is as the model drew it for a detector's box: nobody spent time on it, or gave a prompt."""
    return (
        mask.source == "assisted"
        and mask.parent is None
        and mask.seconds == 0
        and len(mask.prompts) == 1
        and isinstance(mask.prompts[0], BoxPrompt)
    )


def masks_of_people(answer: Answer) -> list[AnswerMask]:
    """Return the masks of an answer that people worked on: those that are untouched are left out."""
    return [mask for mask in answer.masks if not is_untouched(mask)]


def _of_lane(answers: Iterable[Answer], lane: int) -> list[Answer]:
    return [answer for answer in answers if answer.lane == lane]
