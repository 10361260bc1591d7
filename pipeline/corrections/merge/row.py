"""Merge of an annotator's submission into an image's row, as a pure function.

A submission may be based on an earlier state of the image. Therefore, the merge compares the masks that the submission
replaces or deletes with the image's current masks, and only merges the parts that still fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from segmint.catalogs.dataset.annotations.assignments import assignment_to_merge, is_merged, last_of_states
from segmint.catalogs.dataset.annotations.names import SubmissionName
from segmint.catalogs.dataset.annotations.submissions import FormerMask, Submission, SubmittedMask
from segmint.catalogs.reasons import Reason
from segmint.operators.rows import Row
from segmint.operators.schemas import ANNOTATION_STAGE, AUTOMATIC, MASKS_PER_IMAGE_LIMIT, PERSON
from segmint.operators.shards.files import annotation_id, counts_of
from segmint.operators.shards.submission_fit import fit_submission, merged_before
from segmint.operators.shards.submitted_masks import is_prompted, label_columns, mask_columns
from segmint.pipeline.corrections.annotated_masks import (
    NewMask,
    changed_masks,
    described_masks,
    is_of_build,
    numbered_masks,
)


class MergeSkipReason(StrEnum):
    """Reason to skip an image with a submission."""

    TAKEN_DOWN = "taken down"
    REFUSED = "refused by the build"
    RETURNED = "returned to the annotator"
    UNREADABLE = "a submission that cannot be read"
    OTHER_SIZE = "masks of another size than the image"
    TOO_MANY = "over 10,000 masks with those that it ever had"


@dataclass(frozen=True)
class SubmissionRow:
    """Next row of an image, with counts of its masks. If the image is skipped, `row` is the original object."""

    row: Row
    left: MergeSkipReason | None = None
    same: int = 0  # submitted masks that the image already contains, pixel for pixel
    corrected: int = 0  # submitted masks that replace a mask
    added: int = 0
    deleted: int = 0
    unfit: int = 0  # submitted changes whose parent mask was changed or removed
    superseded: int = 0  # unmerged earlier submissions to other states, with content that the merged submission lacks
    not_merged: tuple[str, ...] = ()  # a text with the reason for each unmerged part and repeated mask

    @property
    def changes_masks(self) -> bool:
        """True if the merge changes the image's masks."""
        return bool(self.corrected or self.added or self.deleted)


def submission_to_merge(row: Row, names: Sequence[SubmissionName]) -> SubmissionName | None:
    """Return the submission to merge into an image's described row, or None if it is already merged.

    This is always the last submission of one assignment: the assignment that was merged before or, if none was, the
    assignment with the lowest number. The other assignment is only used to measure agreement.
    """
    assignment = assignment_to_merge(row["submission"], (name.assignment for name in names))
    last = max((name for name in names if name.assignment == assignment), default=None)
    if last is None or is_merged(row["submission"], last.assignment, last.n):
        return None
    return last


def unchanged_row(row: Row) -> MergeSkipReason | None:
    """Return the reason why no submission can be merged into a row, or None if a submission can be merged."""
    if row["reason"] is None:
        return None
    if row["reason"] == Reason.TAKEN_DOWN:
        return MergeSkipReason.TAKEN_DOWN
    return MergeSkipReason.REFUSED


def merge_submission(row: Row, submissions: Sequence[Submission]) -> SubmissionRow:
    """Merge the last of an assignment's `submissions`, which are in order, into an image's described row.

    Masks that the submission neither replaces nor deletes are kept. If a replacement equals its mask pixel for pixel,
    the mask is kept and gets the replacement's label, if any. A mask loses its label if an earlier merged submission to
    the same state drew and labeled it, and this submission has no label for it.

    If a parent mask was changed or removed in the meantime, its replacements and deletions aren't merged. A submission
    to the same state as the last merged submission supersedes it. Raises `DamagedDatasetError` if the masks or
    `next_mask` are damaged.
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
    merged = merged_before(submissions, row["submission"])
    own = set[str]()
    if merged is not None:
        own = {mask.counts for mask in merged.masks if mask.label and mask.parent is None}
    said = {mask.counts: mask for mask in submission.masks if mask.label is not None or mask.counts in own}
    kept = [_relabeled(mask, said.get(counts_of(mask))) for mask in old if mask["index"] not in gone]
    new = [_new_mask(mask, parents.get(mask.counts), submissions) for mask in plan.new]
    masks = [*kept, *described_masks(row, new, parents, first, {"label_source": PERSON})]
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
        next_row |= changed_masks(row, masks)
    replacing = sum(mask.counts in plan.parents for mask in plan.new)
    superseded = _superseded(row, submissions)
    return SubmissionRow(
        next_row,
        same=plan.same,
        corrected=replacing,
        added=len(plan.new) - replacing,
        deleted=len(plan.gone) - corrected,
        unfit=len(plan.unfit),
        superseded=len(superseded),
        not_merged=(*plan.unfit, *plan.repeated, *superseded),
    )


def seconds_of(submissions: Sequence[Submission]) -> float:
    """Return the active seconds of an assignment's ordered submissions. Seconds are cumulative per state."""
    return sum(submission.seconds for submission in last_of_states(submissions))


def _superseded(row: Row, submissions: Sequence[Submission]) -> list[str]:
    """Return a line for each state with unmerged content that the last submission doesn't repeat."""
    last = submissions[-1]
    waiting = [each for each in submissions if not is_merged(row["submission"], each.assignment, each.n)]
    lines = []
    for earlier in last_of_states(waiting):
        lost = _words(earlier) - _words(last)
        if earlier.base == last.base or not lost:
            continue
        replaced = {mask.parent for mask in earlier.masks if mask.counts in lost}
        lines.append(
            f"{earlier.path} isn't merged: it was for another state of the image, and the later submission lacks "
            f"{len(lost - replaced):,} of its masks and deletions"
        )
    return lines


def _words(submission: Submission) -> set[str | int]:
    """Return a submission's content: its new masks, and the dataset's masks that it replaces or deletes."""
    words: set[str | int] = {mask.counts for mask in submission.masks}
    for former in (*submission.replaced, *submission.deleted):
        words.add(former.id)
    return words


def _relabeled(row: Row, mask: SubmittedMask | None) -> Row:
    """Return a kept mask with the label of the submitted mask.

    If the person removed their label, this label is None.
    """
    if mask is None or (mask.label is None and row["label_source"] != PERSON):
        return row
    return {**row, **label_columns(mask)}


def _as_it_was(row: Row, mask: FormerMask) -> Row:
    """Return the known columns of a removed mask, which counts as automatic."""
    return {
        "index": mask.id - annotation_id(row["id"], 0),
        "segmentation": {"size": [row["height"], row["width"]], "counts": mask.counts},
        "source": AUTOMATIC,
        "label": None,
        "origin": None,
    }


def _new_mask(mask: SubmittedMask, parent: Row | None, submissions: Sequence[Submission]) -> NewMask:
    said = {**mask_columns(mask, submissions), "origin": None}
    if parent is not None:
        said["origin"] = parent["origin"]  # a mask derived from an imported mask stays under the file's license
        if mask.source == "corrected" and not is_of_build(parent):
            said["source"] = parent["source"]
            if is_prompted(mask) and parent["source"] == "manual":
                said["source"] = "assisted"
    return NewMask(mask.counts, None, mask.label, said)
