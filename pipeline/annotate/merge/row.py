"""The next row of an image from its row and a person's answer for it: a pure function.

What an answer replaces or deletes is compared with what the image has, so that of an answer to an earlier state what
still fits is merged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

from segmint.catalogs.dataset.annotations.answers import Answer, AnswerMask
from segmint.catalogs.dataset.annotations.names import AnswerName
from segmint.catalogs.reasons import Reason
from segmint.operators.describe import image_statistics
from segmint.operators.rows import Row
from segmint.operators.schemas import ANNOTATION_STAGE, MASKS_PER_IMAGE_LIMIT
from segmint.operators.shards.answered import is_prompted, said_of
from segmint.operators.shards.files import annotation_id
from segmint.pipeline.corrections.people_masks import (
    NewMask,
    counts_of,
    described_masks,
    in_newest_format,
    is_of_build,
    next_number,
    numbered_masks,
)


class Left(StrEnum):
    """Why an image stays as it is though it has an answer."""

    TAKEN_DOWN = "taken down"
    REFUSED = "refused by the build"
    NOT_BUILT = "not built yet"
    UNREADABLE = "an answer that cannot be read"
    OTHER_SIZE = "masks of another size than the image"
    TOO_MANY = "over 10,000 masks with those that it ever had"


@dataclass(frozen=True)
class MergedRow:
    """The next row of an image: the same object if it is left as it is. Masks are counted."""

    row: Row
    left: Left | None = None
    same: int = 0  # of the answer, that the image has already, pixel for pixel
    corrected: int = 0  # that take the place of a mask
    added: int = 0
    deleted: int = 0
    unfit: int = 0  # of the answer, whose mask in the image is another one now, or gone
    superseded: int = 0  # states with an answer that was never merged: the later answer, to another state, holds

    @property
    def changes_masks(self) -> bool:
        """Whether the image has other masks then."""
        return bool(self.corrected or self.added or self.deleted)


def answer_to_merge(row: Row, names: Sequence[AnswerName]) -> AnswerName | None:
    """Return which of an image's answers is to be merged into its described row; None if that was done.

    That is the last one of the lane that was merged before, or else of the lowest lane. The other lane only says how
    well people agree.
    """
    merged = row["answer"] or {}
    lane = merged.get("lane")
    if lane is None:
        lane = min(name.lane for name in names)
    last = max((name for name in names if name.lane == lane), default=None)
    done = merged.get("n") if merged.get("lane") == lane else None
    return None if last is None or (done is not None and last.n <= done) else last


def left_alone(row: Row) -> Left | None:
    """Return why no answer can be merged into a row; None if one can."""
    if row["reason"] is None:
        return None
    return Left.TAKEN_DOWN if row["reason"] == Reason.TAKEN_DOWN else Left.REFUSED


def merge_answer(row: Row, answers: Sequence[Answer], rule: int) -> MergedRow:
    """Merge the last of a lane's answers, all of which are given in order, into an image's described row.

    Masks that the answer neither replaces nor deletes are kept, and so is each whose replacement is the same pixel for
    pixel. A mask whose parent is another one now, or gone, does not fit and is left out; so is a deletion. Where the
    answer was given to the same state as the one that was merged last, it takes that one's place. `rule` is that of
    de-identification. An image of format 1 gets all columns of format 2. Raises `DamagedDatasetError` if the row's
    masks or its `next_mask` are damaged.
    """
    answer = answers[-1]
    left = left_alone(row)
    if left is None and answer.size != (row["height"], row["width"]):
        left = Left.OTHER_SIZE
    if left is not None:
        return MergedRow(row, left)
    old = numbered_masks(row)
    former = _merged_before(row, answers)
    plan = _fit(row, old, answer, former)
    first = next_number(row, old)
    if first + len(plan.new) > MASKS_PER_IMAGE_LIMIT:
        return MergedRow(row, Left.TOO_MANY)
    kept = [mask for mask in in_newest_format(row, old, rule) if mask["index"] not in plan.gone]
    new = [_new_mask(mask, plan.parents.get(mask.counts), answer) for mask in plan.new]
    masks = [*kept, *described_masks(row, new, plan.parents, first, rule, {})]
    corrected = len({parent["index"] for parent in plan.parents.values()} & plan.gone)
    next_row: Row = {
        **row,
        "masks": masks,
        "next_mask": first + len(new),
        "answer": {"lane": answer.lane, "n": answer.n, "sha256": answer.sha256},
        "annotator": answer.annotator,
        ANNOTATION_STAGE: answer.stage,
        "seconds": seconds_of(answers),
        "complete": answer.complete and not plan.unfit,
    }
    if plan.new or plan.gone:
        next_row["statistics"] = image_statistics(answer.size, masks)
    return MergedRow(
        next_row,
        same=plan.same,
        corrected=sum(mask.counts in plan.parents for mask in plan.new),
        added=sum(mask.counts not in plan.parents for mask in plan.new),
        deleted=len(plan.gone) - corrected,
        unfit=plan.unfit,
        superseded=_superseded(row, answers),
    )


def seconds_of(answers: Sequence[Answer]) -> float:
    """Return the active seconds of a lane's answers, in order: of those to one state the last has them all."""
    return sum([list(same)[-1].seconds for _, same in groupby(answers, key=lambda answer: answer.base)])


def _superseded(row: Row, answers: Sequence[Answer]) -> int:
    merged = row["answer"] or {}
    done = merged["n"] if merged.get("lane") == answers[-1].lane else 0
    return len({answer.base for answer in answers if answer.n > done} - {answers[-1].base})


@dataclass(frozen=True)
class _Fit:
    """What of an answer fits a row."""

    new: Sequence[AnswerMask]  # to be written, each once
    parents: Mapping[str, Row]  # the masks whose places they take, by the new one's run lengths
    gone: frozenset[int]  # indices of the masks that are not in the next row
    same: int
    unfit: int


def _merged_before(row: Row, answers: Sequence[Answer]) -> Answer | None:
    """Return the answer that was merged last if the one to be merged was given to the same state."""
    merged = row["answer"] or {}
    *earlier, answer = answers
    found = [each for each in earlier if each.n == merged.get("n") and each.lane == merged.get("lane")]
    return found[-1] if found and found[-1].base == answer.base else None


def _fit(row: Row, old: Sequence[Row], answer: Answer, former: Answer | None) -> _Fit:
    by_id = {annotation_id(row["id"], mask["index"]): mask for mask in old}
    by_counts = {counts_of(mask): mask for mask in old}
    done: dict[int, str] = {}  # what the former answer did already
    undone: set[int] = set()  # indices of masks that it made, and this one has not
    if former is not None:
        done = {mask.id: mask.counts for mask in (*former.replaced, *former.deleted)}
        counts = {mask.counts for mask in former.masks} - {mask.counts for mask in answer.masks}
        undone = {mask["index"] for mask in old if counts_of(mask) in counts and not is_of_build(mask)}

    def fits(id: int, counts: str) -> bool:
        here = by_id.get(id)
        return done.get(id) == counts if here is None else counts_of(here) == counts

    replaced = {mask.id: mask.counts for mask in answer.replaced if fits(mask.id, mask.counts)}
    deleted = [mask for mask in answer.deleted if fits(mask.id, mask.counts)]
    unfit = len(answer.deleted) - len(deleted)
    # What the former answer took away, and this one keeps, is in no table any more.
    unfit += len(done.keys() - {mask.id for mask in (*answer.replaced, *answer.deleted)})
    gone = undone | {by_id[mask.id]["index"] for mask in deleted if mask.id in by_id}
    stays: set[int] = set()
    new: dict[str, AnswerMask] = {}
    parents: dict[str, Row] = {}
    same = 0
    for mask in answer.masks:
        if mask.parent is not None and mask.parent not in replaced:
            unfit += 1
            continue
        here = by_counts.get(mask.counts)
        if here is not None and here["index"] not in gone:
            same += 1
            stays.add(here["index"])
        elif mask.counts not in new:
            new[mask.counts] = mask
            if mask.parent is not None:
                parents[mask.counts] = by_id.get(mask.parent) or _as_it_was(row, mask.parent, replaced[mask.parent])
    gone |= {by_id[id]["index"] for id in replaced if id in by_id} - stays
    return _Fit(list(new.values()), parents, frozenset(gone), same, unfit)


def _as_it_was(row: Row, id: int, counts: str) -> Row:
    """Return what is known of a mask that is gone."""
    return {
        "index": id - annotation_id(row["id"], 0),
        "segmentation": {"size": [row["height"], row["width"]], "counts": counts},
        "source": None,
        "label": None,
        "origin": None,
    }


def _new_mask(mask: AnswerMask, parent: Row | None, answer: Answer) -> NewMask:
    # What is made from an imported mask stays under the license of its file.
    said = {**said_of(mask, answer), "origin": None if parent is None else parent["origin"]}
    if mask.source == "corrected" and parent is not None and not is_of_build(parent):
        drawn = is_prompted(mask) and parent["source"] == "manual"
        said["source"] = "assisted" if drawn else parent["source"]
    return NewMask(mask.counts, None, mask.label, said)
