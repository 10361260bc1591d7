"""`segmint merge`: puts what people answered into a dataset, as the next generation of its shards."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from segmint.catalogs.dataset.annotations.assignments import assignment_to_merge, independent_submissions
from segmint.catalogs.dataset.annotations.names import SubmissionName, list_submissions, purge_of_images
from segmint.catalogs.dataset.annotations.submissions import (
    Submission,
    SubmissionError,
    read_assignment,
    read_submission,
)
from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.handle import DatasetHandle
from segmint.catalogs.dataset.tombstones import read_tombstones, removed_images
from segmint.catalogs.layout import image_stem
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.operators.rows import Row
from segmint.operators.shards.committed_rows import rows_of
from segmint.operators.shards.revise import with_latest_commit
from segmint.pipeline.corrections.correction import correct
from segmint.pipeline.corrections.mask_revision import MaskCorrection, RevisionPlan, is_unfinished
from segmint.pipeline.corrections.merge.result import MergeCounts, MergeList, MergeResult
from segmint.pipeline.corrections.merge.row import MergeSkipReason, merge_submission, submission_to_merge, unchanged_row

_THREADS = 16

Names = Mapping[int, Sequence[SubmissionName]]
"""The submissions of images, by ordinal."""


@dataclass(frozen=True)
class MergeChange:
    """The next rows of a shard: submissions are merged into those that have one. Submissions are never changed."""

    dataset: Location
    names: Names

    def __call__(self, commit: Commit, rows: Sequence[Row]) -> list[Row]:
        """Return the rows, the same objects where nothing changes."""
        wanted = {row["ordinal"]: _to_merge(row, self.names) for row in rows}
        submissions = _read(self.dataset, {ordinal: assignment for ordinal, assignment in wanted.items() if assignment})
        return [
            row
            if isinstance(found := submissions.get(row["ordinal"], []), SubmissionError) or not found
            else merge_submission(row, found).row
            for row in rows
        ]


def list_merge(dataset: Location) -> MergeList:
    """List what `merge_submissions` would change; raises what it raises before anything is changed."""
    return _Merge(_names(dataset)).plan(DatasetHandle.open(dataset)).listed


def merge_submissions(
    dataset: Location, confirm: Callable[[MergeList], None] | None = None, now: datetime | None = None
) -> MergeResult:
    """Merge the last submission of each image into its row; `confirm` and `now` as in `correct`.

    Submissions stay where they are, those of a second assignment, too; but those for images that were taken down are
    removed, as a takedown does. Raises `UsageError` for a place without a dataset, or a store whose older versions
    cannot be removed, and `DamagedDatasetError` if a shard cannot be read.
    """
    handle = DatasetHandle.open(dataset)
    return correct(handle, _Merge(_names(dataset), forget_taken=True), confirm, now)


@dataclass(frozen=True)
class _Merge(MaskCorrection[MergeList, MergeResult]):
    """The correction; see `segmint.pipeline.corrections.correction.Correction`.

    With `forget_taken` its plan, once it is complete, removes the submissions for images that were taken down.
    """

    names: Names
    forget_taken: bool = False
    command = "merge"
    result_class = MergeResult

    def plan(self, dataset: DatasetHandle) -> RevisionPlan[MergeList]:
        location, names = dataset.location, self.names
        manifest = dataset.manifest()
        by_shard: dict[int, list[int]] = {}
        for ordinal in names:
            by_shard.setdefault(ordinal // manifest.images_per_shard, []).append(ordinal)
        change = MergeChange(location, names)
        tally = MergeCounts()
        unchanged: dict[int, int] = {}
        changing = []
        for shard, ordinals in by_shard.items():
            looked, generation = _look(location, shard, ordinals, change)
            if looked.images:
                changing.append(shard)
            elif generation is not None:
                unchanged[shard] = generation
            tally.add(looked)
        listed = MergeList.of((str(dataset), manifest.name), len(names), tally, tuple(changing))
        if self.forget_taken:
            _forget_taken(location, names)
        is_done = not listed.images and not is_unfinished(dataset, sorted(by_shard))
        return RevisionPlan(listed, frozenset(by_shard), change, unchanged, is_done)


def _forget_taken(dataset: Location, names: Names) -> None:
    """Remove submissions for images that were taken down: of a server that died before it looked at the tombstones."""
    taken = removed_images(read_tombstones(dataset)).keys() & names.keys()
    if taken:
        purge_of_images(dataset, taken)


def _names(dataset: Location) -> Names:
    names: dict[int, list[SubmissionName]] = {}
    for name in list_submissions(dataset):
        names.setdefault(name.ordinal, []).append(name)
    return names


def _look(
    dataset: Location, shard: int, ordinals: Sequence[int], change: MergeChange
) -> tuple[MergeCounts, int | None]:
    """Return what the merge would do in a shard, from its tables; and the generation that was looked at."""

    def read(commit: Commit) -> tuple[MergeCounts, int]:
        found = rows_of(dataset, commit, ordinals, ("images", "rejects"))
        tally = MergeCounts()
        wanted = {}
        for row in found:
            assignment = _to_merge(row, change.names)
            if (left := unchanged_row(row)) is not None:
                tally.leave(image_stem(row["id"]), left.value)
            elif assignment:
                wanted[row["ordinal"]] = assignment
            else:
                tally.merged += 1
            if left is None and (other := _count_unmerged(dataset, row, change.names)) is not None:
                tally.count_apart(row["id"], other)
        submissions = _read(dataset, wanted)
        for row in rows_of(dataset, commit, wanted) if wanted else ():
            submission = submissions[row["ordinal"]]
            if isinstance(submission, SubmissionError):
                tally.leave(image_stem(row["id"]), MergeSkipReason.UNREADABLE.value, str(submission))
            else:
                tally.count(row["id"], merge_submission(row, submission))
        return tally, commit.generation

    found = with_latest_commit(dataset, shard, read)
    if found is not None:
        return found
    tally = MergeCounts()
    for ordinal in ordinals:
        tally.leave(image_stem(ordinal + 1), MergeSkipReason.NOT_BUILT.value)
    return tally, None


def _to_merge(row: Row, names: Names) -> list[SubmissionName]:
    """Return the submissions of the assignment whose last one is to be merged into a row; none if nothing is."""
    own = names.get(row["ordinal"], ())
    last = submission_to_merge(row, own) if own and unchanged_row(row) is None else None
    return [] if last is None else [name for name in own if name.assignment == last.assignment]


def _count_unmerged(dataset: Location, row: Row, names: Names) -> int | None:
    """Return the assignment of an image whose last submission is neither merged nor compared with a merged one."""
    own = names[row["ordinal"]]
    assignment = assignment_to_merge(row["submission"], (name.assignment for name in own))
    others = [name for name in own if name.assignment != assignment]
    if not others or len(others) == len(own):
        return others[-1].assignment if others else None
    try:
        submissions = [read_submission(dataset, name) for name in own]
    except SubmissionError:  # the audit names it
        return None
    last = max(
        (submission for submission in submissions if submission.assignment != assignment),
        key=lambda submission: submission.n,
    )
    pair = independent_submissions(submissions)
    return None if pair is not None and last.base == pair[0].base else last.assignment


def _read(dataset: Location, wanted: Names) -> dict[int, list[Submission] | SubmissionError]:
    """Read the submissions of images; an error where the last one cannot be read, and earlier ones that can."""

    def read(ordinal: int) -> tuple[int, list[Submission] | SubmissionError]:
        try:
            return ordinal, read_assignment(dataset, wanted[ordinal])
        except SubmissionError as error:
            return ordinal, error

    return dict(map_ahead(read, wanted, _THREADS, 2 * _THREADS, "submissions"))
