"""Which of an image's submissions count: the rules that the annotator view, merging, agreement and studies share."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from segmint.catalogs.dataset.annotations.submissions import BoxPrompt, Submission, SubmittedMask

Merged = Mapping[str, Any] | None
"""The column `submission` of an image's row: `assignment` and `n` of what was merged last; both may be null."""


def assignment_to_merge(merged: Merged, assignments: Iterable[int]) -> int | None:
    """Return an image's assignment whose submissions are merged: the one merged before, else the lowest that has any.

    None if there are no submissions. The other assignment only says how far people agree.
    """
    before = merged_assignment(merged)
    return min(assignments, default=None) if before is None else before


def merged_assignment(merged: Merged) -> int | None:
    """Return the assignment of an image whose submission was merged into its row; None if none was."""
    assignment = (merged or {}).get("assignment")
    return None if assignment is None else int(assignment)


def is_merged(merged: Merged, assignment: int, n: int) -> bool:
    """Whether a submission of an assignment was merged into the image's row, or one after it."""
    return merged_assignment(merged) == assignment and n <= ((merged or {}).get("n") or 0)


def last_of_states(submissions: Iterable[Submission]) -> list[Submission]:
    """Return the last submission to each state of the image, in order; `submissions` are an assignment's, in order."""
    return [list(same)[-1] for _, same in groupby(submissions, key=lambda submission: submission.base)]


def independent_submissions(submissions: Sequence[Submission]) -> tuple[Submission, Submission] | None:
    """Return what two people said of an image, each without seeing the other's work: the submissions to be compared.

    They are the last ones of each assignment to the first state to which both have one; None if there is no such state.
    `submissions` are all of the image.
    """
    one, other = (
        {last.base: last for last in last_of_states(_of_assignment(submissions, assignment))} for assignment in (0, 1)
    )
    return next(((submission, other[base]) for base, submission in one.items() if base in other), None)


def carried(submission: Submission, base: str, size: tuple[int, int], counts: Mapping[int, str]) -> Submission | None:
    """Return what still fits of a submission, as one to another state of its image; None where the size differs.

    `counts` are the run lengths of the image's masks in that state, by annotation id. New masks fit, and those whose
    parent has the run lengths that it had; so do deletions. Its seconds on the image are 0: the submission itself has
    them.
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
    """Whether a mask is as the model drew it for a detector's box: nobody spent time on it, or gave a prompt."""
    return (
        mask.source == "assisted"
        and mask.parent is None
        and mask.seconds == 0
        and len(mask.prompts) == 1
        and isinstance(mask.prompts[0], BoxPrompt)
    )


def annotated_masks(submission: Submission) -> list[SubmittedMask]:
    """Return the masks of a submission that people worked on: those that are untouched are left out."""
    return [mask for mask in submission.masks if not is_untouched(mask)]


def _of_assignment(submissions: Iterable[Submission], assignment: int) -> list[Submission]:
    return [submission for submission in submissions if submission.assignment == assignment]
