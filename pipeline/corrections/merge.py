"""`segmint merge`: merge annotators' submissions as the next generation of a dataset's shards.

Merge of an annotator's submission into an image's row, as a pure function.

A submission may be based on an earlier state of the image. Therefore, the merge compares the masks that the submission
replaces or deletes with the image's current masks, and only merges the parts that still fit.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.manifest import DatasetHandle
from segmint.catalogs.dataset.submissions import (
    FormerMask,
    Submission,
    SubmissionError,
    SubmissionName,
    SubmittedMask,
    assignment_to_merge,
    independent_submissions,
    is_merged,
    last_of_states,
    list_submissions,
    purge_of_images,
    read_assignment,
    read_submission,
    returned_submissions,
)
from segmint.catalogs.dataset.tombstones import read_tombstones, removed_images
from segmint.catalogs.layout import image_stem
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted, some
from segmint.operators.rows import ANNOTATION_STAGE, AUTOMATIC, MASKS_PER_IMAGE_LIMIT, PERSON, Row
from segmint.operators.shards.put import annotation_id, counts_of
from segmint.operators.shards.revise import rows_of
from segmint.operators.shards.submission_fit import (
    fit_submission,
    is_prompted,
    label_columns,
    mask_columns,
    merged_before,
)
from segmint.pipeline.corrections.correction import begin
from segmint.pipeline.corrections.import_merge import (
    NewMask,
    SkipReason,
    changed_masks,
    described_masks,
    is_of_build,
    numbered_masks,
    why_rejected,
)
from segmint.pipeline.corrections.mask_revision import (
    RevisionCounts,
    RevisionList,
    RevisionPlan,
    RevisionResult,
    correct_masks,
    look_at_shards,
    planned,
)


@dataclass(frozen=True)
class SubmissionRow:
    """Next row of an image, with counts of its masks. If the image is skipped, `row` is the original object."""

    row: Row
    left: SkipReason | None = None
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
    left = why_rejected(row)
    if left is None and submission.size != (row["height"], row["width"]):
        left = SkipReason.OTHER_SIZE
    if left is not None:
        return SubmissionRow(row, left)
    old = numbered_masks(row)
    by_id = {annotation_id(row["id"], mask["index"]): mask for mask in old}
    plan = fit_submission(by_id, submissions, row["submission"])
    parents = {counts: by_id.get(former.id) or _as_it_was(row, former) for counts, former in plan.parents.items()}
    first = int(row["next_mask"])
    if first + len(plan.new) > MASKS_PER_IMAGE_LIMIT:
        return SubmissionRow(row, SkipReason.TOO_MANY)
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


COUNTED = ("same", "corrected", "added", "deleted", "unfit")
"""Outcomes of masks, as `SubmissionRow` counts them."""

NAMED = 5
"""Maximum number of unmerged parts that the version's record lists."""

_THREADS = 16

Names = Mapping[int, Sequence[SubmissionName]]
"""Submissions for images, keyed by ordinal."""


@dataclass
class MergeCounts(RevisionCounts):
    """Counts of images with submissions, and of their masks by outcome."""

    unchanged: int = 0  # images that were confirmed without changing a mask
    merged: int = 0  # images whose last submission is already merged
    superseded: int = 0  # images with unmerged content in an earlier submission to another state
    uncompared: int = 0  # images whose other assignment has a submission that is neither merged nor compared
    compared: list[str] = field(default_factory=list)  # images whose other assignment is only compared

    def count(self, image: int, merged: SubmissionRow) -> None:
        """Count the image with this number."""
        if merged.left is not None:
            self.leave(image_stem(image), merged.left.value)
            return
        self.images += 1
        self.unchanged += not merged.changes_masks
        self.masks.update({each: getattr(merged, each) for each in COUNTED})
        self.superseded += merged.superseded > 0
        for line in merged.not_merged:
            self.example(f"{image_stem(image)}: {line}")

    def count_second(self, image: int, assignment: int, compared: bool) -> None:
        """Count an image whose other `assignment` isn't merged. `compared` is true if it still measures agreement."""
        if compared:
            self.compared.append(image_stem(image))
            return
        self.uncompared += 1
        self.example(
            f"{image_stem(image)}: the last submission of assignment {assignment} is neither merged nor compared"
        )


@dataclass(frozen=True, kw_only=True)
class MergeList(RevisionList):
    """Changes that a merge would make.

    `masks` counts submitted masks by outcome: already in the image (`same`), replacing a mask (`corrected`), or new
    (`added`). It also counts masks that would be removed (`deleted`) and parts of submissions that no longer fit
    (`unfit`).
    """

    would_change = "submissions for {} of {} would be merged"
    nothing = "nothing to merge into {}"
    changed = "submissions for {} merged in {}; the previous files were deleted, including older versions"
    submitted: int  # images with a submission
    unchanged: int  # changing images that were confirmed without changing a mask
    merged: int  # images whose last submission is already merged
    superseded: int  # changing images with unmerged content in an earlier submission to another state
    uncompared: int  # images whose other assignment has a submission that is neither merged nor compared
    compared: tuple[str, ...] = ()  # images whose other assignment is only compared

    def found(self) -> list[str]:
        """Return lines on the contents of the submissions."""
        lines = [f"{counted(self.submitted, 'image')} submitted; masks: {self.counted_masks() or 'none'}"]
        if self.unchanged:
            lines.append(f"confirmed without changes: {counted(self.unchanged, 'image')}")
        if self.merged:
            lines.append(f"already merged: {counted(self.merged, 'image')}")
        if self.superseded:
            lines.append(
                f"an earlier submission, for another state, was never merged: {counted(self.superseded, 'image')}; "
                "the later submission is used, but doesn't contain all of it"
            )
        if self.compared:
            images = f"{counted(len(self.compared), 'image')}: {some(self.compared)}"
            lines.append(f"second submissions, used only to measure agreement and not merged: {images}")
        if self.uncompared:
            lines.append(
                f"two annotators submitted for different states: {counted(self.uncompared, 'image')}; one assignment "
                "is merged, and the other's last submission is kept"
            )
        return [*lines, *self.skipped_lines(), *self.example_lines()]

    def reason(self) -> str:
        """Return the reason that the version records, with the first unmerged parts of submissions."""
        said = self.counted_masks("corrected", "added", "deleted") or "no mask changed"
        more = len(self.examples[NAMED:]) + self.more_examples
        left = [*self.examples[:NAMED], *([f"{more:,} more"] if more else [])]
        return "; ".join([f"submissions for {counted(self.images, 'image')}: {said}", *left])


@dataclass(frozen=True)
class MergeChange:
    """Change that merges submissions into the rows of a shard. The submissions themselves don't change."""

    dataset: Location
    names: Names
    returned: Collection[SubmissionName]

    def __call__(self, commit: Commit, rows: Sequence[Row]) -> list[Row]:
        """Return the next rows. Rows that don't change are the same objects."""
        wanted = {row["ordinal"]: self.to_merge(row) for row in rows}
        submissions = _read(self.dataset, {ordinal: assignment for ordinal, assignment in wanted.items() if assignment})
        return [
            row
            if isinstance(found := submissions.get(row["ordinal"], []), SubmissionError) or not found
            else merge_submission(row, found).row
            for row in rows
        ]

    def left(self, row: Row) -> SkipReason | None:
        """Return the reason why a row's submissions can't be merged now, or None."""
        last = submission_to_merge(row, self.names.get(row["ordinal"], ())) if row["reason"] is None else None
        return SkipReason.RETURNED if last in self.returned else why_rejected(row)

    def to_merge(self, row: Row) -> list[SubmissionName]:
        """Return all submissions of the assignment to merge into a row, or an empty list."""
        own = self.names.get(row["ordinal"], ())
        last = submission_to_merge(row, own) if own and self.left(row) is None else None
        return [] if last is None else [name for name in own if name.assignment == last.assignment]


def list_merge(dataset: Location) -> MergeList:
    """List the changes that `merge_submissions` would make. Raises the same errors before any change."""
    return _plan(DatasetHandle.open(dataset), _names(dataset)).listed


def merge_submissions(
    dataset: Location, confirm: Callable[[MergeList], None] | None = None, now: datetime | None = None
) -> RevisionResult[MergeList]:
    """Merge the last submission for each image into the image's row. `confirm` is as in `correct_masks`.

    Submissions are kept, including the submissions of a second assignment, unless their image was taken down. Raises
    `UsageError` if there is no dataset or the store's older versions can't be removed, and `DamagedDatasetError` if a
    shard can't be read.
    """
    handle = begin(dataset)
    names = _names(dataset)
    plan = _plan(handle, names)
    if taken := removed_images(read_tombstones(dataset)).keys() & names.keys():
        purge_of_images(dataset, taken)  # a server that died before it checked the tombstones may have left these
    return correct_masks(handle, "merge", plan, confirm, now)


def _plan(dataset: DatasetHandle, names: Names) -> RevisionPlan[MergeList]:
    location = dataset.location
    images_per_shard = dataset.manifest().images_per_shard
    by_shard: dict[int, list[int]] = {}
    for ordinal in names:
        by_shard.setdefault(ordinal // images_per_shard, []).append(ordinal)
    change = MergeChange(location, names, returned_submissions(location))
    tally = look_at_shards(location, by_shard.items(), MergeCounts(), partial(_count, change))
    listed = planned(
        MergeList,
        dataset,
        tally,
        COUNTED,
        submitted=len(names),
        unchanged=tally.unchanged,
        merged=tally.merged,
        superseded=tally.superseded,
        uncompared=tally.uncompared,
        compared=tuple(tally.compared),
    )
    return RevisionPlan(listed, frozenset(by_shard), change, dict(tally.inspected))


def _names(dataset: Location) -> Names:
    names: dict[int, list[SubmissionName]] = {}
    for name in list_submissions(dataset):
        names.setdefault(name.ordinal, []).append(name)
    return names


def _count(change: MergeChange, commit: Commit, ordinals: Sequence[int]) -> MergeCounts:
    """Count the changes that the merge would make in a shard."""
    dataset, names = change.dataset, change.names
    tally = MergeCounts()
    wanted = {}
    for row in rows_of(dataset, commit, ordinals, ("images", "rejects")):
        assignment = change.to_merge(row)
        if (left := change.left(row)) is not None:
            tally.leave(image_stem(row["id"]), left.value)
        elif assignment:
            wanted[row["ordinal"]] = assignment
        else:
            tally.merged += 1
        if left is None and (other := _second_submission(dataset, row, names)) is not None:
            tally.count_second(row["id"], *other)
    submissions = _read(dataset, wanted)
    for row in rows_of(dataset, commit, wanted) if wanted else ():
        submission = submissions[row["ordinal"]]
        if isinstance(submission, SubmissionError):
            problem = str(submission).removeprefix(f"{dataset}/")
            tally.leave(image_stem(row["id"]), SkipReason.UNREADABLE_SUBMISSION.value, problem)
        else:
            tally.count(row["id"], merge_submission(row, submission))
    return tally


def _second_submission(dataset: Location, row: Row, names: Names) -> tuple[int, bool] | None:
    """Return an image's unmerged assignment, and whether its last submission is compared with a merged submission.

    Returns None if there is no such assignment, or if a submission can't be read.
    """
    own = names[row["ordinal"]]
    assignment = assignment_to_merge(row["submission"], (name.assignment for name in own))
    others = [name for name in own if name.assignment != assignment]
    if not others or len(others) == len(own):
        return (others[-1].assignment, False) if others else None
    try:
        submissions = [read_submission(dataset, name) for name in own]
    except SubmissionError:  # the audit names it
        return None
    last = max(
        (submission for submission in submissions if submission.assignment != assignment),
        key=lambda submission: submission.n,
    )
    pair = independent_submissions(submissions)
    return last.assignment, pair is not None and last.base == pair[0].base


def _read(dataset: Location, wanted: Names) -> dict[int, list[Submission] | SubmissionError]:
    """Read each image's submissions. If an image's last submission is unreadable, return an error instead.

    Other unreadable submissions are skipped.
    """

    def read(ordinal: int) -> tuple[int, list[Submission] | SubmissionError]:
        try:
            return ordinal, read_assignment(dataset, wanted[ordinal])
        except SubmissionError as error:
            return ordinal, error

    return dict(map_ahead(read, wanted, _THREADS, 2 * _THREADS, "submissions"))
