"""Rules that decide which of an image's submissions count, for the annotator view, merges, agreement, and studies."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from segmint.catalogs.dataset.annotations.submissions import BoxPrompt, Submission, SubmittedMask

Merged = Mapping[str, Any] | None
"""Value of the column `submission` in an image's row.

It contains the `assignment` and `n` of the last merged submission. Both are null if no submission was merged.
"""


def assignment_to_merge(merged: Merged, assignments: Iterable[int]) -> int | None:
    """Return which of an image's assignments to merge, or None if the image has no submissions.

    If an assignment was merged before, the same assignment is merged again. Otherwise, the lowest assignment with
    submissions is merged.
    """
    before = merged_assignment(merged)
    if before is not None:
        return before
    return min(assignments, default=None)


def merged_assignment(merged: Merged) -> int | None:
    """Return the assignment whose submission was merged into an image's row, or None if no submission was merged."""
    assignment = (merged or {}).get("assignment")
    if assignment is None:
        return None
    return int(assignment)


def is_merged(merged: Merged, assignment: int, n: int) -> bool:
    """Return whether submission `n` of an assignment, or a later one, was merged into the image's row."""
    return merged_assignment(merged) == assignment and n <= ((merged or {}).get("n") or 0)


def last_of_states(submissions: Iterable[Submission]) -> list[Submission]:
    """Return an assignment's last submission for each state of the image. `submissions` must be in order."""
    return [list(same)[-1] for _, same in groupby(submissions, key=lambda submission: submission.base)]


def independent_submissions(submissions: Sequence[Submission]) -> tuple[Submission, Submission] | None:
    """Return one submission from each of two annotators who worked independently, so that they can be compared.

    Both submissions must start from the same state of the image. If both assignments have submissions for several
    states, this picks the first of these states. If an assignment has several submissions for that state, the last one
    counts. Returns None if no state of the image has submissions from both assignments. `submissions` must contain all
    submissions for the image.
    """
    last: dict[int, dict[str, Submission]] = {0: {}, 1: {}}  # by assignment and state
    for submission in submissions:
        last[submission.assignment][submission.base] = submission
    for base, submission in last[0].items():
        if base in last[1]:
            return submission, last[1][base]
    return None


def carried(submission: Submission, base: str, size: tuple[int, int], counts: Mapping[int, str]) -> Submission | None:
    """Apply a submission to another state of its image, without the changes that no longer fit.

    `counts` maps the annotation ids of that state's masks to their run lengths. New masks are always kept. A
    replacement or deletion is kept only if the run lengths of its mask haven't changed. The result records 0 seconds,
    because the original submission already counts the time. Returns None if the image's size differs.
    """
    if submission.size != size:
        return None
    replaced = tuple(mask for mask in submission.replaced if counts.get(mask.id) == mask.counts)
    parents = {None, *(mask.id for mask in replaced)}
    return submission.model_copy(
        update={
            "base": base,
            "seconds": 0.0,
            "masks": tuple(mask for mask in submission.masks if mask.parent in parents),
            "replaced": replaced,
            "deleted": tuple(mask for mask in submission.deleted if counts.get(mask.id) == mask.counts),
        }
    )


def is_untouched(mask: SubmittedMask) -> bool:
    """Return whether a mask was prefilled from a detector's box and the annotator didn't work on it.

    Such a mask has an active time of 0 seconds, and the box is its only prompt.
    """
    return (
        mask.source == "assisted"
        and mask.parent is None
        and mask.seconds == 0
        and len(mask.prompts) == 1
        and isinstance(mask.prompts[0], BoxPrompt)
    )


def annotated_masks(submission: Submission) -> list[SubmittedMask]:
    """Return the masks that the annotator worked on, without untouched prefills."""
    return [mask for mask in submission.masks if not is_untouched(mask)]
