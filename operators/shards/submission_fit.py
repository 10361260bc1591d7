"""What of a person's submission fits the masks that its image has now: one rule, for merging and for studies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segmint.catalogs.dataset.annotations.assignments import Merged, is_merged, last_of_states
from segmint.catalogs.dataset.annotations.submissions import FormerMask, Submission, SubmittedMask
from segmint.operators.rows import Row
from segmint.operators.schemas import AUTOMATIC
from segmint.operators.shards.files import counts_of
from segmint.operators.shards.submitted_masks import mask_columns

_OF_WORK = ("annotator", "seconds", "prompts", "model")


@dataclass(frozen=True)
class SubmissionFit:
    """What of a submission fits. Masks of the image are named by annotation id."""

    new: Sequence[SubmittedMask]  # to be written, each once
    parents: Mapping[str, FormerMask]  # the masks whose places they take, by the new one's run lengths
    gone: frozenset[int]  # masks that are not in the image then
    same: int  # masks of the submission that the image has already, pixel for pixel
    unfit: int  # masks and deletions, whose mask in the image is another one now, or gone


def fit_submission(masks: Mapping[int, Row], submissions: Sequence[Submission], merged: Merged) -> SubmissionFit:
    """Return what of the last of an assignment's submissions, all of which are given in order, fits an image.

    `masks` are the rows of its masks, by annotation id, and `merged` the `submission` of its row. Masks that the
    submission neither replaces nor deletes are kept, and so is each whose replacement is the same pixel for pixel.
    Where the submission was given to the same state as the one that was merged last, it takes that one's place: what
    that one made goes, unless this one has it, too.
    """
    submission = submissions[-1]
    former = _merged_before(submissions, merged)
    by_counts = {counts_of(mask): id for id, mask in masks.items()}
    done: dict[int, str] = {}  # what the former submission took away
    undone: set[int] = set()
    if former is not None:
        done = {mask.id: mask.counts for mask in (*former.replaced, *former.deleted)}
        held = {mask.counts for mask in submission.masks}
        undone = {id for id in _made_by(former, masks, submissions) if counts_of(masks[id]) not in held}

    def fits(mask: FormerMask) -> bool:
        here = masks.get(mask.id)
        return (done.get(mask.id) if here is None else counts_of(here)) == mask.counts

    replaced = {mask.id: mask for mask in submission.replaced if fits(mask)}
    deleted = {mask.id for mask in submission.deleted if fits(mask)}
    unfit = len(submission.deleted) - len(deleted)
    # What the former submission took away, and this one keeps, is in no table any more.
    unfit += len(done.keys() - {mask.id for mask in (*submission.replaced, *submission.deleted)})
    gone = undone | (deleted & masks.keys())
    stays: set[int] = set()
    new: dict[str, SubmittedMask] = {}
    parents: dict[str, FormerMask] = {}
    same = 0
    for mask in submission.masks:
        if mask.parent is not None and mask.parent not in replaced:
            unfit += 1
            continue
        here = by_counts.get(mask.counts)
        if here is not None and here not in gone:
            same += 1
            stays.add(here)
        elif mask.counts not in new:
            new[mask.counts] = mask
            if mask.parent is not None:
                parents[mask.counts] = replaced[mask.parent]
    gone |= (replaced.keys() & masks.keys()) - stays
    return SubmissionFit(list(new.values()), parents, frozenset(gone), same, unfit)


def _merged_before(submissions: Sequence[Submission], merged: Merged) -> Submission | None:
    """Return the submission that was merged last if the last one was given to the same state."""
    *earlier, submission = submissions
    found = [each for each in earlier if is_merged(merged, each.assignment, each.n) and each.n == (merged or {})["n"]]
    return found[-1] if found and found[-1].base == submission.base else None


def _made_by(former: Submission, masks: Mapping[int, Row], submissions: Sequence[Submission]) -> set[int]:
    """Return the masks of an image that a submission brought into it, of those that it has.

    A mask that was in the state that the submission was given to was not made by it, though it may have it again, pixel
    for pixel: one that the submissions to earlier states left there, a build's, or one with other columns than the
    submission says.
    """
    shown: set[str] = set()
    for earlier in last_of_states(
        submission for submission in submissions if submission.n < former.n and submission.base != former.base
    ):
        shown -= {mask.counts for mask in (*earlier.replaced, *earlier.deleted)}
        shown |= {mask.counts for mask in earlier.masks}
    made = {mask.counts: mask for mask in reversed(former.masks) if mask.counts not in shown}
    until = [submission for submission in submissions if submission.n < former.n]
    return {
        id
        for id, row in masks.items()
        if row["source"] != AUTOMATIC
        and (mask := made.get(counts_of(row))) is not None
        and _work_columns(row) == _work_columns(mask_columns(mask, [*until, former]))
    }


def _work_columns(row: Row) -> Row:
    return {name: row[name] for name in _OF_WORK}
