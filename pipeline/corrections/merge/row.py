"""The next row of an image from its row and a person's submission for it: a pure function.

What a submission replaces or deletes is compared with what the image has, so that of a submission to an earlier state
what still fits is merged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from segmint.catalogs.dataset.annotations.assignments import assignment_to_merge, is_merged, last_of_states
from segmint.catalogs.dataset.annotations.names import SubmissionName
from segmint.catalogs.dataset.annotations.submissions import FormerMask, Submission, SubmittedMask
from segmint.catalogs.reasons import Reason
from segmint.operators.describe import image_statistics
from segmint.operators.rows import Row
from segmint.operators.schemas import ANNOTATION_STAGE, AUTOMATIC, MASKS_PER_IMAGE_LIMIT
from segmint.operators.shards.files import annotation_id
from segmint.operators.shards.submission_fit import fit_submission
from segmint.operators.shards.submitted_masks import is_prompted, mask_columns
from segmint.pipeline.corrections.annotated_masks import (
    NewMask,
    described_masks,
    is_of_build,
    numbered_masks,
)


class MergeSkipReason(StrEnum):
    """Why an image stays as it is though it has a submission."""

    TAKEN_DOWN = "taken down"
    REFUSED = "refused by the build"
    UNREADABLE = "a submission that cannot be read"
    OTHER_SIZE = "masks of another size than the image"
    TOO_MANY = "over 10,000 masks with those that it ever had"


@dataclass(frozen=True)
class SubmissionRow:
    """The next row of an image: the same object if it is left as it is. Masks are counted."""

    row: Row
    left: MergeSkipReason | None = None
    same: int = 0  # of the submission, that the image has already, pixel for pixel
    corrected: int = 0  # that take the place of a mask
    added: int = 0
    deleted: int = 0
    unfit: int = 0  # of the submission, whose mask in the image is another one now, or gone
    superseded: int = 0  # earlier submissions, to other states, never merged, that say what the one merged does not

    @property
    def changes_masks(self) -> bool:
        """Whether the image has other masks then."""
        return bool(self.corrected or self.added or self.deleted)


def submission_to_merge(row: Row, names: Sequence[SubmissionName]) -> SubmissionName | None:
    """Return which of an image's submissions is to be merged into its described row; None if that was done.

    That is the last one of the assignment that was merged before, or else of the lowest assignment. The other
    assignment only says how well people agree.
    """
    assignment = assignment_to_merge(row["submission"], (name.assignment for name in names))
    last = max((name for name in names if name.assignment == assignment), default=None)
    return None if last is None or is_merged(row["submission"], last.assignment, last.n) else last


def unchanged_row(row: Row) -> MergeSkipReason | None:
    """Return why no submission can be merged into a row; None if one can."""
    if row["reason"] is None:
        return None
    return MergeSkipReason.TAKEN_DOWN if row["reason"] == Reason.TAKEN_DOWN else MergeSkipReason.REFUSED


def merge_submission(row: Row, submissions: Sequence[Submission]) -> SubmissionRow:
    """Merge the last of an assignment's submissions, all of which are given in order, into an image's described row.

    Masks that the submission neither replaces nor deletes are kept, and so is each whose replacement is the same pixel
    for pixel. A mask whose parent is another one now, or gone, does not fit and is left out; so is a deletion. Where
    the submission was given to the same state as the one that was merged last, it takes that one's place. Raises
    `DamagedDatasetError` if the row's masks or its `next_mask` are damaged.
    """
    submission = submissions[-1]
    left = unchanged_row(row)
    if left is None and submission.size != (row["height"], row["width"]):
        left = MergeSkipReason.OTHER_SIZE
    if left is not None:
        return SubmissionRow(row, left)
    old = numbered_masks(row)
    by_id = {annotation_id(row["id"], mask["index"]): mask for mask in old}
    plan = fit_submission(by_id, submissions, row["submission"])
    parents = {counts: by_id.get(former.id) or _as_it_was(row, former) for counts, former in plan.parents.items()}
    first = int(row["next_mask"])
    if first + len(plan.new) > MASKS_PER_IMAGE_LIMIT:
        return SubmissionRow(row, MergeSkipReason.TOO_MANY)
    gone = {by_id[id]["index"] for id in plan.gone}
    kept = [mask for mask in old if mask["index"] not in gone]
    new = [_new_mask(mask, parents.get(mask.counts), submissions) for mask in plan.new]
    masks = [*kept, *described_masks(row, new, parents, first, {})]
    corrected = len({former.id for former in plan.parents.values()} & plan.gone)
    next_row: Row = {
        **row,
        "masks": masks,
        "next_mask": first + len(new),
        "submission": {"assignment": submission.assignment, "n": submission.n, "sha256": submission.sha256},
        "annotator": submission.annotator,
        ANNOTATION_STAGE: submission.stage,
        "seconds": seconds_of(submissions),
        "complete": submission.complete and not plan.unfit,
    }
    if plan.new or plan.gone:
        next_row["statistics"] = image_statistics(submission.size, masks)
    return SubmissionRow(
        next_row,
        same=plan.same,
        corrected=sum(mask.counts in plan.parents for mask in plan.new),
        added=sum(mask.counts not in plan.parents for mask in plan.new),
        deleted=len(plan.gone) - corrected,
        unfit=plan.unfit,
        superseded=_superseded(row, submissions),
    )


def seconds_of(submissions: Sequence[Submission]) -> float:
    """Return the active seconds of an assignment's submissions, in order: of those to one state the last has all."""
    return sum(submission.seconds for submission in last_of_states(submissions))


def _superseded(row: Row, submissions: Sequence[Submission]) -> int:
    """Return how many states have a submission that was never merged, and says what the last one does not say again."""
    waiting = [
        submission
        for submission in submissions
        if not is_merged(row["submission"], submission.assignment, submission.n)
    ]
    last = _words(submissions[-1])
    return sum(
        not _words(submission) <= last
        for submission in last_of_states(waiting)
        if submission.base != submissions[-1].base
    )


def _words(submission: Submission) -> set[str | int]:
    """Return what a submission says: new masks, and those of the dataset that are not to stay."""
    return {mask.counts for mask in submission.masks} | {
        mask.id for mask in (*submission.replaced, *submission.deleted)
    }


def _as_it_was(row: Row, mask: FormerMask) -> Row:
    """Return what is known of a mask that is gone: it counts as one of a build."""
    return {
        "index": mask.id - annotation_id(row["id"], 0),
        "segmentation": {"size": [row["height"], row["width"]], "counts": mask.counts},
        "source": AUTOMATIC,
        "label": None,
        "origin": None,
    }


def _new_mask(mask: SubmittedMask, parent: Row | None, submissions: Sequence[Submission]) -> NewMask:
    # What is made from an imported mask stays under the license of its file.
    said = {**mask_columns(mask, submissions), "origin": None if parent is None else parent["origin"]}
    if mask.source == "corrected" and parent is not None and not is_of_build(parent):
        drawn = is_prompted(mask) and parent["source"] == "manual"
        said["source"] = "assisted" if drawn else parent["source"]
    return NewMask(mask.counts, None, mask.label, said)
